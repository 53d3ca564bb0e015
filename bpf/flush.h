/* SPDX-License-Identifier: GPL-2.0 */
/* The flush: user space has the table of sockets walked, inside the kernel. */
#include "drain.h"
#include "flushes.h"
#include "lease.h"
#include "udp.h"

static __always_inline void pull_drops_at(struct socket_counts *s, __u64 owner)
{
	const struct sock *sk = (const void *)READ_ONCE(s->address);

	/* a full barrier: its cgroup is read after its owner was */
	if (sk && __sync_fetch_and_or(&s->owner, 0) == owner)
		pull_drops(owner, sk, s->cgroup_id, false);
}

static long flush_one(struct bpf_map *map, const __u32 *index, struct socket_counts *s, __u32 *taken)
{
	__u64 owner = READ_ONCE(s->owner);

	if (owner == FREE || owner == CLAIMING)
		return 0;
	(*taken)++;
	if (owner == LEFT) { /* a packet may still have found it before */
		drain(s);
		WRITE_ONCE(s->owner, RETIRED);
		return 0;
	}
	if (owner == RETIRED) {
		if (drain(s))
			BRANCH(LATE);
		BRANCH(FREED);
		/* a full barrier: the drain has read the key before another owner writes his */
		__sync_lock_test_and_set(&s->owner, FREE);
		return 0;
	}
	/* when it falls silent, too: what has come may be dropped only now, as it is read */
	if (settings.udp && s->protocol == UDP)
		pull_drops_at(s, owner);
	if (!drain(s)) {
		BRANCH(RETIRED);
		WRITE_ONCE(s->owner, RETIRED);
	}
	return 0;
}

/*
 * Drains every seat, and takes those back whose sockets have been idle since the last walk, ended or not;
 * returns how many were taken. A packet that found its seat just before it was retired may still add to it,
 * so it is free only with the next walk. Between two walks lies a grace period for the packets; walks
 * themselves are not in one, so only one runs at a time.
 */
SEC("syscall")
int sl_flush(void *ctx)
{
	struct flushes *f = the_flushes();
	__u32 taken = 0;

	bpf_for_each_map_elem(&sockets, flush_one, &taken, 0);
	if (f) {
		f->walks++;
		f->lapses += renew_lease();
	}
	return taken;
}
