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

struct sock_common {
	unsigned short skc_family;
};

struct sock {
	struct sock_common __sk_common;
	__u8 sk_kern_sock : 1;
	__u16 sk_type;
	__u16 sk_protocol;
	struct socket *sk_socket; /* user space's handle: not yet there before accept(), gone after close() */
};

struct socket {
	struct sock *sk;
};

struct task_struct {
	int softirq_disable_cnt;
};

struct file;

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

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

/* include/linux/net.h, include/linux/socket.h, include/uapi/linux/if_ether.h */
#define SOCK_STREAM 1
#define SOCK_DGRAM  2
#define AF_INET	    2
#define AF_INET6    10
#define ETH_P_IPV6  0x86DD

static __always_inline bool is_tcp(struct bpf_sock *sk)
{
	return sk->protocol == IPPROTO_TCP && sk->type == SOCK_STREAM;
}

#endif
