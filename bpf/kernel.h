/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel's own types, as far as we read them. CO-RE finds the real offsets at load time, so neither
 * a vmlinux.h nor kernel headers are needed to build.
 */
#ifndef SOCKLEDGER_KERNEL_H
#define SOCKLEDGER_KERNEL_H

#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_map {
	__u32 max_entries;
};

struct task_struct {
	int softirq_disable_cnt;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct bpf_prog_aux {
	char name[16];
};

struct bpf_prog {
	struct bpf_prog_aux *aux;
};

struct bpf_link {
	__u32 id;
	enum bpf_link_type type;
	struct bpf_prog *prog;
};

struct bpf_cgroup_link {
	struct bpf_link link;
	struct cgroup *cgroup;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_link {
	struct bpf_iter_meta *meta;
	struct bpf_link *link;
};

#pragma clang attribute pop

/* include/uapi/linux/if_ether.h */
#define ETH_P_IPV6 0x86DD

#endif
