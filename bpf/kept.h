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

/* Sums of cgroups that are gone are kept by what they are shown as. */
struct label_set_key {
	__u64 id; /* never a cgroup's: its first bit is set */
};

/* A workload's values, with NULs between them. */
#define LABELS_BYTES (PATH_BYTES + 16)

struct label_set {
	__u64 seen; /* when it last had a cgroup, or up to an hour before; 0: it has to end */
	__u64 left; /* when one left it that lives on under another name; 0: all have seen that */
	char labels[LABELS_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384); /* set from limits.label_sets */
	__type(key, struct label_set_key);
	__type(value, struct label_set);
} label_sets SEC(".maps");

/* What a cgroup is shown as: named otherwise, it leaves its counters there. */
struct cgroup_labels {
	char labels[LABELS_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct cgroup_key);
	__type(value, struct cgroup_labels);
} cgroup_labels SEC(".maps");

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
