/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What another's sockops program may look like: it counts its callbacks, asks for more of them, and answers
 * what the kernel asks. What it does is set before its load.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define OPS 32 /* more than there are */

const volatile struct wishes {
	__u32 flags;   /* callbacks that it asks for, beside those that others have asked for */
	__u32 timeout; /* of the first SYN in jiffies; 0: no answer */
	__u8 ecn;      /* whether it wants ECN */
	__u8 alone;    /* it sets no other flags than its own, and again whenever it is called */
} wishes SEC(".rodata.wishes") = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OPS);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

SEC("sockops")
int foreign(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;
	__u64 *n = bpf_map_lookup_elem(&calls, &op);

	if (n)
		__sync_fetch_and_add(n, 1);
	switch (op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		bpf_sock_ops_cb_flags_set(ctx, wishes.alone ? wishes.flags
							    : ctx->bpf_sock_ops_cb_flags | wishes.flags);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (wishes.alone)
			bpf_sock_ops_cb_flags_set(ctx, wishes.flags);
		break;
	case BPF_SOCK_OPS_TIMEOUT_INIT:
		if (wishes.timeout)
			ctx->reply = wishes.timeout;
		break;
	case BPF_SOCK_OPS_NEEDS_ECN:
		if (wishes.ecn)
			ctx->reply = 1;
		break;
	}
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
