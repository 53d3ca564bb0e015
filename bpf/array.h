/* SPDX-License-Identifier: GPL-2.0 */
/* Arrays of one entry, in which programs and the daemon share what there is once. */
#ifndef SOCKLEDGER_ARRAY_H
#define SOCKLEDGER_ARRAY_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* Never NULL, but the verifier wants to see that tested. */
static __always_inline void *only_entry(void *map)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(map, &key);
}

#endif
