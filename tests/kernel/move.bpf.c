// SPDX-License-Identifier: GPL-2.0
/* Sums in two layouts, to move between, and a program that adds to two rows. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define ROUNDS 1000000 /* of a run of sl_add */

struct old_key {
	__u64 cgroup_id;
	__u16 protocol;
	__u16 family;
	__u32 zone;
};

struct pair {
	__u64 count;
	__u64 sum;
};

struct old_sums {
	__u64 bytes;
	__u64 renamed_before;
	struct pair measured[2];
	__u64 dropped;
	__u64 packets;
};

/* Without zone and with a new member; the rest in another order, and one of another size. */
struct new_key {
	__u32 family;
	__u32 fresh;
	__u16 protocol;
	__u64 cgroup_id;
};

struct new_sums {
	__u64 packets;
	__u64 renamed_after;
	__u64 bytes;
	struct pair measured[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10000);
	__type(key, struct old_key);
	__type(value, struct old_sums);
} old SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1000);
	__type(key, struct new_key);
	__type(value, struct new_sums);
} new SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct new_sums);
} other SEC(".maps");

/* As large as a value may be. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__uint(value_size, 1024);
} wide SEC(".maps");

struct rows {
	struct old_key source;
	struct old_key target;
};

static long add_one(__u32 round, struct rows *rows)
{
	struct old_sums *source = bpf_map_lookup_elem(&old, &rows->source);
	struct old_sums *target = bpf_map_lookup_elem(&old, &rows->target);

	if (!source || !target)
		return 1;
	__sync_fetch_and_add(&source->bytes, round);
	__sync_fetch_and_add(&target->bytes, round);
	__sync_fetch_and_add(&source->packets, 1);
	__sync_fetch_and_add(&target->packets, 1);
	return 0;
}

/* Adds 0, 1, 2 ... ROUNDS - 1 to the bytes of both rows, and ROUNDS to their packets. */
SEC("syscall")
int sl_add(const struct rows *context)
{
	struct rows rows = *context;

	return bpf_loop(ROUNDS, add_one, &rows, 0);
}

char LICENSE[] SEC("license") = "GPL";
