/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Datagrams that a UDP socket received and dropped. Each socket counts its own, mostly none: only those that
 * have any are kept here, with a cursor of what has been added to the totals.
 */
#ifndef SOCKLEDGER_UDP_H
#define SOCKLEDGER_UDP_H

#include "totals.h"
#include "settings.h"
#include "socket.h"

struct udp_socket {
	__u64 address; /* of struct sock; 0: it has been released */
	__u64 cgroup_id;
	__u32 drops; /* cursor */
	__u32 dead;  /* one more than the walks over all seats before it was found so; 0: it lives */
};

struct udp_totals {
	__u64 receive_drops;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64); /* cookie */
	__type(value, struct udp_socket);
} udp_sockets SEC(".maps");

/* Key 0, made by user space, takes what finds it full. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct cgroup_key);
	__type(value, struct udp_totals);
} udp_totals SEC(".maps");

static __always_inline struct udp_socket *udp_socket_of(__u64 cookie, const struct sock *sk, __u64 cgroup_id,
							__u32 drops)
{
	struct udp_socket *s = bpf_map_lookup_elem(&udp_sockets, &cookie);
	struct udp_socket new = {.address = (__u64)sk, .cgroup_id = cgroup_id, .drops = drops};
	struct lost_updates *l;

	if (s)
		return s;
	bpf_map_update_elem(&udp_sockets, &cookie, &new, BPF_NOEXIST);
	s = bpf_map_lookup_elem(&udp_sockets, &cookie);
	l = lost_updates();
	if (!s && l)
		__sync_fetch_and_add(&l->udp_sockets_full, 1);
	return s;
}

/*
 * What a socket dropped before it was counted is not ours, so user space has those looked for that are there
 * already. How much is known of sockets without an entry since then, the entry of no socket says, in place
 * of its cursor.
 */
enum known {
	KNOWN_NONE,   /* any may have dropped some before */
	KNOWN_SEATED, /* those that have a seat have not */
	KNOWN_ALL,    /* nor has any but the kernel's own, which have no files */
};

static __always_inline enum known known_sockets(void)
{
	__u64 nobody = 0;
	const struct udp_socket *s = bpf_map_lookup_elem(&udp_sockets, &nobody);

	return s ? s->drops : KNOWN_NONE;
}

/* Of these there is no release, either. */
static __always_inline bool is_the_kernels(const struct sock *sk)
{
	return BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock);
}

/* As it finds a seat: one that has an entry is known. */
static __noinline int meet_udp(__u64 cookie, const struct sock *sk)
{
	__u32 drops = drops_of(sk);

	if (drops && (known_sockets() != KNOWN_ALL || is_the_kernels(sk)))
		udp_socket_of(cookie, sk, cgroup_of(sk), drops);
	return 0;
}

#define MOST_REFERENCES 65536 /* far more than lookups and timers hold, far less than a pointer's half */

/*
 * Whether this is memory of a socket that has not ended. None is read on purpose once its release was seen;
 * the kernel's own sockets have none, and a datagram that comes just then may give a seat or an entry to one
 * that had. What is free may be another's already, written in parts, the cookie not among them: so all is
 * looked at that a living one has.
 */
static __noinline bool is_alive(__u64 cookie, const struct sock *sk)
{
	__u32 references = READ_SOCK(sk, __sk_common.skc_refcnt.refs.counter);

	return references > 0 && references < MOST_REFERENCES && READ_SOCK(sk, sk_protocol) == IPPROTO_UDP &&
	       is_internet(sk) && has_own_counters(sk) && cookie_at(sk) == cookie;
}

/* *held*: by who calls, so that it is the socket's memory, though it may have ended. */
static __noinline int pull_drops(__u64 cookie, const struct sock *sk, __u64 cgroup_id, bool held)
{
	struct cgroup_key key = {}, other = {};
	struct udp_totals none = {}, *t;
	struct udp_socket *s;

	if (!drops_of(sk) || (!held && !is_alive(cookie, sk)))
		return 0;
	s = udp_socket_of(cookie, sk, cgroup_id, 0);
	if (!s)
		return 0;
	if (known_sockets() == KNOWN_NONE) {
		WRITE_ONCE(s->drops, drops_of(sk));
		return 0;
	}
	key.id = s->cgroup_id;
	t = sums_of(&udp_totals, &key, &none, &other);
	for (int tries = 0; tries < 8 && t; tries++) {
		__u32 now = drops_of(sk);
		/* a full barrier: who is alive after it was so when its drops were read */
		__u32 before = __sync_fetch_and_or(&s->drops, 0);
		__u32 dropped = now - before;

		if ((__s32)dropped <= 0 || (!held && !is_alive(cookie, sk)))
			return 0;
		if (__sync_val_compare_and_swap(&s->drops, before, now) == before) {
			add(&t->receive_drops, dropped);
			return 0;
		}
	}
	return 0;
}

#endif
