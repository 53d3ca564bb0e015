/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The hot path: one program at ingress and one at egress of the cgroup root, and their like, the meters,
 * at further attach points. They only count and always return 1.
 */
#include "drain.h"
#include "lease.h"
#include "peers.h"
#include "seats.h"
#include "tags.h"
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

/* Whom a packet comes from, or goes to. */
struct peer {
	struct address address;
	__u32 class;
	__u64 generation; /* in which that was looked up, or an older one */
};

/* The address that the packet's socket is connected to; false if it is to none. */
static __always_inline bool read_connected(struct __sk_buff *skb, struct address *address)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk || !sk->dst_port)
		return false;
	__builtin_memset(address, 0, sizeof(*address));
	/* volatile, or the compiler chooses where to read first, and the verifier allows no such pointer */
	if (family_of(skb) == IPV6) {
		address->family = 6;
		address->words[0] = READ_ONCE(sk->dst_ip6[0]);
		address->words[1] = READ_ONCE(sk->dst_ip6[1]);
		address->words[2] = READ_ONCE(sk->dst_ip6[2]);
		address->words[3] = READ_ONCE(sk->dst_ip6[3]);
	} else {
		address->family = 4;
		address->words[0] = READ_ONCE(sk->dst_ip4);
	}
	return true;
}

/* Whether the packet's socket is connected, and to this address: it may be sent elsewhere all the same. */
static __always_inline bool is_connected_to(struct __sk_buff *skb, const struct address *address)
{
	struct address connected;

	return read_connected(skb, &connected) && same_address(&connected, address);
}

/* Not inlined: its keys take stack. */
static __noinline int meet_peer(struct __sk_buff *skb, enum direction direction, struct peer *peer)
{
	peer->generation = generation();
	/*
	 * What leaves for a service has another address by now, what comes from it has the service's again. A
	 * TCP socket has one peer; of others the packet says whom it is for.
	 */
	if (protocol_of(skb) != TCP || !read_connected(skb, &peer->address))
		read_peer(skb, family_of(skb), direction, &peer->address);
	peer->class = class_of(&peer->address);
	return 0;
}

/* Whether a seat is the socket's, and counts for its tag and for the class of the packet's peer. */
static __always_inline bool is_seat_of(const struct socket_counts *s, __u32 index, __u64 cookie,
				       struct __sk_buff *skb, enum direction direction)
{
	__u64 owner = READ_ONCE(s->owner);

	if (owner != cookie)
		return false;
	/* where to read depends on the owner, so no CPU reads what was there before him */
	asm volatile("" : "+r"(owner));
	index += owner - cookie;
	if (s->tag != noted_tag_of(skb, s))
		return false;
	return settings.peers ? is_of_peer(index, skb, family_of(skb), direction) : !s->peer;
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
 * NULL if another CPU was first.
 */
static __always_inline struct socket_counts *claim(__u32 index, __u64 cookie, struct __sk_buff *skb,
						   const struct peer *peer, __u32 tag)
{
	struct socket_counts *s = seat_at(index);
	const struct sock *sk;
	struct seat_peer *p;

	if (!s || __sync_val_compare_and_swap(&s->owner, FREE, CLAIMING) != FREE) {
		BRANCH(CLAIM_LOST);
		return NULL;
	}
	BRANCH(CLAIMED);
	s->cgroup_id = bpf_skb_cgroup_id(skb);
	s->protocol = protocol_of(skb);
	s->peer = peer->class;
	if (settings.peers) {
		p = peer_at(index);
		if (p) {
			p->address = peer->address;
			p->generation = peer->generation;
		}
	}
	s->tag = tag;
	s->address = address_of(skb);
	/* read back as a number: the verifier lets nobody read the socket by skb->sk */
	sk = (const void *)READ_ONCE(s->address);
	if (settings.tcp && sk && s->protocol == TCP)
		adopt(cookie, sk);
	if (settings.udp && sk && s->protocol == UDP)
		meet_udp(cookie, sk);
	__sync_lock_test_and_set(&s->owner, cookie);
	return s;
}

/* Have a socket take another seat than the one that it has. */
static __always_inline void leave(struct socket_counts *s, __u64 cookie)
{
	const struct sock *sk;

	if (__sync_val_compare_and_swap(&s->owner, cookie, LEFT) != cookie)
		return;
	/* or what it has dropped until now would be from before it was met */
	sk = (const void *)READ_ONCE(s->address);
	if (settings.udp && sk && s->protocol == UDP)
		pull_drops(cookie, sk, s->cgroup_id, true);
}

/*
 * Whether a seat of the packet's socket counts for its tag and the class of its peer. It leaves one of
 * another tag. A connected socket leaves one of another class: it has other networks now, or was connected
 * anew. Others talk to whom they want. Without networks no seat has a class, but for what programs before
 * claimed.
 */
static __always_inline bool counts_for(struct socket_counts *s, __u32 index, __u64 cookie,
				       struct __sk_buff *skb, const struct peer *peer, __u32 tag)
{
	struct seat_peer *p;

	if (s->tag == tag && s->peer == peer->class) {
		p = settings.peers ? peer_at(index) : NULL;
		/* as long as it is this socket's, nobody writes another address, and the class is that of
		 * both */
		if (p && p->generation != peer->generation && same_address(&p->address, &peer->address)) {
			BRANCH(PEER_REFRESHED);
			WRITE_ONCE(p->generation, peer->generation);
		}
		return true;
	}
	if (s->tag != tag || !settings.peers || is_connected_to(skb, &peer->address)) {
		BRANCH(LEFT);
		leave(s, cookie);
	}
	return false;
}

/* The socket's seat, or a new one; NULL if there is none for it now. */
static __always_inline struct socket_counts *seat_of(__u64 cookie, struct __sk_buff *skb,
						     const struct peer *peer, __u32 tag)
{
	struct socket_counts *s;
	struct lost_updates *l;
	int vacant = WAYS;

	for (int way = 0; way < WAYS; way++) {
		__u32 index = seat_number(cookie, way);
		__u64 owner;

		s = seat_at(index);
		if (!s)
			continue;
		owner = READ_ONCE(s->owner);
		if (owner == cookie) {
			if (counts_for(s, index, cookie, skb, peer, tag)) {
				BRANCH(FURTHER_ON);
				return s;
			}
			if (READ_ONCE(s->owner) == cookie) {
				BRANCH(PEER_OTHER);
				return NULL;
			}
		}
		if (owner == FREE && vacant == WAYS)
			vacant = way;
	}
	if (vacant < WAYS)
		return claim(seat_number(cookie, vacant), cookie, skb, peer, tag);
	BRANCH(SOCKETS_FULL);
	l = lost_updates();
	if (l)
		__sync_fetch_and_add(&l->sockets_full, 1);
	return NULL;
}

static __always_inline void write_through(struct __sk_buff *skb, __u32 segments, enum direction direction,
					  const struct peer *peer, __u32 tag)
{
	struct totals_key key = {};
	struct totals *t;

	BRANCH(WRITE_THROUGH);
	key.cgroup_id = bpf_skb_cgroup_id(skb);
	key.protocol = protocol_of(skb);
	key.family = family_of(skb);
	key.peer = peer->class;
	t = totals_of(&key);
	if (!t)
		return;
	if (direction == RECEIVE)
		add_receive(t, skb->len, segments);
	else
		add_transmit(t, skb->len, segments);
	if (tag)
		add_tagged(key.cgroup_id, tag, direction == RECEIVE ? skb->len : 0,
			   direction == TRANSMIT ? skb->len : 0);
}

/* All packets but those of a socket that sits at its home, and has the peer and the tag that it had. */
static __noinline int count_slowly(struct __sk_buff *skb, __u64 cookie, __u32 segments,
				   enum direction direction)
{
	__u32 tag = tag_of(skb);
	struct socket_counts *s;
	struct peer peer = {};

	if (settings.peers)
		meet_peer(skb, direction, &peer);
	/* without a cookie: not seen so far, these programs run for sockets only */
	s = cookie ? seat_of(cookie, skb, &peer, tag) : NULL;
	if (s)
		add_pending(s, skb, segments, direction);
	else
		write_through(skb, segments, direction, &peer, tag);
	return 0;
}

/*
 * The kernel runs this under rcu_read_lock(): between the look at the owner and the add the seat may be
 * retired, but not become another's.
 */
static __always_inline void count_packet(struct __sk_buff *skb, enum direction direction)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	__u32 home = seat_number(cookie, 0);
	struct socket_counts *s = seat_at(home);
	__u32 segments = wire_segments(skb);

	if (dormant())
		return;
	count_control(skb, segments, direction);
	if (cookie && s && is_seat_of(s, home, cookie, skb, direction)) {
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
