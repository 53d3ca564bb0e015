/* SPDX-License-Identifier: GPL-2.0 */
/* Where a socket sits in the table. */
#ifndef SOCKLEDGER_SEATS_H
#define SOCKLEDGER_SEATS_H

#include "ledger.h"

/* 2^64 by the golden ratio: its multiples are spread evenly */
#define GOLDEN_RATIO 0x9E3779B97F4A7C15

static __always_inline __u32 seats(void)
{
	struct bpf_map *map = (struct bpf_map *)&sockets;

	asm volatile("" : "+r"(map)); /* or the compiler adds the offset first, and the verifier refuses */
	return map->max_entries;
}

/*
 * One of the seats that a socket may have, way 0 being its home. Sockets that were made one after another, so
 * with cookies that follow each other, sit side by side, on a page or two: a packet of one in a thousand
 * sockets would miss the TLB otherwise. Two rounds of multiplying make the rest as good as random.
 */
static __always_inline __u32 seat_number(__u64 cookie, int way)
{
	__u64 hash = (cookie / NEIGHBOURS * WAYS + way) * GOLDEN_RATIO;
	__u32 index, most = seats();

	hash = (hash ^ hash >> 32) * GOLDEN_RATIO;
	index = ((hash >> 32) * most >> 32) + cookie % NEIGHBOURS;
	if (index >= most)
		index %= most;
	return index;
}

static __always_inline struct socket_counts *seat_at(__u32 index)
{
	return bpf_map_lookup_elem(&sockets, &index);
}

static __always_inline struct socket_counts *seat(__u64 cookie, int way)
{
	return seat_at(seat_number(cookie, way));
}

#endif
