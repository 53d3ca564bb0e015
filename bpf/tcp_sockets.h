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

static __always_inline void count_opened(struct tcp_totals *t, enum role role)
{
	add_to(t->opened, role, ROLES, 1);
	add_to(t->connections, role, ROLES, 1);
}

static __noinline int settle_connection(struct tcp_socket *s, struct tcp_totals *t)
{
	account_connection(s, t, &s->end);
	if (s->phase == CONNECTING) {
		add_to(t->connect_failures, s->end.failure, FAILURES, 1);
		return 0;
	}
	if (s->end.rtt)
		observe(t, s, RTT, s->end.rtt);
	if (s->phase == FOUND)
		count_opened(t, s->role);
	else if (s->since)
		observe(t, s, LIFETIME, (bpf_ktime_get_ns() - s->since) / MICROSECOND);
	add_to(t->closed, s->role, ROLES, 1);
	add_to(t->connections, s->role, ROLES, -1);
	return 0;
}

static __always_inline void remove_entry(struct tcp_socket *s)
{
	__u64 key = s->reused ? s->cookie ^ REUSED : s->cookie;

	/* fails where an interrupt has come into the change of a bucket (up to 6.6) */
	if (bpf_map_delete_elem(&tcp_sockets, &key))
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
	struct tcp_totals *t = tcp_totals_for(s);

	if (s->phase == LISTENING && !s->cursor.state)
		s->port = 0; /* no flush has seen it: one of many, perhaps */
	if (t)
		move_state(s, t, 0);
	if (s->phase == LISTENING)
		account_drops(s, &s->end);
	else if (t && s->phase != NONE)
		settle_connection(s, t);
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

/*
 * Memory is used again at once, so an entry that was found may be another's meanwhile, if its end was handed
 * over: the cookie is read after its life.
 */
static __always_inline struct tcp_socket *living_at(__u64 key, __u64 cookie)
{
	struct tcp_socket *s = bpf_map_lookup_elem(&tcp_sockets, &key);

	if (!s || (__sync_fetch_and_or(&s->life, 0) & ~PINNED) != LIVE || READ_ONCE(s->cookie) != cookie)
		return NULL;
	return s;
}

/* The entry of a socket that has not ended. */
static __noinline struct tcp_socket *living(__u64 cookie)
{
	struct tcp_socket *s = living_at(cookie, cookie);

	return s ? s : living_at(cookie ^ REUSED, cookie);
}

/* Its end was not seen: what was counted since the last flush is missing. */
static __always_inline void lose(struct tcp_socket *s)
{
	struct lost_updates *l = lost_updates();

	/* nor was it there: it was found as its end had just been counted */
	if (s->phase == FOUND || (s->phase == LISTENING && !s->cursor.state)) {
		s->phase = NONE;
		return;
	}
	BRANCH(TCP_END_UNSEEN);
	if (l)
		__sync_fetch_and_add(&l->end_unseen, 1);
	s->end = s->cursor;
	s->end.failure = FAILURE_OTHER;
}

/* A socket that begins anew has an entry if its last end was not seen, or not deleted, or a flush has it. */
static __always_inline int end_last(__u64 cookie)
{
	struct tcp_socket *s = living(cookie);

	if (s) {
		lose(s);
		finish(s);
		return 0;
	}
	s = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	/* one that is about to be adopted is not: see adopt() */
	if (s && __sync_val_compare_and_swap(&s->life, 0, ENDED))
		delete_settled(s);
	return 0;
}

static __always_inline int insert(__u64 key)
{
	return bpf_map_update_elem(&tcp_sockets, &key, &no_tcp_socket, BPF_NOEXIST);
}

/* Not inlined: the stack has room for this and its callers. */
static __noinline int has_totals(__u64 cgroup_id)
{
	struct cgroup_key key = {cgroup_id};

	return find_or_make(&tcp_totals, &key, &no_tcp_totals) != NULL;
}

static __noinline int find_no_room(int error)
{
	struct lost_updates *l = lost_updates();

	BRANCH(TCP_SOCKETS_FULL);
	if (l)
		__sync_fetch_and_add(error == -E2BIG ? &l->connections_full : &l->connections_busy, 1);
	return 0;
}

/* What was inserted; it is not LIVE yet. */
static __noinline struct tcp_socket *fill_in(__u64 key, __u64 cookie, const struct sock *sk, enum phase phase,
					     enum role role)
{
	struct tcp_socket *s = bpf_map_lookup_elem(&tcp_sockets, &key);

	if (s) {
		s->cookie = cookie;
		s->reused = key != cookie;
		s->address = (__u64)sk;
		s->cgroup_id = cgroup_of(sk);
		s->in_other = !has_totals(s->cgroup_id);
		s->since = bpf_ktime_get_ns();
		s->phase = phase;
		s->role = role;
	}
	return s;
}

/* The new entry of a socket that begins now; NULL if there is no room for it. */
static __noinline struct tcp_socket *begin(__u64 cookie, const struct sock *sk, enum phase phase,
					   enum role role)
{
	int error = insert(cookie); /* not long: before 6.4 the upper half is not set */
	__u64 key = cookie;

	if (error == -EEXIST) {
		end_last(cookie);
		error = insert(key);
	}
	if (error == -EEXIST) {
		BRANCH(TCP_REUSED);
		key = cookie ^ REUSED;
		error = insert(key);
	}
	if (!error)
		return fill_in(key, cookie, sk, phase, role);
	if (!(phase == OPEN && role == ROLE_ACTIVE)) /* its connect has been noted */
		find_no_room(error);
	return NULL;
}

/* Who reads LIVE sees all that was written before it: the exchange is a full barrier. */
static __always_inline void publish(struct tcp_socket *s)
{
	__sync_lock_test_and_set(&s->life, LIVE);
}

static __noinline int begin_connecting(__u64 cookie, const struct sock *sk)
{
	struct tcp_socket *s = begin(cookie, sk, CONNECTING, ROLE_ACTIVE);

	if (!s)
		return 0;
	/* a socket that is used again brings its chronographs along: tcp_disconnect() leaves them */
	read_connection(sk, &s->cursor);
	publish(s);
	return 0;
}

static __always_inline void connected_now(struct tcp_socket *s)
{
	struct tcp_totals *t = tcp_totals_for(s);
	__u64 now = bpf_ktime_get_ns();

	if (t)
		observe(t, s, CONNECT_DURATION, (now - s->since) / MICROSECOND);
	s->since = now;
	s->phase = OPEN;
}

/* Both who connect to each other at the same time are told that they are passive: the first role holds. */
static __noinline int begin_connection(__u64 cookie, const struct sock *sk, enum role role)
{
	struct tcp_socket *s = living(cookie);
	struct tcp_totals *t;

	if (s && s->phase == CONNECTING) {
		connected_now(s);
	} else {
		s = begin(cookie, sk, OPEN, role);
		if (!s)
			return 0;
		/* a child has its listener's chronographs, which may have been connected before */
		read_chronos((const void *)sk, &s->cursor);
		publish(s);
	}
	t = tcp_totals_for(s);
	if (t)
		count_opened(t, s->role);
	return 0;
}

static __always_inline void listen_from_now(struct tcp_socket *s, const struct sock *sk)
{
	s->port = READ_SOCK(sk, __sk_common.skc_num);
	s->cursor.drops = drops_of(sk);
}

static __noinline int begin_listening(__u64 cookie, const struct sock *sk)
{
	struct tcp_socket *s = living(cookie);

	if (s && s->phase == LISTENING)
		return 0; /* a SYN was faster */
	s = begin(cookie, sk, LISTENING, ROLE_UNKNOWN);
	if (!s)
		return 0;
	listen_from_now(s, sk);
	publish(s);
	return 0;
}

/*
 * Take in a socket that is older than these programs, from where its counters stand now. Return the error if
 * there is no room for it.
 */
static __noinline int adopt(__u64 cookie, const struct sock *sk)
{
	__u8 state = READ_SOCK(sk, __sk_common.skc_state);
	bool listens = state == BPF_TCP_LISTEN;
	struct tcp_socket *s;
	int error;

	if (living(cookie) || !(listens || connected(state)))
		return 0;
	error = insert(cookie);
	if (error)
		return error == -EEXIST ? 0 : error;
	s = fill_in(cookie, cookie, sk, listens ? LISTENING : FOUND, ROLE_UNKNOWN);
	if (!s)
		return 0;
	BRANCH(TCP_ADOPTED);
	if (listens)
		listen_from_now(s, sk);
	else
		read_connection(sk, &s->cursor);
	/* unless the socket has begun by itself meanwhile */
	if (__sync_val_compare_and_swap(&s->life, 0, LIVE))
		remove_entry(s);
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

/* What the flush has read of a socket that is there. */
static __always_inline void account(struct tcp_socket *s, const struct reading *now)
{
	struct tcp_totals *t = tcp_totals_for(s);

	if (!t)
		return;
	if (s->phase == FOUND) {
		if (!connected(now->state) || bpf_ktime_get_ns() - s->since < MATURE)
			return;
		count_opened(t, s->role);
		s->since = 0;
		s->phase = OPEN;
	}
	move_state(s, t, now->state);
	if (s->phase == LISTENING) {
		account_drops(s, now);
		add_queue(s, now);
	} else {
		observe_rtt(s, t, now);
		account_connection(s, t, now);
	}
}

/* One step of the flush. */
static __noinline int pull(struct tcp_socket *s)
{
	const struct sock *sk;
	struct reading now;
	__u64 life;
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
	/*
	 * Full barriers: the end comes before the socket's counters are set to 0, and before it is another's;
	 * and the cookie is read after the rest.
	 */
	life = __sync_fetch_and_or(&s->life, 0);
	there = there && now.state != BPF_TCP_CLOSE && cookie_at(sk) == s->cookie;
	if (!(life & ENDED)) {
		if (there) {
			account(s, &now);
		} else {
			lose(s);
			__sync_fetch_and_or(&s->life, ENDED);
		}
	}
	unpin(s);
	return 0;
}

#endif
