/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What is attached to cgroups on this machine, by whomever: bpf(2) lists links to CAP_SYS_ADMIN only, an
 * iterator to whoever may load one.
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* What is printed for each link; kernel/attachments.py reads it. */
struct attachment {
	__u64 cgroup_id; /* 0: the cgroup is gone */
	__u64 link_id;	 /* later links have higher ones; 0 while it is being attached */
	char program[16];
};

SEC("?iter/bpf_link")
int sl_attachments(struct bpf_iter__bpf_link *ctx)
{
	struct bpf_link *link = ctx->link;
	struct attachment found = {};

	if (!link || link->type != BPF_LINK_TYPE_CGROUP)
		return 0;
	found.cgroup_id = BPF_CORE_READ((struct bpf_cgroup_link *)link, cgroup, kn, id);
	found.link_id = link->id;
	BPF_CORE_READ_STR_INTO(&found.program, link, prog, aux, name);
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}
