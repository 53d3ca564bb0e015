/* SPDX-License-Identifier: GPL-2.0 */
/* From a TCP socket's own counters to the totals of its cgroup. */
#ifndef SOCKLEDGER_TCP_ACCOUNT_H
#define SOCKLEDGER_TCP_ACCOUNT_H

#include "totals.h"
#include "peers.h"
#include "socket.h"
#include "tcp.h"

/* New entries; too large for the stack. */
static const struct tcp_totals no_tcp_totals = {};
static const struct tcp_histograms no_tcp_histograms = {};

/* The index is checked where it is used: the verifier does not know the range of what was read from a map. */
static __always_inline void add_to(__u64 *totals, __u32 index, __u32 size, __u64 n)
{
	asm volatile("" : "+r"(index));
	if (index < size)
		__sync_fetch_and_add(&totals[index], n);
}

static __always_inline struct tcp_totals *tcp_totals_of(__u64 cgroup_id)
{
	struct cgroup_key key = {cgroup_id}, other = {};

	return sums_of(&tcp_totals, &key, &no_tcp_totals, &other);
}

/* Who has begun in other's totals does not end in its cgroup's, for which there may be room now. */
static __always_inline struct tcp_totals *tcp_totals_for(const struct tcp_socket *s)
{
	return tcp_totals_of(s->in_other ? 0 : s->cgroup_id);
}

static __always_inline struct listen_totals *listen_totals_of(const struct tcp_socket *s)
{
	struct listen_key key = {s->cgroup_id, s->port}, other = {};
	struct listen_totals none = {};

	return sums_of(&listen_totals, &key, &none, &other);
}

static __always_inline void add_to_histogram(struct histogram *h, __u64 microseconds)
{
	__u64 bound = FIRST_BUCKET;
	int bucket = 0;

	while (bucket < BUCKETS - 1 && microseconds > bound) {
		bound *= 4;
		bucket++;
	}
	__sync_fetch_and_add(&h->buckets[bucket], 1);
	add(&h->sum, microseconds);
}

/* Of all connections with the class of peers that this one is with. Never NULL, as the first is there. */
static __noinline struct node_totals *node_totals_of(const struct tcp_socket *s)
{
	struct node_totals *found;
	__u32 class = CLASS_NONE;

	if (settings.peers)
		class = class_of_socket(s->cookie, (const void *)s->address);
	found = bpf_map_lookup_elem(&node_totals, &class);
	if (found)
		return found;
	class = CLASS_NONE;
	return bpf_map_lookup_elem(&node_totals, &class);
}

static __noinline int observe(struct tcp_totals *t, const struct tcp_socket *s, enum measure measure,
			      __u64 microseconds)
{
	struct cgroup_key key = {s->cgroup_id}, other = {};
	struct node_totals *node = node_totals_of(s);
	struct tcp_histograms *h;

	__sync_fetch_and_add(&t->measured[measure].count, 1);
	add(&t->measured[measure].sum, microseconds);
	if (node)
		add_to_histogram(&node->histograms.measured[measure], microseconds);
	if (!settings.tcp_histograms)
		return 0;
	h = sums_of(&tcp_histograms, &key, &no_tcp_histograms, &other);
	if (h)
		add_to_histogram(&h->measured[measure], microseconds);
	return 0;
}

/* ---- from the socket to a reading */

static __always_inline void read_listener(const struct sock *sk, struct reading *r)
{
	r->queue_length = READ_SOCK(sk, sk_ack_backlog);
	r->queue_limit = READ_SOCK(sk, sk_max_ack_backlog);
	r->drops = drops_of(sk);
}

static __always_inline __u32 running_chrono(const struct tcp_sock *tp)
{
	if (!bpf_rdonly_cast)
		return BPF_CORE_READ_BITFIELD_PROBED(tp, chrono_type);
	tp = bpf_rdonly_cast(tp, bpf_core_type_id_kernel(struct tcp_sock));
	return BPF_CORE_READ_BITFIELD(tp, chrono_type);
}

/* As tcp_get_info_chrono_stats() does. */
static __always_inline void read_chronos(const struct tcp_sock *tp, struct reading *r)
{
	__u32 running = running_chrono(tp), start = READ_TCP(tp, chrono_start);

	r->jiffies = bpf_jiffies64();
	for (int i = 0; i < CHRONOS; i++) {
		r->busy[i] = READ_TCP(tp, chrono_stat[i]);
		if (running == i + 1)
			r->busy[i] += r->jiffies - start;
	}
}

/* Nothing has come or gone since, and there is nothing to send: the most, so they are seen by a few reads. */
static __always_inline bool idle(const struct sock *sk, const struct reading *cursor)
{
	const struct tcp_sock *tp = (const void *)sk;

	return READ_TCP(tp, segs_in) == cursor->receive_segments &&
	       READ_TCP(tp, segs_out) == cursor->transmit_segments && !running_chrono(tp) &&
	       READ_SOCK(sk, __sk_common.skc_state) == cursor->state;
}

static __always_inline void read_connection(const struct sock *sk, struct reading *r)
{
	const struct tcp_sock *tp = (const void *)sk;

	r->acked_bytes = READ_TCP(tp, bytes_acked);
	r->received_bytes = READ_TCP(tp, bytes_received);
	r->transmit_segments = READ_TCP(tp, segs_out);
	r->receive_segments = READ_TCP(tp, segs_in);
	r->retransmitted_segments = READ_TCP(tp, total_retrans);
	r->out_of_order_segments = READ_TCP(tp, rcv_ooopack);
	r->rtt = READ_TCP(tp, srtt_us) >> 3;
	read_chronos(tp, r);
}

static __always_inline enum failure failure_of(int error)
{
	switch (error) {
	case 0:
	case ECONNABORTED: /* by the administrator */
		return FAILURE_ABORTED;
	case ECONNREFUSED:
		return FAILURE_REFUSED;
	case ECONNRESET:
	case EPIPE:
		return FAILURE_RESET;
	case ETIMEDOUT:
		return FAILURE_TIMED_OUT;
	case EHOSTUNREACH:
		return FAILURE_HOST_UNREACHABLE;
	case ENETUNREACH:
		return FAILURE_NET_UNREACHABLE;
	default:
		return FAILURE_OTHER;
	}
}

static __always_inline void read_socket(const struct sock *sk, enum phase phase, struct reading *r)
{
	__builtin_memset(r, 0, sizeof(*r));
	r->state = READ_SOCK(sk, __sk_common.skc_state);
	r->failure = failure_of(READ_SOCK(sk, sk_err));
	if (phase == LISTENING)
		read_listener(sk, r);
	else
		read_connection(sk, r);
}

/* ---- from a reading to the totals */

/*
 * What a counter has moved on since. One that stands lower was set to 0, and that was not seen; but not where
 * it can have come so far in the time of so many *bytes*.
 */
#define ADVANCE_WITH(bytes, cursor, r, field)                                                                \
	({                                                                                                   \
		typeof((r)->field) _n = (r)->field - (cursor)->field;                                        \
		bool _on = _n && !(_n >> (sizeof(_n) * 8 - 1) && !((bytes) >> (sizeof(_n) * 8 - 1)));        \
		if (_on)                                                                                     \
			(cursor)->field = (r)->field;                                                        \
		_on ? _n : 0;                                                                                \
	})
#define ADVANCE(cursor, r, field) ADVANCE_WITH(0ULL, cursor, r, field)

/*
 * No time can have gone on for longer than has passed. It looks so where a flush has read the three while the
 * kernel went from one to another: then the next reading counts. The last one is under the socket's lock.
 */
static __always_inline void account_busy(struct tcp_totals *t, struct reading *c, const struct reading *r)
{
	__u32 passed = r->jiffies - c->jiffies, gone = 0;

	for (int i = 0; i < CHRONOS; i++)
		gone += r->busy[i] - c->busy[i];
	if (gone > passed + 1)
		return;
	for (int i = 0; i < CHRONOS; i++)
		add(&t->busy[i], ADVANCE(c, r, busy[i]));
	c->jiffies = r->jiffies;
}

static __noinline int account_connection(struct tcp_socket *s, struct tcp_totals *t, const struct reading *r)
{
	struct reading *c = &s->cursor;
	struct node_totals *node;
	__u32 retransmitted = ADVANCE(c, r, retransmitted_segments);
	__u64 acked = ADVANCE(c, r, acked_bytes), received = ADVANCE(c, r, received_bytes);
	__u64 bytes = acked + received; /* a segment carries some, or acknowledges some */

	add(&t->acked_bytes, acked);
	add(&t->received_bytes, received);
	add(&t->transmit_segments, ADVANCE_WITH(bytes, c, r, transmit_segments));
	add(&t->receive_segments, ADVANCE_WITH(bytes, c, r, receive_segments));
	add(&t->out_of_order_segments, ADVANCE(c, r, out_of_order_segments));
	add(&t->retransmitted_segments, retransmitted);
	node = retransmitted ? node_totals_of(s) : NULL;
	if (node)
		add(&node->retransmitted_segments, retransmitted);
	account_busy(t, c, r);
	return 0;
}

/* Gauges: the socket's share goes from what it was to what it is; state 0 has none. */
static __always_inline void move_state(struct tcp_socket *s, struct tcp_totals *t, __u8 state)
{
	__u8 before = s->cursor.state;

	if (state == before)
		return;
	if (before)
		add_to(t->sockets, before, STATES, -1);
	if (state)
		add_to(t->sockets, state, STATES, 1);
	s->cursor.state = state;
}

static __noinline int account_drops(struct tcp_socket *s, const struct reading *r)
{
	__u32 drops = ADVANCE(&s->cursor, r, drops);
	struct listen_totals *t = drops ? listen_totals_of(s) : NULL;

	if (t)
		add(&t->drops, drops);
	return 0;
}

/* Only the flush writes these, and they begin at 0 with it. */
static __noinline int add_queue(struct tcp_socket *s, const struct reading *r)
{
	struct listen_key key = {s->cgroup_id, s->port};
	struct listen_queue none = {}, *q = find_or_make(&listen_queues, &key, &none);

	if (q) {
		q->length += r->queue_length;
		q->limit += r->queue_limit;
	}
	return 0;
}

/* An observation for each connection and slot in which it moved data, so that a busy one drowns no others. */
static __always_inline void observe_rtt(struct tcp_socket *s, struct tcp_totals *t, const struct reading *r)
{
	__u16 slot = bpf_ktime_get_ns() / RTT_SLOT;

	if (!r->rtt || slot == s->observed)
		return;
	if (r->acked_bytes <= 1 && !r->received_bytes)
		return; /* the SYN is acknowledged as a byte */
	if (r->acked_bytes == s->cursor.acked_bytes && r->received_bytes == s->cursor.received_bytes)
		return;
	s->observed = slot;
	observe(t, s, RTT, r->rtt);
}

#endif
