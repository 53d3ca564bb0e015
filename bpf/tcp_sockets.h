/* SPDX-License-Identifier: GPL-2.0 */
/* The life of a TCP socket's entry: begun or found, flushed, ended. tcp.h says who may change it when. */
#ifndef SOCKLEDGER_TCP_SOCKETS_H
#define SOCKLEDGER_TCP_SOCKETS_H

#include "tcp_account.h"

#define MICROSECOND 1000 /* nanoseconds */

/* Whether a connection in this state has been opened. */
static __always_inline bool connected(__u8 state)
{
	switch (state) {
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		return true;
	default:
		return false;
	}
}

static __noinline int settle_listener(struct tcp_socket *s)
{
	struct listen_totals *t = listen_totals_of(s);

	s->end.queue_length = 0;
	s->end.queue_limit = 0;
	account_listener(s, &s->end);
	if (t)
		add(&t->listeners, -1);
	return 0;
}

static __noinline int settle_connection(struct tcp_socket *s, struct tcp_totals *t)
{
	account_connection(s, t, &s->end);
	if (s->phase == CONNECTING) {
		add_to(t->connect_failures, s->end.failure, FAILURES, 1);
		return 0;
	}
	if (s->end.rtt)
		observe(t, s->cgroup_id, RTT, s->end.rtt);
	if (s->since)
		observe(t, s->cgroup_id, LIFETIME, (bpf_ktime_get_ns() - s->since) / MICROSECOND);
	add_to(t->closed, s->role, ROLES, 1);
	return 0;
}

static __always_inline void remove_entry(struct tcp_socket *s)
{
	__u64 cookie = s->cookie;

	/* fails where an interrupt has come into the change of a bucket (up to 6.6) */
	if (bpf_map_delete_elem(&tcp_sockets, &cookie))
		__sync_lock_test_and_set(&s->life, SETTLED);
}

/* What could not be deleted, by whoever comes first. */
static __always_inline void delete_settled(struct tcp_socket *s)
{
	if (READ_ONCE(s->life) == SETTLED && __sync_val_compare_and_swap(&s->life, SETTLED, ENDED) == SETTLED)
		remove_entry(s);
}

/* The last entry in the books, by the one who has ended it. */
static __noinline int settle(struct tcp_socket *s)
{
	struct tcp_totals *t = tcp_totals_of(s->cgroup_id);

	if (t) {
		move_state(s, t, 0);
		if (s->phase == LISTENING)
			settle_listener(s);
		else
			settle_connection(s, t);
	}
	remove_entry(s);
	return 0;
}

/* End an entry, its last reading written: settled here, or by the flush that has it. */
static __always_inline void finish(struct tcp_socket *s)
{
	__u64 before = __sync_fetch_and_or(&s->life, ENDED);

	if (before == LIVE)
		settle(s);
	else
		BRANCH(TCP_HANDED_OVER);
}

static const struct tcp_socket no_tcp_socket = {}; /* too large for the stack */

/* A new entry, not yet LIVE; NULL if there can be none, which is noted if this is the first try. */
static __noinline struct tcp_socket *new_entry(__u64 cookie, const struct sock *sk, enum phase phase,
					       enum role role, bool first)
{
	struct tcp_socket *s;
	struct lost_updates *l;
	int error; /* not long: before 6.4 the upper half is not set */

	error = bpf_map_update_elem(&tcp_sockets, &cookie, &no_tcp_socket, BPF_NOEXIST);
	if (!error) {
		s = bpf_map_lookup_elem(&tcp_sockets, &cookie);
		if (s) {
			s->cookie = cookie;
			s->address = (__u64)sk;
			s->cgroup_id = cgroup_of(sk);
			s->phase = phase;
			s->role = role;
			return s;
		}
	}
	BRANCH(TCP_SOCKETS_FULL);
	l = first ? lost_updates() : NULL;
	if (l)
		__sync_fetch_and_add(error == -E2BIG ? &l->connections_full : &l->connections_busy, 1);
	return NULL;
}

/*
 * The entry of a socket that has not ended. Memory is used again at once, so one that was found may be
 * another's meanwhile, if its last end was handed over: the cookie is read after its life.
 */
static __always_inline struct tcp_socket *living(__u64 cookie)
{
	struct tcp_socket *s = bpf_map_lookup_elem(&tcp_sockets, &cookie);

	if (!s || (__sync_fetch_and_or(&s->life, 0) & ~PINNED) != LIVE || READ_ONCE(s->cookie) != cookie)
		return NULL;
	return s;
}

/* What was counted since the last flush is missing. */
static __always_inline void note_unseen_end(void)
{
	struct lost_updates *l = lost_updates();

	BRANCH(TCP_END_UNSEEN);
	if (l)
		__sync_fetch_and_add(&l->end_unseen, 1);
}

/* Before a socket begins anew: there is an entry only if its last end was not seen, or not deleted. */
static __noinline int end_last(__u64 cookie)
{
	struct tcp_socket *s = living(cookie);

	if (s) {
		note_unseen_end();
		s->end = s->cursor;
		finish(s);
		return 0;
	}
	s = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	if (s)
		delete_settled(s);
	return 0;
}

/* Who reads LIVE sees all that was written before it: the exchange is a full barrier. */
static __always_inline void publish(struct tcp_socket *s)
{
	__sync_lock_test_and_set(&s->life, LIVE);
}

static __noinline int begin_connecting(__u64 cookie, const struct sock *sk)
{
	struct tcp_socket *s;

	end_last(cookie);
	s = new_entry(cookie, sk, CONNECTING, ROLE_ACTIVE, true);
	if (!s)
		return 0;
	/* a socket that is used again brings its chronographs along: tcp_disconnect() leaves them */
	read_connection(sk, &s->cursor);
	s->since = bpf_ktime_get_ns();
	publish(s);
	return 0;
}

/* Both who connect to each other at the same time are told that they are passive: the first role holds. */
static __noinline int begin_connection(__u64 cookie, const struct sock *sk, enum role role)
{
	struct tcp_socket *s = living(cookie);
	__u64 now = bpf_ktime_get_ns();
	struct tcp_totals *t;

	if (s && s->phase == CONNECTING) {
		t = tcp_totals_of(s->cgroup_id);
		if (t)
			observe(t, s->cgroup_id, CONNECT_DURATION, (now - s->since) / MICROSECOND);
		s->since = now;
		s->phase = OPEN;
	} else {
		end_last(cookie);
		s = new_entry(cookie, sk, OPEN, role, role == ROLE_PASSIVE);
		if (!s)
			return 0;
		s->since = now;
		publish(s);
		t = tcp_totals_of(s->cgroup_id);
	}
	if (t)
		add_to(t->opened, s->role, ROLES, 1);
	return 0;
}

static __always_inline int begin_listening(__u64 cookie, const struct sock *sk, bool first)
{
	struct tcp_socket *s = new_entry(cookie, sk, LISTENING, ROLE_UNKNOWN, first);
	struct listen_totals *t;

	if (!s)
		return 0;
	s->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	s->cursor.drops = drops_of(sk);
	t = listen_totals_of(s);
	if (t)
		add(&t->listeners, 1);
	publish(s);
	return 0;
}

/*
 * Take in a socket that is older than these programs, from where its counters stand now. It may end
 * meanwhile, and be counted as one that nobody knew: then the next flush finds its entry, and that is
 * counted, too.
 */
static __noinline int adopt(__u64 cookie, const struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct tcp_totals *t;
	struct tcp_socket *s;

	if (bpf_map_lookup_elem(&tcp_sockets, &cookie))
		return 0;
	if (state == BPF_TCP_LISTEN)
		return begin_listening(cookie, sk, false);
	if (!connected(state))
		return 0;
	s = new_entry(cookie, sk, OPEN, ROLE_UNKNOWN, false);
	if (!s)
		return 0;
	BRANCH(TCP_ADOPTED);
	read_connection(sk, &s->cursor);
	t = tcp_totals_of(s->cgroup_id);
	if (t)
		add(&t->opened[ROLE_UNKNOWN], 1);
	publish(s);
	return 0;
}

/* The socket goes to CLOSE from *before*, and may be used again or freed after it. */
static __noinline int end(__u64 cookie, const struct sock *sk, __u8 before)
{
	struct tcp_socket *s = living(cookie);
	struct tcp_totals *t;

	if (s) {
		read_socket(sk, s->phase, &s->end);
		finish(s);
	} else if (connected(before)) {
		/* older than these programs and silent until now, or there was no room */
		t = tcp_totals_of(cgroup_of(sk));
		if (t) {
			add(&t->opened[ROLE_UNKNOWN], 1);
			add(&t->closed[ROLE_UNKNOWN], 1);
		}
	}
	return 0;
}

/* Give an entry back, or see to its end if that came meanwhile. */
static __always_inline void unpin(struct tcp_socket *s)
{
	if (__sync_fetch_and_and(&s->life, ~PINNED) & ENDED)
		settle(s);
}

/* One step of the flush. */
static __noinline int pull(struct tcp_socket *s)
{
	const struct sock *sk;
	struct tcp_totals *t;
	struct reading now;
	bool there;

	if (__sync_val_compare_and_swap(&s->life, LIVE, LIVE | PINNED) != LIVE) {
		delete_settled(s);
		return 0;
	}
	sk = (const void *)s->address;
	there = cookie_at(sk) == s->cookie;
	if (there && s->phase == OPEN && idle(sk, &s->cursor)) {
		unpin(s);
		return 0;
	}
	read_socket(sk, s->phase, &now);
	there = there && now.state != BPF_TCP_CLOSE && cookie_at(sk) == s->cookie;
	/* the end comes before the socket's counters are set to 0, and before it is another's */
	if (!(__sync_fetch_and_or(&s->life, 0) & ENDED)) {
		if (there) {
			t = tcp_totals_of(s->cgroup_id);
			if (t) {
				move_state(s, t, now.state);
				if (s->phase == LISTENING) {
					account_listener(s, &now);
				} else {
					observe_rtt(s, t, &now);
					account_connection(s, t, &now);
				}
			}
		} else {
			note_unseen_end();
			s->end = s->cursor;
			__sync_fetch_and_or(&s->life, ENDED);
		}
	}
	unpin(s);
	return 0;
}

#endif
