/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Names of cgroups, noted as they are made, so that those are named that are gone before anybody looks; and
 * their ends. Both tracepoints are those of all hierarchies, and cgroup v1's have the same ids.
 */
#include "totals.h"
#include "hook.h"
#include "socket.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/*
 * With what the map adds it takes 512 bytes. Times are of CLOCK_BOOTTIME, in nanoseconds; 0: not yet. From
 * its removal to its release a cgroup may take long: it lives on for its sockets, and for pages in memory.
 */
struct cgroup_name {
	__u64 removed;	/* 2^64 - 1, by user space: its sums are not kept, and it is not shown any more */
	__u64 released; /* nothing counts for it any more: we have seen it; nobody else says so */
	__u64 level; /* so many components that the path begins with are above the cgroup in which we count */
	char path[PATH_BYTES]; /* empty: nobody knows it */
};

/* Those below the cgroup in which we count. User space deletes them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct cgroup_key);
	__type(value, struct cgroup_name);
} cgroups SEC(".maps");

/* The level of the cgroup in which we count, if *cgroup* is that or below it, else negative. */
static __noinline int level_of_root(const struct cgroup *cgroup)
{
	const struct cgroup_root *root = READ_KERNEL(struct cgroup, cgroup, root);

	/* v2's is the first that the kernel makes */
	if (READ_KERNEL(struct cgroup_root, root, hierarchy_id))
		return -1;
	return level_above(cgroup);
}

/*
 * Not 0 if there was no room, or the path is too long: it is never cut. The stack has room for this and its
 * caller.
 */
static __noinline int note(const struct cgroup *cgroup, const char *path, __u32 level, __u64 removed,
			   __u64 released)
{
	struct cgroup_key key = {.id = id_of(cgroup)};
	struct cgroup_name name = {.removed = removed, .released = released, .level = level};
	int error; /* not long: before 6.4 the upper half is not set */

	if (bpf_probe_read_kernel_str(name.path, sizeof(name.path), path) >= (int)sizeof(name.path))
		return 1;
	error = bpf_map_update_elem(&cgroups, &key, &name, BPF_NOEXIST);
	/* user space looks around at its start */
	return error == -EEXIST ? 0 : error;
}

HOOK(sl_cgroup_mkdir, "cgroup_mkdir")

SEC("?tp_btf/cgroup_mkdir")
int BPF_PROG(sl_cgroup_mkdir_now, const struct cgroup *cgroup, const char *path)
{
	int level = level_of_root(cgroup);
	struct lost_updates *l;

	if (level >= 0 && note(cgroup, path, level, 0, 0)) {
		l = lost_updates();
		if (l)
			__sync_fetch_and_add(&l->name_full, 1);
	}
	return 0;
}

/* One that is not known yet was not there when user space looked around, or there was no room then. */
static __always_inline void note_end(const struct cgroup *cgroup, const char *path, bool released)
{
	struct cgroup_key key = {.id = id_of(cgroup)};
	__u64 now = bpf_ktime_get_boot_ns();
	int level = level_of_root(cgroup);
	struct cgroup_name *name;

	if (level < 0)
		return;
	name = bpf_map_lookup_elem(&cgroups, &key);
	if (!name) {
		note(cgroup, path, level, now, released ? now : 0);
		return;
	}
	if (!name->removed)
		WRITE_ONCE(name->removed, now);
	if (released)
		WRITE_ONCE(name->released, now);
}

HOOK(sl_cgroup_rmdir, "cgroup_rmdir")

SEC("?tp_btf/cgroup_rmdir")
int BPF_PROG(sl_cgroup_rmdir_now, const struct cgroup *cgroup, const char *path)
{
	note_end(cgroup, path, false);
	return 0;
}

HOOK(sl_cgroup_release, "cgroup_release")

SEC("?tp_btf/cgroup_release")
int BPF_PROG(sl_cgroup_release_now, const struct cgroup *cgroup, const char *path)
{
	note_end(cgroup, path, true);
	return 0;
}
