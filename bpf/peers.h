/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Classes of remote addresses: users name networks, and each packet counts for the class of the address at
 * its other end, which the narrowest of these networks has. A seat counts for one class, so that a connected
 * socket's is looked up once; it is found again by the address and by the generation of the networks.
 */
#ifndef SOCKLEDGER_PEERS_H
#define SOCKLEDGER_PEERS_H

#include "array.h"
#include "ledger.h"
#include "settings.h"
#include "socket.h"
#include <bpf/bpf_endian.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stddef.h>

#define CLASS_NONE  0 /* there are no networks */
#define CLASS_OTHER 1 /* none of them has the address */

/* What a look-up compares from its first bit on, so the family comes first; in network byte order. */
struct address {
	__u32 family; /* 4 or 6 */
	__u32 words[4];
};

struct network {
	__u32 prefix_length; /* with the family's bits */
	struct address address;
};

struct network_class {
	__u32 class;
};

/* User space makes another of these, and puts it there, when networks change. */
struct networks_inner {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	/* sizes, no types: up to 6.1 one that is made without these may not replace it */
	__uint(key_size, sizeof(struct network));
	__uint(value_size, sizeof(struct network_class));
} networks_inner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct networks_inner);
} networks SEC(".maps") = {
	.values = {&networks_inner},
};

/*
 * Moves on a grace period after the networks have been replaced: no program that looks an address up in the
 * old ones reads the new generation. What is looked up in the new ones with the old generation is looked up
 * again.
 */
struct networks_state {
	__u64 generation; /* never the same twice, whichever daemon's; 0: none yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct networks_state);
} networks_state SEC(".maps");

/* What a seat's class was looked up for, by the seat's number. */
struct seat_peer {
	struct address address;
	__u32 unused;
	__u64 generation;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536); /* set from limits.sockets */
	__type(key, __u32);
	__type(value, struct seat_peer);
} seat_peers SEC(".maps");

/* What users call the classes. A number is never another's. */
struct class_key {
	__u32 class;
};

#define CLASS_NAME_BYTES 64

struct class_name {
	char name[CLASS_NAME_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct class_key);
	__type(value, struct class_name);
} class_names SEC(".maps");

static __always_inline __u64 generation(void)
{
	const struct networks_state *state = only_entry(&networks_state);

	return state ? READ_ONCE(state->generation) : 0;
}

static __always_inline __u32 class_of(const struct address *address)
{
	struct network key = {.prefix_length = sizeof(*address) * 8};
	const struct network_class *found;
	void *trie = only_entry(&networks);

	/* no grace period waits for TCP's flush, which may sleep: it runs where networks are replaced */
	if (!trie)
		return CLASS_OTHER;
	key.address = *address;
	found = bpf_map_lookup_elem(trie, &key);
	return found ? found->class : CLASS_OTHER;
}

/* Of a socket that may be gone: none, then. */
static __always_inline __u32 class_of_socket(__u64 cookie, const struct sock *sk)
{
	struct address address = {};

	if (READ_SOCK(sk, __sk_common.skc_family) == AF_INET6 &&
	    bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		address.family = 6;
		bpf_core_read(&address.words, sizeof(address.words), &sk->__sk_common.skc_v6_daddr);
	}
	if (address.family != 6 ||
	    (!address.words[0] && !address.words[1] && address.words[2] == bpf_htonl(0xffff))) {
		address = (struct address){.family = 4};
		address.words[0] = READ_SOCK(sk, __sk_common.skc_daddr);
	}
	return cookie_at(sk) == cookie ? class_of(&address) : CLASS_NONE;
}

static __always_inline __u32 ipv4_peer(enum direction direction)
{
	return direction == RECEIVE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr);
}

static __always_inline __u32 ipv6_peer(enum direction direction)
{
	return direction == RECEIVE ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr);
}

/* The address at a packet's other end. */
static __always_inline void read_peer(struct __sk_buff *skb, enum family family, enum direction direction,
				      struct address *address)
{
	__builtin_memset(address, 0, sizeof(*address));
	if (family == IPV6) {
		address->family = 6;
		bpf_skb_load_bytes(skb, ipv6_peer(direction), address->words, 16);
	} else {
		address->family = 4;
		bpf_skb_load_bytes(skb, ipv4_peer(direction), address->words, 4);
	}
}

static __always_inline bool same_address(const struct address *one, const struct address *other)
{
	return one->family == other->family && one->words[0] == other->words[0] &&
	       one->words[1] == other->words[1] && one->words[2] == other->words[2] &&
	       one->words[3] == other->words[3];
}

static __always_inline struct seat_peer *peer_at(__u32 index)
{
	return bpf_map_lookup_elem(&seat_peers, &index);
}

/* Where the kernel reads no word that is not aligned, two halves are. */
typedef __u32 word __attribute__((aligned(2)));

/* Whether a packet has this address at its other end; false, too, if its header is not in sight. */
static __always_inline bool is_peer(const struct address *address, struct __sk_buff *skb, enum family family,
				    enum direction direction)
{
	/* read where it is: a helper's call would cost more than all the rest */
	const void *end = (const void *)(unsigned long)skb->data_end;
	const void *header = (const void *)(unsigned long)skb->data;
	const word *words;

	if (family == IPV6) {
		words = header + ipv6_peer(direction);
		return (const void *)(words + 4) <= end && address->family == 6 &&
		       address->words[0] == words[0] && address->words[1] == words[1] &&
		       address->words[2] == words[2] && address->words[3] == words[3];
	}
	words = header + ipv4_peer(direction);
	return (const void *)(words + 1) <= end && address->family == 4 && address->words[0] == words[0];
}

/* Whether a seat's class was looked up for a packet's peer, in the networks of now. */
static __always_inline bool is_of_peer(__u32 index, struct __sk_buff *skb, enum family family,
				       enum direction direction)
{
	const struct seat_peer *p = peer_at(index);

	return p && p->generation == generation() && is_peer(&p->address, skb, family, direction);
}

#endif
