/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The hooks of TCP: what a connection tells of itself, and the flush that reads it meanwhile. None of them
 * changes a connection, but for two bits of what it tells to sockops programs.
 */
#include "hook.h"
#include "lease.h"
#include "tcp_sockets.h"
#include <bpf/bpf_tracing.h>

#define WANTED_FLAGS (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG)

/* One byte that all programs share, and children have from their listener. */
static __always_inline void want_callbacks(struct bpf_sock_ops *ctx)
{
	__u32 flags = ctx->bpf_sock_ops_cb_flags;

	if ((flags & WANTED_FLAGS) != WANTED_FLAGS)
		bpf_sock_ops_cb_flags_set(ctx, flags | WANTED_FLAGS);
}

static __noinline int count_timeout(const struct sock *sk)
{
	struct tcp_totals *t = tcp_totals_of(cgroup_of(sk));

	if (t)
		add(&t->retransmission_timeouts, 1);
	return 0;
}

/* It runs under the socket's lock. ctx->reply is other programs'. */
SEC("?sockops")
int sl_tcp_events(struct bpf_sock_ops *ctx)
{
	const struct sock *sk = ctx->sk ? (void *)bpf_skc_to_tcp_sock(ctx->sk) : NULL;

	if (!sk)
		return 1; /* a connection request */
	if (dormant() && !living(bpf_get_socket_cookie(ctx)))
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		want_callbacks(ctx);
		begin_connecting(bpf_get_socket_cookie(ctx), sk);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		want_callbacks(ctx);
		begin_connection(bpf_get_socket_cookie(ctx), sk, ROLE_ACTIVE);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		want_callbacks(ctx);
		begin_connection(bpf_get_socket_cookie(ctx), sk, ROLE_PASSIVE);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		want_callbacks(ctx);
		begin_listening(bpf_get_socket_cookie(ctx), sk);
		break;
	case BPF_SOCK_OPS_RTO_CB:
		count_timeout(sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != BPF_TCP_CLOSE)
			break;
		/* not args[0], which is reply, too: a program before may have written that */
		end(bpf_get_socket_cookie(ctx), sk, ctx->state);
		/* or it ends again by sl_tcp_states, where a program before has taken the flag */
		want_callbacks(ctx);
		break;
	}
	return 1;
}

/*
 * The same end, of a socket that does not tell it to sockops: older than these programs, or another program
 * has taken the flag. The kernel may leave this out where it interrupts itself: then the flush finds that the
 * socket is gone.
 */
HOOK(sl_tcp_states, "inet_sock_set_state")

SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(sl_tcp_states_now, const struct sock *sk, int before, int after)
{
	__u8 flags;

	if (after != BPF_TCP_CLOSE || READ_SOCK(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	flags = READ_TCP(sk, bpf_sock_ops_cb_flags);
	if ((flags & BPF_SOCK_OPS_STATE_CB_FLAG) || !is_ours(sk) || (dormant() && !living(cookie_at(sk))))
		return 0;
	end(cookie_at(sk), sk, before);
	return 0;
}

static long pull_one(struct bpf_map *map, const __u64 *cookie, struct tcp_socket *s, __u32 *sockets)
{
	(*sockets)++;
	pull(s);
	return 0;
}

/* Returns how many sockets there are. */
SEC("?syscall")
int sl_tcp_flush(void *ctx)
{
	__u32 sockets = 0;

	bpf_for_each_map_elem(&tcp_sockets, pull_one, &sockets, 0);
	return sockets;
}
