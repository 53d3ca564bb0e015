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
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_map {
	__u32 max_entries;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

struct nsproxy {
	struct net *net_ns;
};

struct css_set;

struct task_struct {
	unsigned int flags;
	int pid; /* 0: the first one's, which has no parent but itself */
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	char comm[16];
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	int softirq_disable_cnt;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
	int level;
	struct cgroup *ancestors[]; /* itself at its level */
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct atomic {
	int counter;
};

struct atomic64 {
	__s64 counter;
};

struct refcount {
	struct atomic refs;
};

struct bpf_local_storage;

struct sock_common {
	__be32 skc_daddr;
	struct in6_addr skc_v6_daddr;
	unsigned short skc_family;
	unsigned char skc_state;
	__u16 skc_num; /* the local port */
	struct atomic64 skc_cookie;
	struct refcount skc_refcnt;
};

struct numa_drop_counters { /* since 6.18, of UDP and raw sockets */
	struct atomic drops0;
	struct atomic drops1;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
	int sk_err;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	struct atomic sk_drops;
	struct numa_drop_counters *sk_drop_counters;
	struct sock_cgroup_data sk_cgrp_data;
	struct bpf_local_storage *sk_bpf_storage;
	__u8 sk_kern_sock : 1;
};

struct tcp_sock {
	__u64 bytes_acked;
	__u64 bytes_received;
	__u32 segs_in;
	__u32 segs_out;
	__u32 total_retrans;
	__u32 rcv_ooopack;
	__u32 srtt_us; /* shifted left by 3 */
	__u32 chrono_start;
	__u32 chrono_stat[3]; /* jiffies; enum tcp_chrono in include/linux/tcp.h, without its 0 */
	__u8 chrono_type : 2;
	__u8 bpf_sock_ops_cb_flags;
};

struct socket {
	struct sock *sk;
};

struct file;

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

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct file *file;
};

#pragma clang attribute pop

/* include/uapi/linux/if_ether.h */
#define ETH_P_IPV6 0x86DD

/* include/linux/socket.h, include/linux/net.h */
#define AF_UNIX	   1
#define AF_INET	   2
#define AF_INET6   10
#define AF_NETLINK 16
#define AF_VSOCK   40
#define SOCK_RAW   3

#endif
