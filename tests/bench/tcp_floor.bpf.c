// SPDX-License-Identifier: GPL-2.0
/* Programs that do nothing where ours for TCP and UDP are called, and one that counts the calls by kind. */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define WANTED_FLAGS (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG)

enum { KINDS = 64 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, __u64);
} kinds SEC(".maps");

/* Asks for the calls that ours asks for: all but that is what any such program costs. */
static __always_inline void want_callbacks(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB || ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB ||
	    ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		bpf_sock_ops_cb_flags_set(ctx, WANTED_FLAGS);
}

SEC("sockops")
int empty_events(struct bpf_sock_ops *ctx)
{
	want_callbacks(ctx);
	return 1;
}

SEC("sockops")
int count_events(struct bpf_sock_ops *ctx)
{
	__u32 kind = ctx->op;
	__u64 *n = bpf_map_lookup_elem(&kinds, &kind);

	if (n)
		__sync_fetch_and_add(n, 1);
	want_callbacks(ctx);
	return 1;
}

SEC("tp_btf/inet_sock_set_state")
int empty_states(void *ctx)
{
	return 0;
}

SEC("tp_btf/udp_fail_queue_rcv_skb")
int empty_drops(void *ctx)
{
	return 0;
}

SEC("cgroup/sock_release")
int empty_released(struct bpf_sock *ctx)
{
	return 1;
}

SEC("cgroup_skb/ingress")
int empty_receive(struct __sk_buff *skb)
{
	return 1;
}

SEC("cgroup_skb/egress")
int empty_transmit(struct __sk_buff *skb)
{
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
