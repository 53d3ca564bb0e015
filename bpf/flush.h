/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The table of sockets as user space has it walked, inside the kernel: flushed, and seats taken back. Only
 * one walk runs at a time.
 */
#include "drain.h"

static long flush_one(struct bpf_map *map, const __u32 *index, struct socket_counts *s, __u32 *taken)
{
	if (READ_ONCE(s->owner) == FREE)
		return 0;
	s->idle = !drain(s);
	(*taken)++;
	return 0;
}

/* Drains every seat; returns how many are taken. */
SEC("syscall")
int sl_flush(void *ctx)
{
	__u32 taken = 0;

	bpf_for_each_map_elem(&sockets, flush_one, &taken, 0);
	return taken;
}

static long recycle_one(struct bpf_map *map, const __u32 *index, struct socket_counts *s, void *unused)
{
	__u64 owner = READ_ONCE(s->owner);

	if (owner == RETIRED) {
		if (drain(s))
			BRANCH(LATE);
		BRANCH(FREED);
		/* a full barrier: the drain has read the key before another owner writes his */
		owner = __sync_lock_test_and_set(&s->owner, FREE);
		asm volatile("" ::"r"(owner) : "memory");
	} else if (owner != FREE && owner != CLAIMING && s->idle) {
		BRANCH(RETIRED);
		WRITE_ONCE(s->owner, RETIRED);
	}
	return 0;
}

/*
 * Takes seats back from sockets that are idle, ended or not. A packet that found its seat just before may
 * still add to it, so a seat is free only with the next walk: a grace period after this one.
 */
SEC("syscall")
int sl_recycle(void *ctx)
{
	bpf_for_each_map_elem(&sockets, recycle_one, NULL, 0);
	return 0;
}
