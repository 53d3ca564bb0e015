/* SPDX-License-Identifier: GPL-2.0 */
/*
 * When drops of datagrams are read: a tracepoint tells of most, so that none of these is missing whatever
 * becomes of the socket; of others nothing does, so the flush reads the sockets that had traffic, and their
 * release what has come since.
 */
#include "flushes.h"
#include "hook.h"
#include "lease.h"
#include "seats.h"
#include "udp.h"
#include <bpf/bpf_tracing.h>

/* Whether a socket has a seat; where it *leaves*, no flush finds its memory there any more. */
static __noinline bool seated(__u64 cookie, bool leaves)
{
	bool found = false;

	for (int way = 0; way < WAYS; way++) {
		struct socket_counts *s = seat(cookie, way);

		if (!s || READ_ONCE(s->owner) != cookie)
			continue;
		found = true;
		if (leaves)
			WRITE_ONCE(s->address, 0);
	}
	return found;
}

HOOK(sl_udp_drops, "udp_fail_queue_rcv_skb")

SEC("?tp_btf/udp_fail_queue_rcv_skb")
int BPF_PROG(sl_udp_drops_now, int rc, const struct sock *sk)
{
	__u64 cookie;

	if (dormant() || !is_ours(sk))
		return 0;
	cookie = bpf_get_socket_cookie((void *)sk);
	/* of one that nobody has met all that is known is this drop */
	if (known_sockets() == KNOWN_SEATED && !seated(cookie, false))
		udp_socket_of(cookie, sk, cgroup_of(sk), drops_of(sk) - 1);
	pull_drops(cookie, sk, cgroup_of(sk), true);
	return 0;
}

/* A process has closed the socket. From here on no flush reads its memory. */
SEC("?cgroup/sock_release")
int sl_udp_released(struct bpf_sock *ctx)
{
	const struct sock *sk = (const void *)ctx;
	struct udp_socket *drops;
	__u64 cookie;
	bool met;

	if (ctx->protocol != IPPROTO_UDP || ctx->type == SOCK_RAW)
		return 1;
	cookie = bpf_get_socket_cookie(ctx);
	met = seated(cookie, true);
	if (!drops_of(sk))
		return 1;
	met = met || bpf_map_lookup_elem(&udp_sockets, &cookie);
	if (met || (known_sockets() == KNOWN_ALL && !dormant()))
		pull_drops(cookie, sk, cgroup_of(sk), true);
	drops = bpf_map_lookup_elem(&udp_sockets, &cookie);
	if (drops)
		WRITE_ONCE(drops->address, 0);
	return 1;
}

struct udp_walk {
	__u32 seats; /* walks over all seats before this */
	__u32 left;
};

/* The next walk over the seats reads a dead socket's, the one after retires it. */
static long pull_drops_of(struct bpf_map *map, const __u64 *cookie, struct udp_socket *s,
			  struct udp_walk *walk)
{
	const struct sock *sk = (const void *)READ_ONCE(s->address);
	__u64 key = *cookie;

	if (!key)
		return 0; /* no socket's */
	if (sk && is_alive(key, sk))
		pull_drops(key, sk, s->cgroup_id, false);
	else if (!s->dead)
		s->dead = walk->seats + 1;
	else if (walk->seats + 1 - s->dead >= 2 && !bpf_map_delete_elem(&udp_sockets, &key))
		return 0;
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
