// SPDX-License-Identifier: GPL-2.0
/*
 * What the benchmark compares our hot path with. Written for this purpose, in the form that the named
 * public examples have; where they differ among themselves, in the cheaper one.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The floor: what calling any program costs. */
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

/*
 * A per-CPU hash by cgroup id, one for each direction: look up, insert what is missing, add. As
 * cloudflare/ebpf_exporter counts by cgroup (examples/cgroup.bpf.c) and in per-CPU hashes
 * (examples/percpu-softirq.bpf.c), both with the atomic adds of examples/maps.bpf.h. Many examples for
 * cgroup_skb add plainly, which is cheaper and loses counts where an interrupt comes between: here are both.
 */
struct traffic {
	__u64 bytes;
	__u64 packets;
};

struct by_cgroup {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct traffic);
};

struct by_cgroup received SEC(".maps");
struct by_cgroup sent SEC(".maps");

static __always_inline int count_by_cgroup(void *map, struct __sk_buff *skb, bool atomic)
{
	__u64 cgroup_id = bpf_skb_cgroup_id(skb);
	struct traffic *t = bpf_map_lookup_elem(map, &cgroup_id);
	struct traffic first = {.bytes = skb->len, .packets = 1};

	if (!t) {
		bpf_map_update_elem(map, &cgroup_id, &first, BPF_NOEXIST);
	} else if (atomic) {
		__sync_fetch_and_add(&t->bytes, skb->len);
		__sync_fetch_and_add(&t->packets, 1);
	} else {
		t->bytes += skb->len;
		t->packets++;
	}
	return 1;
}

SEC("cgroup_skb/ingress")
int plain_receive(struct __sk_buff *skb)
{
	return count_by_cgroup(&received, skb, false);
}

SEC("cgroup_skb/egress")
int plain_transmit(struct __sk_buff *skb)
{
	return count_by_cgroup(&sent, skb, false);
}

SEC("cgroup_skb/ingress")
int atomic_receive(struct __sk_buff *skb)
{
	return count_by_cgroup(&received, skb, true);
}

SEC("cgroup_skb/egress")
int atomic_transmit(struct __sk_buff *skb)
{
	return count_by_cgroup(&sent, skb, true);
}

/*
 * An LRU hash by flow: parse the headers, look up, add, note the time. Parser, key and value as
 * netobserv/netobserv-ebpf-agent has them (bpf/flows.c, bpf/flow.h) and grafana/beyla after it
 * (bpf/netolly/flows.c, bpf/netolly/flow.h); the kind of map as in microsoft/retina
 * (pkg/plugin/conntrack/_cprog/conntrack.c). The second look-up of the former two, an update after each
 * change in place, is left out.
 */
struct flow {
	struct in6_addr source; /* IPv4 as ::ffff/96 */
	struct in6_addr destination;
	__u32 interface;
	__u16 ether_type;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 direction;
};

struct flow_metrics {
	__u64 bytes;
	__u64 packets;
	__u64 first_ns;
	__u64 last_ns;
	__u16 tcp_flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, struct flow_metrics);
} flows SEC(".maps");

static __always_inline void parse_ports(void *header, void *end, struct flow *flow, __u16 *tcp_flags)
{
	struct tcphdr *tcp = header;
	struct udphdr *udp = header;

	if (flow->protocol == IPPROTO_TCP && (void *)(tcp + 1) <= end) {
		flow->source_port = bpf_ntohs(tcp->source);
		flow->destination_port = bpf_ntohs(tcp->dest);
		*tcp_flags = tcp->fin | tcp->syn << 1 | tcp->rst << 2 | tcp->psh << 3 | tcp->ack << 4;
	} else if (flow->protocol == IPPROTO_UDP && (void *)(udp + 1) <= end) {
		flow->source_port = bpf_ntohs(udp->source);
		flow->destination_port = bpf_ntohs(udp->dest);
	}
}

static __always_inline bool parse(struct __sk_buff *skb, struct flow *flow, __u16 *tcp_flags)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip6 = data;
	struct iphdr *ip = data;

	flow->interface = skb->ifindex;
	flow->ether_type = bpf_ntohs(skb->protocol);
	if (flow->ether_type == ETH_P_IP && (void *)(ip + 1) <= end) {
		flow->source.s6_addr32[2] = flow->destination.s6_addr32[2] = bpf_htonl(0xffff);
		flow->source.s6_addr32[3] = ip->saddr;
		flow->destination.s6_addr32[3] = ip->daddr;
		flow->protocol = ip->protocol;
		parse_ports(ip + 1, end, flow, tcp_flags);
		return true;
	}
	if (flow->ether_type == ETH_P_IPV6 && (void *)(ip6 + 1) <= end) {
		flow->source = ip6->saddr;
		flow->destination = ip6->daddr;
		flow->protocol = ip6->nexthdr;
		parse_ports(ip6 + 1, end, flow, tcp_flags);
		return true;
	}
	return false;
}

static __always_inline int count_by_flow(struct __sk_buff *skb, __u8 direction)
{
	struct flow flow = {.direction = direction};
	struct flow_metrics first = {.bytes = skb->len, .packets = 1};
	__u16 tcp_flags = 0;
	struct flow_metrics *m;
	__u64 now;

	if (!parse(skb, &flow, &tcp_flags))
		return 1;
	now = bpf_ktime_get_ns();
	m = bpf_map_lookup_elem(&flows, &flow);
	if (m) {
		__sync_fetch_and_add(&m->bytes, skb->len);
		__sync_fetch_and_add(&m->packets, 1);
		m->last_ns = now;
		m->tcp_flags |= tcp_flags;
	} else {
		first.first_ns = first.last_ns = now;
		first.tcp_flags = tcp_flags;
		bpf_map_update_elem(&flows, &flow, &first, BPF_ANY);
	}
	return 1;
}

SEC("cgroup_skb/ingress")
int flow_receive(struct __sk_buff *skb)
{
	return count_by_flow(skb, 0);
}

SEC("cgroup_skb/egress")
int flow_transmit(struct __sk_buff *skb)
{
	return count_by_flow(skb, 1);
}

char LICENSE[] SEC("license") = "GPL";
