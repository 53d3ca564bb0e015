/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What flushes tell the other programs: which walk over the seats this is, and that somebody reads what is
 * counted. Programs stay attached without a daemon; after a while without any they go dormant, but for those
 * that note cgroups: what was counted may be a cgroup's that is named later.
 */
#ifndef SOCKLEDGER_FLUSHES_H
#define SOCKLEDGER_FLUSHES_H

#include "kernel.h"
#include "settings.h"
#include <bpf/bpf_helpers.h>

struct flushes {
	__u64 lease;  /* jiffies up to which is counted without another flush */
	__u64 lapses; /* how often a flush has found it over */
	__u64 walks;  /* over all seats */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flushes);
} flushes SEC(".maps");

/* Never NULL: the map is an array of one. */
static __always_inline struct flushes *the_flushes(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&flushes, &key);
}

static __always_inline bool dormant(void)
{
	const struct flushes *f;

	if (!settings.lease)
		return false;
	f = the_flushes();
	return f && bpf_jiffies64() > f->lease;
}

static __always_inline void renew_lease(struct flushes *f)
{
	__u64 now = bpf_jiffies64();

	if (!settings.lease)
		return;
	if (f->lease && now > f->lease)
		f->lapses++;
	f->lease = now + settings.lease;
}

#endif
