// SPDX-License-Identifier: GPL-2.0
/*
 * Moves the sums of one entry into another, in the same map or in one of another layout, while programs add
 * to both. User space says which, and never holds a sum: killed between any two calls it has lost nothing,
 * and doing it again is harmless. An object of its own, loaded for each pair of maps.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define WORDS	  128 /* of a value, at most */
#define KEY_WORDS 5
#define DROPPED	  255

/* kernel/move.py knows these two, too. */
struct keys {
	__u64 from[KEY_WORDS];
	__u64 to[KEY_WORDS];
};

enum moved { NOTHING, SOMETHING, NO_ENTRY };

/* Which word of the target takes each word of the source; set before the load, so the verifier knows it. */
const volatile struct plan {
	__u8 target[WORDS];
} plan SEC(".rodata.plan") = {};

/* User space puts existing maps in the place of these two, of any key, value and size. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, KEY_WORDS * sizeof(__u64));
	__uint(value_size, WORDS * sizeof(__u64));
} source SEC(".maps"), target SEC(".maps");

SEC("syscall")
int sl_move(const struct keys *context)
{
	struct keys keys = *context; /* no look-up takes its key from the context */
	__u64 *from = bpf_map_lookup_elem(&source, &keys.from);
	__u64 *to = bpf_map_lookup_elem(&target, &keys.to);
	__u64 moved = 0;

	if (!from || !to)
		return NO_ENTRY;
	for (int word = 0; word < WORDS; word++) {
		__u8 wanted = plan.target[word];
		__u64 taken;

		if (wanted == DROPPED)
			continue;
		/* no branch on what is taken: the verifier would follow each in turn */
		taken = __sync_lock_test_and_set(&from[word], 0);
		__sync_fetch_and_add(&to[wanted], taken);
		moved |= taken;
	}
	return moved ? SOMETHING : NOTHING;
}

char LICENSE[] SEC("license") = "GPL";
