/* SPDX-License-Identifier: GPL-2.0 */
/*
 * BRANCH(NAME) marks a branch of the exact scheme. It is nothing in the real object; the tests build one
 * with -DBRANCH_COUNTERS, to show that their traffic has been everywhere.
 */
#ifndef SOCKLEDGER_BRANCH_H
#define SOCKLEDGER_BRANCH_H

#ifdef BRANCH_COUNTERS

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum branch {
	BRANCH_FAST,
	BRANCH_FURTHER_ON,
	BRANCH_CLAIMED,
	BRANCH_CLAIM_LOST,
	BRANCH_LEFT,
	BRANCH_PEER_REFRESHED,
	BRANCH_PEER_OTHER,
	BRANCH_SOCKETS_FULL,
	BRANCH_WRITE_THROUGH,
	BRANCH_PENDING_FULL,
	BRANCH_TOTALS_FULL,
	BRANCH_UNTRUSTED_GSO,
	BRANCH_RETIRED,
	BRANCH_LATE,
	BRANCH_FREED,
	BRANCH_TCP_SOCKETS_FULL,
	BRANCH_TCP_REUSED,
	BRANCH_TCP_ADOPTED,
	BRANCH_TCP_HANDED_OVER,
	BRANCH_TCP_END_UNSEEN,
	BRANCHES,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BRANCHES);
	__type(key, __u32);
	__type(value, __u64);
} branches SEC(".maps");

static __always_inline void branch(enum branch name)
{
	__u32 key = name;
	__u64 *n = bpf_map_lookup_elem(&branches, &key);

	if (n)
		__sync_fetch_and_add(n, 1);
}

#define BRANCH(name) branch(BRANCH_##name)

#else

#define BRANCH(name) ((void)0)

#endif
#endif
