/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What is read of any socket by its address. A flush is no hook of the socket: it may be gone by then, and
 * the memory another's. So all is read in a way that a fault does no harm, and counts only if the socket's
 * cookie stands there before and after.
 */
#ifndef SOCKLEDGER_SOCKET_H
#define SOCKLEDGER_SOCKET_H

#include "kernel.h"
#include "settings.h"
#include <bpf/bpf_core_read.h>

static __always_inline __u64 cookie_at(const struct sock *sk)
{
	__u64 cookie = 0;

	bpf_core_read(&cookie, sizeof(cookie), &sk->__sk_common.skc_cookie.counter);
	return cookie;
}

static __always_inline __u64 cgroup_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
}

#define MOST_LEVELS 64

static __noinline __u64 ancestor(const struct cgroup *cgroup, __u32 level)
{
	const struct cgroup___before_6_1 *old = (const void *)cgroup;
	const struct cgroup *at;
	__u64 id = 0;

	if (bpf_core_field_exists(cgroup->ancestors)) {
		bpf_core_read(&at, sizeof(at), &cgroup->ancestors[0] + level);
		return BPF_CORE_READ(at, kn, id);
	}
	bpf_core_read(&id, sizeof(id), &old->ancestor_ids[0] + level);
	return id;
}

/* Whether a socket is in the cgroup in which we count: only tracing programs see others. */
static __noinline bool is_ours(const struct sock *sk)
{
	const struct cgroup *cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	__u32 levels = BPF_CORE_READ(cgroup, level) + 1;

	for (__u32 level = 0; level < MOST_LEVELS && level < levels; level++)
		if (ancestor(cgroup, level) == settings.root)
			return true;
	return false;
}

/*
 * UDP and raw sockets have counters of their own since 6.18. Not inlined: out of a caller's loop the compiler
 * would move what may only run where the field exists.
 */
static __noinline __u32 drops_of(const struct sock *sk)
{
	const struct numa_drop_counters *drops = NULL;

	if (bpf_core_field_exists(sk->sk_drop_counters))
		drops = BPF_CORE_READ(sk, sk_drop_counters);
	if (drops)
		return BPF_CORE_READ(drops, drops0.counter) + BPF_CORE_READ(drops, drops1.counter);
	return BPF_CORE_READ(sk, sk_drops.counter);
}

#endif
