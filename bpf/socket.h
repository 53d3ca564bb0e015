/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What is read of any socket by its address. A flush is no hook of the socket: it may be gone by then, and
 * the memory another's. So all is read in a way that a fault does no harm, and counts only if the socket's
 * cookie stands there before and after; of a socket whose end nobody tells, if more than that does.
 */
#ifndef SOCKLEDGER_SOCKET_H
#define SOCKLEDGER_SOCKET_H

#include "kernel.h"
#include "settings.h"
#include <bpf/bpf_core_read.h>

/* Since 6.2: with it the verifier allows loads from an address; one that faults yields 0. */
void *bpf_rdonly_cast(const void *address, __u32 type_id) __ksym __weak;

/*
 * A member of one of the kernel's structs, in one load where that is allowed, else by a call. For the
 * compiler the cast is a call that may change memory, so none is moved or spared; what the CPU may move is
 * the reader's to see to.
 */
#define READ_KERNEL(type, address, member)                                                                   \
	(bpf_rdonly_cast ? ((const type *)bpf_rdonly_cast(address, bpf_core_type_id_kernel(type)))->member   \
			 : BPF_CORE_READ((const type *)(address), member))
#define READ_SOCK(sk, member) READ_KERNEL(struct sock, sk, member)
#define READ_TCP(sk, member)  READ_KERNEL(struct tcp_sock, sk, member)

static __always_inline __u64 cookie_at(const struct sock *sk)
{
	return READ_SOCK(sk, __sk_common.skc_cookie.counter);
}

static __always_inline __u64 id_of(const struct cgroup *cgroup)
{
	const struct kernfs_node *node = READ_KERNEL(struct cgroup, cgroup, kn);

	return READ_KERNEL(struct kernfs_node, node, id);
}

static __always_inline __u64 cgroup_of(const struct sock *sk)
{
	return id_of(READ_SOCK(sk, sk_cgrp_data.cgroup));
}

static __always_inline bool is_internet(const struct sock *sk)
{
	__u16 family = READ_SOCK(sk, __sk_common.skc_family);

	return family == AF_INET || family == AF_INET6;
}

#define MOST_LEVELS 64

static __noinline __u64 ancestor(const struct cgroup *cgroup, __u32 level)
{
	const struct cgroup *at;

	bpf_core_read(&at, sizeof(at), &cgroup->ancestors[0] + level);
	return id_of(at);
}

/* The level of the cgroup in which we count, if it is *cgroup* or above it, else negative. */
static __noinline int level_above(const struct cgroup *cgroup)
{
	__u32 levels = READ_KERNEL(struct cgroup, cgroup, level) + 1;

	for (__u32 level = 0; level < MOST_LEVELS && level < levels; level++)
		if (ancestor(cgroup, level) == settings.root)
			return level;
	return -1;
}

/* Whether a socket is in the cgroup in which we count: only tracing programs see others. */
static __noinline bool is_ours(const struct sock *sk)
{
	return level_above(READ_SOCK(sk, sk_cgrp_data.cgroup)) >= 0;
}

/*
 * UDP and raw sockets have counters of their own since 6.18. Not inlined: out of a caller's loop the compiler
 * would move what may only run where the field exists.
 */
static __noinline __u32 drops_of(const struct sock *sk)
{
	const struct numa_drop_counters *drops = NULL;

	if (bpf_core_field_exists(sk->sk_drop_counters))
		drops = READ_SOCK(sk, sk_drop_counters);
	if (drops)
		return READ_KERNEL(struct numa_drop_counters, drops, drops0.counter) +
		       READ_KERNEL(struct numa_drop_counters, drops, drops1.counter);
	return READ_SOCK(sk, sk_drops.counter);
}

#define MOST_OF_A_SOCKET 4096 /* bytes */

/* Whether those counters are where they should be, in the socket. */
static __noinline bool has_own_counters(const struct sock *sk)
{
	__u64 at = 0; /* for the verifier no pointer: two cannot be compared */

	if (!bpf_core_field_exists(sk->sk_drop_counters))
		return true;
	bpf_core_read(&at, sizeof(at), &sk->sk_drop_counters);
	return at - (__u64)sk < MOST_OF_A_SOCKET;
}

#endif
