/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Whether anybody still reads what is counted. Programs stay attached without a daemon; after a while without
 * any they go dormant, but for those that note cgroups: what was counted may be a cgroup's that is named
 * later.
 */
#ifndef SOCKLEDGER_LEASE_H
#define SOCKLEDGER_LEASE_H

#include "array.h"
#include "kernel.h"
#include "settings.h"
#include <bpf/bpf_helpers.h>

struct lease {
	__u64 end; /* jiffies up to which is counted without another flush */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lease);
} lease SEC(".maps");

static __always_inline struct lease *the_lease(void)
{
	return only_entry(&lease);
}

static __always_inline bool dormant(void)
{
	struct lease *l;

	if (!settings.lease)
		return false;
	l = the_lease();
	return l && bpf_jiffies64() > l->end;
}

/* Returns whether it was over. */
static __always_inline bool renew_lease(void)
{
	struct lease *l = the_lease();
	__u64 now = bpf_jiffies64();
	bool over;

	if (!l || !settings.lease)
		return false;
	over = l->end && now > l->end;
	l->end = now + settings.lease;
	return over;
}

#endif
