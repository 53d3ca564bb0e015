/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The hot path: one program at ingress and one at egress of the cgroup root, and their like, the meters,
 * at further attach points. They only count and always return 1.
 */
#include "drain.h"
#include "lease.h"
#include "seats.h"
#include "tcp_sockets.h"
#include "udp.h"
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

	if (before & PENDING_FULL) {
		BRANCH(PENDING_FULL);
		drain(s);
	}
}

static __always_inline enum protocol protocol_of(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return OTHER; /* not seen so far: these programs run for full sockets only */
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

/* Of a socket that is what its protocol says: a raw one may have the same. */
static __always_inline __u64 address_of(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	return sk && sk->type != SOCK_RAW ? (__u64)sk : 0;
}

/*
 * Take a seat that is free. Its key is written before anybody finds it by its owner: the exchange is a full
 * barrier. Two CPUs may each take one for the same socket; both count, and the one further on will be idle.
 */
static __always_inline bool claim(struct socket_counts *s, __u64 cookie, struct __sk_buff *skb)
{
	const struct sock *sk;

	if (__sync_val_compare_and_swap(&s->owner, FREE, CLAIMING) != FREE) {
		BRANCH(CLAIM_LOST);
		return false;
	}
	BRANCH(CLAIMED);
	s->cgroup_id = bpf_skb_cgroup_id(skb);
	s->protocol = protocol_of(skb);
	s->peer = 0;
	s->tag = 0;
	s->generation = 0;
	s->address = address_of(skb);
	/* read back as a number: the verifier lets nobody read the socket by skb->sk */
	sk = (const void *)READ_ONCE(s->address);
	if (settings.tcp && sk && s->protocol == TCP)
		adopt(cookie, sk);
	if (settings.udp && sk && s->protocol == UDP)
		meet_udp(cookie, sk);
	__sync_lock_test_and_set(&s->owner, cookie);
	return true;
}

/* The socket's seat, or a new one; NULL if there is none for it now. */
static __always_inline struct socket_counts *seat_of(__u64 cookie, struct __sk_buff *skb)
{
	struct socket_counts *s;
	struct lost_updates *l;
	int vacant = WAYS;

	for (int way = 0; way < WAYS; way++) {
		__u64 owner;

		s = seat(cookie, way);
		if (!s)
			continue;
		owner = READ_ONCE(s->owner);
		if (owner == cookie) {
			BRANCH(FURTHER_ON);
			return s;
		}
		if (owner == FREE && vacant == WAYS)
			vacant = way;
	}
	if (vacant < WAYS) {
		s = seat(cookie, vacant);
		return s && claim(s, cookie, skb) ? s : NULL;
	}
	BRANCH(SOCKETS_FULL);
	l = lost_updates();
	if (l)
		__sync_fetch_and_add(&l->sockets_full, 1);
	return NULL;
}

static __always_inline void write_through(struct __sk_buff *skb, __u32 segments, enum direction direction)
{
	struct totals_key key = {};
	struct totals *t;

	BRANCH(WRITE_THROUGH);
	key.cgroup_id = bpf_skb_cgroup_id(skb);
	key.protocol = protocol_of(skb);
	key.family = family_of(skb);
	t = totals_of(&key);
	if (!t)
		return;
	if (direction == RECEIVE)
		add_receive(t, skb->len, segments);
	else
		add_transmit(t, skb->len, segments);
}

/* All packets but those of a socket that sits at its home. */
static __noinline int count_slowly(struct __sk_buff *skb, __u64 cookie, __u32 segments,
				   enum direction direction)
{
	/* without a cookie: not seen so far, these programs run for sockets only */
	struct socket_counts *s = cookie ? seat_of(cookie, skb) : NULL;

	if (s)
		add_pending(s, skb, segments, direction);
	else
		write_through(skb, segments, direction);
	return 0;
}

/*
 * The kernel runs this under rcu_read_lock(): between the look at the owner and the add the seat may be
 * retired, but not become another's.
 */
static __always_inline void count_packet(struct __sk_buff *skb, enum direction direction)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct socket_counts *s = seat(cookie, 0);
	__u32 segments = wire_segments(skb);

	if (dormant())
		return;
	count_control(skb, segments, direction);
	if (cookie && s && READ_ONCE(s->owner) == cookie) {
		BRANCH(FAST);
		add_pending(s, skb, segments, direction);
	} else {
		count_slowly(skb, cookie, segments, direction);
	}
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
	if (!dormant())
		count_control(skb, wire_segments(skb), RECEIVE);
	return 1;
}

SEC("cgroup_skb/egress")
int sl_meter_transmit(struct __sk_buff *skb)
{
	if (!dormant())
		count_control(skb, wire_segments(skb), TRANSMIT);
	return 1;
}
