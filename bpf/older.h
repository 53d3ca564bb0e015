/* SPDX-License-Identifier: GPL-2.0 */
/* Sockets that are older than these programs, by a walk over all open files: run once. */
#include "tcp_sockets.h"
#include "udp.h"

SEC("?iter/task_file")
int sl_older(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;
	__u16 protocol;
	__u64 cookie;
	int error;

	if (!file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_internet(sk) || READ_SOCK(sk, sk_type) == SOCK_RAW || !is_ours(sk))
		return 0;
	protocol = READ_SOCK(sk, sk_protocol);
	cookie = bpf_get_socket_cookie(sk);
	if (settings.udp && protocol == IPPROTO_UDP) {
		meet_udp(cookie, sk);
		pull_drops(cookie, sk, cgroup_of(sk), true);
	}
	/* of MPTCP the network sees the subflows, which have no files: they are found at their first packets
	 */
	if (settings.tcp && protocol == IPPROTO_TCP) {
		error = adopt(cookie, sk);
		if (error) /* once for each of its descriptors, and not again at its packets */
			find_no_room(error);
	}
	return 0;
}
