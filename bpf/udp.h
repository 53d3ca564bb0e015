/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Datagrams that a UDP socket received and dropped. Each socket counts its own, mostly none: only those that
 * have any are kept here, with a cursor of what has been added to the totals. The flush reads the sockets
 * that had traffic, a tracepoint those that have just dropped and may be closed before the next flush.
 */
#ifndef SOCKLEDGER_UDP_H
#define SOCKLEDGER_UDP_H

#include "drain.h"
#include "flushes.h"
#include "hook.h"
#include "settings.h"
#include "socket.h"
#include <bpf/bpf_tracing.h>

struct udp_socket {
	__u64 address; /* of struct sock */
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

/* When its packets begin to be counted: what it dropped before is not ours. */
static __noinline int begin_udp(__u64 cookie, const struct sock *sk)
{
	__u32 drops = drops_of(sk);

	if (drops)
		udp_socket_of(cookie, sk, cgroup_of(sk), drops);
	return 0;
}

/* Whether this is memory of a UDP socket that has not ended: what is free may be anything. */
static __always_inline bool is_alive(const struct sock *sk)
{
	return READ_SOCK(sk, __sk_common.skc_refcnt.refs.counter) > 0 &&
	       READ_SOCK(sk, sk_protocol) == IPPROTO_UDP && is_internet(sk);
}

/* So many may have been dropped only after the flush that counted them, as where they waited to be read. */
#define LATE 65536

/*
 * Memory that is free keeps what a socket had until it is another's, but not all of it: its cgroup is given
 * by who knows it, and so is that *most* datagrams at most have come since the last flush.
 */
static __noinline int pull_drops(__u64 cookie, const struct sock *sk, __u64 cgroup_id, __u32 most)
{
	struct cgroup_key key = {}, other = {};
	struct udp_totals none = {}, *t;
	struct udp_socket *s;

	if (!drops_of(sk) || cookie_at(sk) != cookie)
		return 0;
	s = udp_socket_of(cookie, sk, cgroup_id, 0);
	if (!s)
		return 0;
	key.id = s->cgroup_id;
	t = sums_of(&udp_totals, &key, &none, &other);
	for (int tries = 0; tries < 8 && t; tries++) {
		__u32 before = READ_ONCE(s->drops), now = drops_of(sk), dropped = now - before;

		if (!is_alive(sk) && dropped > most + LATE)
			return 0;
		/* the cookie is read last: then the rest was this socket's */
		if ((__s32)dropped <= 0 || cookie_at(sk) != cookie)
			return 0;
		if (__sync_val_compare_and_swap(&s->drops, before, now) == before) {
			add(&t->receive_drops, dropped);
			return 0;
		}
	}
	return 0;
}

HOOK(sl_udp_drops, "udp_fail_queue_rcv_skb")

SEC("?tp_btf/udp_fail_queue_rcv_skb")
int BPF_PROG(sl_udp_drops_now, int rc, const struct sock *sk)
{
	if (!dormant() && is_ours(sk))
		pull_drops(bpf_get_socket_cookie((void *)sk), sk, cgroup_of(sk), 0);
	return 0;
}

static __always_inline bool is_dead(__u64 cookie, const struct sock *sk)
{
	return !is_alive(sk) || cookie_at(sk) != cookie;
}

struct udp_walk {
	__u32 seats; /* walks over all seats before this */
	__u32 left;
};

/* The next walk over the seats reads a dead socket's, the one after retires it. */
static long pull_drops_of(struct bpf_map *map, const __u64 *cookie, struct udp_socket *s,
			  struct udp_walk *walk)
{
	const struct sock *sk = (const void *)s->address;
	__u64 key = *cookie;

	pull_drops(key, sk, s->cgroup_id, 0);
	if (is_dead(key, sk)) {
		if (!s->dead)
			s->dead = walk->seats + 1;
		else if (walk->seats + 1 - s->dead >= 2 && !bpf_map_delete_elem(&udp_sockets, &key))
			return 0;
	}
	walk->left++;
	return 0;
}

/* All that ever dropped, and let go of those that are gone; returns how many are left. */
SEC("?syscall")
int sl_udp_flush(void *ctx)
{
	const struct flushes *f = the_flushes();
	struct udp_walk walk = {.seats = f ? f->walks : 0};

	bpf_for_each_map_elem(&udp_sockets, pull_drops_of, &walk, 0);
	return walk.left;
}

#endif
