/* SPDX-License-Identifier: GPL-2.0 */
/* What user space alone writes, kept here so that it outlives the daemon as the counters do. */
#ifndef SOCKLEDGER_KEPT_H
#define SOCKLEDGER_KEPT_H

#include "ledger.h"

/* Hashes of the counters that scrapers have got, with those of their workloads, 0 if it is of none. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, __u64);
} shown SEC(".maps");

/* The largest differences that double entry has found. */
struct reconciliation {
	struct totals unattributed;
	struct totals overcounted;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reconciliation);
} reconciliation SEC(".maps");

#endif
