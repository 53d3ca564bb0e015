/* SPDX-License-Identifier: GPL-2.0 */
/* What flushes tell one another, and the daemon. */
#ifndef SOCKLEDGER_FLUSHES_H
#define SOCKLEDGER_FLUSHES_H

#include "array.h"
#include "kernel.h"
#include <bpf/bpf_helpers.h>

struct flushes {
	__u64 walks;  /* over all seats */
	__u64 lapses; /* how often the lease was over by then */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flushes);
} flushes SEC(".maps");

static __always_inline struct flushes *the_flushes(void)
{
	return only_entry(&flushes);
}

#endif
