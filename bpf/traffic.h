/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The hot path: one program at ingress and one at egress of the cgroup root, and their like, the meters,
 * at further attach points. They only count and always return 1.
 */
#include "drain.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <linux/in.h>
#include <linux/in6.h>

#define IPV6_HEADER 40
#define UDP_HEADER  8

/*
 * Wire segments of a super-packet that came without gso_segs (from tun or virtio, SKB_GSO_DODGY): its
 * payload in parts of gso_size. Headers are read, not trusted: what cannot be read counts as payload.
 */
static __noinline __u32 segments_of_untrusted(struct __sk_buff *skb)
{
	__u32 headers, size = skb->gso_size;
	__u8 version_ihl = 0, protocol = 0, data_offset = 0;

	BRANCH(UNTRUSTED_GSO);
	bpf_skb_load_bytes(skb, 0, &version_ihl, 1);
	if (version_ihl >> 4 == 6) {
		headers = IPV6_HEADER;
		bpf_skb_load_bytes(skb, 6, &protocol, 1);
	} else {
		headers = (version_ihl & 15) * 4;
		bpf_skb_load_bytes(skb, 9, &protocol, 1);
	}
	if (protocol == IPPROTO_TCP) {
		bpf_skb_load_bytes(skb, headers + 12, &data_offset, 1);
		headers += (data_offset >> 4) * 4;
	} else {
		headers += UDP_HEADER;
	}
	return skb->len > headers ? (skb->len - headers + size - 1) / size : 1;
}

static __always_inline __u32 wire_segments(struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs;

	if (segments)
		return segments;
	return skb->gso_size ? segments_of_untrusted(skb) : 1;
}

/* Only PREEMPT_RT kernels have this member; there a softirq can be preempted. */
static __always_inline bool softirqs_preemptible(void)
{
	return bpf_core_field_exists(((struct task_struct *)0)->softirq_disable_cnt);
}

/*
 * Double entry's other side. Atomic at egress though per CPU: it can be interrupted in process context.
 * Ingress runs with softirqs off, so that nothing comes between a plain add's load and store.
 */
static __always_inline void count_control(struct __sk_buff *skb, __u32 segments, enum direction direction)
{
	struct count *c = bpf_get_local_storage(&control, 0);

	if (direction == RECEIVE && !softirqs_preemptible()) {
		c->bytes += skb->len;
		c->packets += segments;
	} else {
		__sync_fetch_and_add(&c->bytes, skb->len);
		__sync_fetch_and_add(&c->packets, segments);
	}
}

static __always_inline enum family family_of(struct __sk_buff *skb)
{
	/* the packet's, not the socket's: a dual-stack socket carries both */
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? IPV6 : IPV4;
}

static __always_inline void add_pending(struct socket_counts *s, struct __sk_buff *skb, __u32 segments,
					enum direction direction)
{
	__u64 before =
		__sync_fetch_and_add(&s->pending[family_of(skb)][direction], PENDING(skb->len, segments));

	BRANCH(FAST);
	if (READ_ONCE(s->state) != FAST) {
		BRANCH(SECOND_LOOK);
		drain(s);
	} else if (before & PENDING_FULL) {
		BRANCH(PENDING_FULL);
		drain(s);
	}
}

static __always_inline enum protocol protocol_of(struct bpf_sock *sk)
{
	switch (sk->protocol) {
	case IPPROTO_TCP:
		return TCP;
	case IPPROTO_UDP:
		return UDP;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return ICMP;
	default:
		return OTHER;
	}
}

static __always_inline struct socket_counts *create(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct socket_counts new = {
		.cgroup_id = bpf_skb_cgroup_id(skb),
		.protocol = protocol_of(sk),
	};
	struct lost_updates *l;
	struct socket_counts *s;

	s = bpf_sk_storage_get(&sockets, sk, &new, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s) {
		BRANCH(NO_STORAGE);
		l = lost_updates();
		if (l)
			__sync_fetch_and_add(&l->storage, 1);
		return NULL;
	}
	BRANCH(CREATED);
	return s;
}

/* Whether user space has a handle to this TCP socket, so that its release will be hooked. */
static __always_inline bool held_by_user(struct bpf_sock *sk)
{
	struct sock *inner = (struct sock *)bpf_skc_to_tcp_sock(sk);

	return inner && BPF_CORE_READ(inner, sk_socket) &&
	       !BPF_CORE_READ_BITFIELD_PROBED(inner, sk_kern_sock);
}

/*
 * A connection that nobody has accepted yet is not FAST, nor is one that was closed before we came. After
 * sl_released the state is CLOSED, so that the first compare-and-swap fails. It is also the full barrier
 * between the storage and the state of the socket for sl_tcp_destroyed, which comes in state CLOSE: either
 * that finds the storage, or CLOSE is seen here.
 */
static __always_inline void make_fast(struct socket_counts *s, struct bpf_sock *sk)
{
	__sync_val_compare_and_swap(&s->state, WRITE_THROUGH, FAST);
	if (READ_ONCE(sk->state) == BPF_TCP_CLOSE) {
		BRANCH(FAST_TOO_LATE);
		end(s);
	}
}

static __always_inline void write_through(struct __sk_buff *skb, enum protocol protocol, __u32 segments,
					  enum direction direction)
{
	struct totals_key key = {};
	struct totals *t;

	BRANCH(WRITE_THROUGH);
	key.cgroup_id = bpf_skb_cgroup_id(skb);
	key.protocol = protocol;
	key.family = family_of(skb);
	t = totals_of(&key);
	if (!t)
		return;
	if (direction == RECEIVE)
		add_receive(t, skb->len, segments);
	else
		add_transmit(t, skb->len, segments);
}

/* All packets but those of a FAST socket. */
static __noinline int count_slowly(struct __sk_buff *skb, __u32 segments, enum direction direction)
{
	struct bpf_sock *sk = skb->sk;
	struct socket_counts *s;
	__u32 state;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk) {
		/* not seen so far: these programs run for full sockets only */
		write_through(skb, OTHER, segments, direction);
		return 0;
	}
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!s)
		s = create(skb, sk);
	if (!s) {
		write_through(skb, protocol_of(sk), segments, direction);
		return 0;
	}
	state = READ_ONCE(s->state);
	if (state == WRITE_THROUGH && is_tcp(sk) && held_by_user(sk)) {
		make_fast(s, sk);
		state = READ_ONCE(s->state);
	} else if (state == HOOKED) {
		BRANCH(CLAIMED);
		/* every CPU writes the same; FAST, and so a drain, comes after */
		s->cgroup_id = bpf_skb_cgroup_id(skb);
		__sync_val_compare_and_swap(&s->state, HOOKED, FAST);
		state = READ_ONCE(s->state);
	}
	if (state == FAST) {
		add_pending(s, skb, segments, direction);
		return 0;
	}
	if (state == CLOSED)
		BRANCH(LATE);
	write_through(skb, protocol_of(sk), segments, direction);
	return 0;
}

static __always_inline void count_packet(struct __sk_buff *skb, enum direction direction)
{
	__u32 segments = wire_segments(skb);
	struct bpf_sock *sk = skb->sk;
	struct socket_counts *s = NULL;

	count_control(skb, segments, direction);
	if (sk)
		s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (s && READ_ONCE(s->state) == FAST)
		add_pending(s, skb, segments, direction);
	else
		count_slowly(skb, segments, direction);
}

SEC("cgroup_skb/ingress")
int sl_receive(struct __sk_buff *skb)
{
	count_packet(skb, RECEIVE);
	return 1;
}

SEC("cgroup_skb/egress")
int sl_transmit(struct __sk_buff *skb)
{
	count_packet(skb, TRANSMIT);
	return 1;
}

SEC("cgroup_skb/ingress")
int sl_meter_receive(struct __sk_buff *skb)
{
	count_control(skb, wire_segments(skb), RECEIVE);
	return 1;
}

SEC("cgroup_skb/egress")
int sl_meter_transmit(struct __sk_buff *skb)
{
	count_control(skb, wire_segments(skb), TRANSMIT);
	return 1;
}
