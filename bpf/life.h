/* SPDX-License-Identifier: GPL-2.0 */
/* A socket's life: the hooks at its beginning and its end, and the adoption of those older than we are. */
#include "drain.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include <linux/in.h>

/*
 * The end of TCP sockets where sl_released is not attached, always in state CLOSE by now; what still comes
 * (the reset of a dying socket) finds CLOSED. Where sl_released is, nothing depends on this: the kernel
 * leaves a tracing program out where it would nest on a CPU.
 */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(sl_tcp_destroyed, struct sock *sk)
{
	struct socket_counts *s;
	__u64 word = 0, before;

	/* a full barrier between the state, which is CLOSE, and the look-up: the other half of make_fast()'s
	 */
	before = __sync_lock_test_and_set(&word, 1);
	asm volatile("" ::"r"(before) : "memory");
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (s)
		end(s);
	return 0;
}

/* Runs for exactly those sockets for which cgroup/sock_release will run: all but the kernel's own. */
SEC("?cgroup/sock_create")
int sl_udp_created(struct bpf_sock *sk)
{
	struct socket_counts new = {.state = HOOKED, .protocol = UDP};

	if (sk->protocol == IPPROTO_UDP && sk->type == SOCK_DGRAM)
		bpf_sk_storage_get(&sockets, sk, &new, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}

/*
 * The end of UDP sockets. TCP still sends and receives after close(), and is written through from here on:
 * also where nothing has been counted yet, as for a connection that is accepted and closed at once.
 */
SEC("?cgroup/sock_release")
int sl_released(struct bpf_sock *sk)
{
	struct socket_counts new = {.state = CLOSED, .protocol = TCP};
	struct socket_counts *s = bpf_sk_storage_get(&sockets, sk, 0, 0);

	if (!s && is_tcp(sk)) {
		BRANCH(RELEASED_UNCOUNTED);
		s = bpf_sk_storage_get(&sockets, sk, &new, BPF_SK_STORAGE_GET_F_CREATE);
		if (!s) /* perhaps the hot path was faster */
			s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	}
	if (s)
		end(s);
	return 1;
}

/*
 * UDP sockets from before sl_udp_created. The iterator holds a reference to the file, so the socket has not
 * been released yet, and sl_released() will find the storage.
 */
SEC("?iter/task_file")
int sl_adopt(struct bpf_iter__task_file *ctx)
{
	struct socket_counts new = {.state = HOOKED, .protocol = UDP};
	struct file *file = ctx->file;
	struct socket_counts *s;
	struct socket *socket;
	struct sock *sk;
	__u16 family;

	if (!ctx->task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	family = sk->__sk_common.skc_family;
	if ((family != AF_INET && family != AF_INET6) || sk->sk_type != SOCK_DGRAM ||
	    sk->sk_protocol != IPPROTO_UDP || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock))
		return 0;
	BRANCH(ADOPTED);
	s = bpf_sk_storage_get(&sockets, sk, &new, BPF_SK_STORAGE_GET_F_CREATE);
	if (s) /* made by the hot path before we came */
		__sync_val_compare_and_swap(&s->state, WRITE_THROUGH, HOOKED);
	return 0;
}
