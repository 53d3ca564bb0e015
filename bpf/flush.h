/* SPDX-License-Identifier: GPL-2.0 */
/* The flush: a walk over all sockets with storage that drains them inside the kernel. */
#include "drain.h"

/* Prints nothing: a walk that prints is cut each 32 KiB, and then misses and repeats sockets. */
SEC("iter/bpf_sk_storage_map")
int sl_flush(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct socket_counts *s = ctx->value;
	__u32 key = 0;
	__u64 *n = bpf_map_lookup_elem(&visited, &key);

	if (!s)
		return 0;
	if (n)
		(*n)++; /* only one flush runs at a time */
	drain(s);
	return 0;
}
