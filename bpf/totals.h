/* SPDX-License-Identifier: GPL-2.0 */
/* Totals as programs find, make and add to them, and what becomes of updates for which there is no room. */
#ifndef SOCKLEDGER_TOTALS_H
#define SOCKLEDGER_TOTALS_H

#include "array.h"
#include "branch.h"
#include "ledger.h"
#include <asm/errno.h>

static __always_inline struct lost_updates *lost_updates(void)
{
	return only_entry(&lost);
}

static __always_inline void add(__u64 *total, __u64 n)
{
	if (n)
		__sync_fetch_and_add(total, n);
}

/* Global, so that the verifier follows its loop once, and not on each way here. */
__noinline int is_closing(__u64 cgroup_id)
{
	const struct closing *c = only_entry(&closing);

	for (int i = 0; i < CLOSING && c; i++) {
		__u64 id = READ_ONCE(c->cgroups[i]);

		if (!id)
			break;
		if (id == cgroup_id)
			return 1;
	}
	return 0;
}

/*
 * The value of *key*, which begins with a cgroup's id, in *map*; made of *none* if need be. NULL where the
 * map is full, or busy, or the cgroup's rows are being deleted.
 */
static __always_inline void *find_or_make(void *map, const void *key, const void *none)
{
	struct lost_updates *l;
	void *found;
	int error; /* not long: before 6.4 the upper half is not set */

	if (is_closing(*(const __u64 *)key))
		return NULL;
	found = bpf_map_lookup_elem(map, key);
	if (found)
		return found;
	/* -EEXIST: another CPU was first, and the look-up finds its entry */
	error = bpf_map_update_elem(map, key, none, BPF_NOEXIST);
	found = bpf_map_lookup_elem(map, key);
	if (found)
		return found;
	BRANCH(TOTALS_FULL);
	l = lost_updates();
	if (l)
		__sync_fetch_and_add(error == -E2BIG ? &l->totals_full : &l->totals_busy, 1);
	return NULL;
}

/* The totals of *key*, made if need be; where there are none, those of its protocol and family. */
static __always_inline struct totals *totals_of(const struct totals_key *key)
{
	struct totals none = {}, *t = find_or_make(&totals, key, &none);
	__u32 i = key->protocol * FAMILIES + key->family;

	return t ? t : bpf_map_lookup_elem(&overflow, &i);
}

/* The same of a cgroup in other maps, in which key 0, made by user space, takes what finds none. */
static __always_inline void *sums_of(void *map, const void *key, const void *none, const void *other)
{
	void *found = find_or_make(map, key, none);

	return found ? found : bpf_map_lookup_elem(map, other);
}

/*
 * The first add's result is used, so it is a full barrier: who sees these in the totals sees the packet in
 * control too, also where the totals are all that it is added to.
 */
static __always_inline void add_receive(struct totals *t, __u64 bytes, __u64 packets)
{
	__u64 before = __sync_fetch_and_add(&t->receive_bytes, bytes);

	asm volatile("" ::"r"(before) : "memory");
	__sync_fetch_and_add(&t->receive_packets, packets);
}

static __always_inline void add_transmit(struct totals *t, __u64 bytes, __u64 packets)
{
	__u64 before = __sync_fetch_and_add(&t->transmit_bytes, bytes);

	asm volatile("" ::"r"(before) : "memory");
	__sync_fetch_and_add(&t->transmit_packets, packets);
}

#endif
