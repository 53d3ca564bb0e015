/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The layouts and maps that all programs share. User space decodes them by the object's BTF, so this is
 * their one description. Values are append-only; struct count, the control map's value, never changes.
 */
#ifndef SOCKLEDGER_LEDGER_H
#define SOCKLEDGER_LEDGER_H

#include "kernel.h"
#include <bpf/bpf_helpers.h>

enum direction { RECEIVE, TRANSMIT };
enum family { IPV4, IPV6 };
enum protocol { OTHER, TCP, UDP, ICMP };

#define DIRECTIONS (TRANSMIT + 1)
#define FAMILIES   (IPV6 + 1)
#define PROTOCOLS  (ICMP + 1)

/*
 * Bytes and packets wait in one word, so that one fetch-and-add counts a packet. Half of either range is left
 * for adds that race with the drain which PENDING_FULL asks for.
 */
#define PENDING_PACKET_BITS	28
#define PENDING_PACKETS(word)	((word) & ((1ULL << PENDING_PACKET_BITS) - 1))
#define PENDING_BYTES(word)	((word) >> PENDING_PACKET_BITS)
#define PENDING(bytes, packets) ((__u64)(bytes) << PENDING_PACKET_BITS | (packets))
#ifndef PENDING_FULL /* tests lower it */
#define PENDING_FULL (1ULL << 63 | 1ULL << (PENDING_PACKET_BITS - 1))
#endif

/*
 * What struct socket_counts.owner is besides a socket's cookie. The kernel counts cookies up from 1 and,
 * where an interrupt nests, down from 2^64 - 1 (include/linux/cookie.h): in the middle they never meet.
 */
#define FREE	 0ULL		  /* as the kernel made it */
#define RETIRED	 (1ULL << 63)	  /* no packet finds it any more; free after a grace period */
#define CLAIMING (1ULL << 63 | 1) /* its new owner is writing down who that is */
#define LEFT	 (1ULL << 63 | 2) /* its owner has taken another; the next walk retires it */

/* A seat in the table of sockets, one cache line. Who has none is written through to the totals. */
struct socket_counts {
	__u64 owner;
	__u64 cgroup_id;
	enum protocol protocol : 16;
	__u16 peer; /* class of the remote address; 0: there are no networks */
	__u16 tag;  /* its number in the cgroup; 0: none */
	__u16 unused;
	__u64 address;			     /* of struct sock, if it is a TCP or UDP socket's */
	__u64 pending[FAMILIES][DIRECTIONS]; /* PENDING(bytes, packets) */
};

/* In how many places a socket may sit, and how many whose cookies follow each other sit side by side. */
#define WAYS	   8
#define NEIGHBOURS 64

struct totals_key {
	__u64 cgroup_id;
	enum protocol protocol : 16; /* the socket's */
	enum family family : 16;     /* the packet's */
	__u16 peer;
	__u16 unused;
};

struct cgroup_key {
	__u64 id;
};

/* Of a cgroup, with its NUL. */
#define PATH_BYTES 416

struct totals {
	__u64 receive_bytes;
	__u64 receive_packets;
	__u64 transmit_bytes;
	__u64 transmit_packets;
};

/* Packets are wire segments, bytes go from the IP header on. */
struct count {
	__u64 bytes;
	__u64 packets;
};

/* Updates that could not be made as wanted, by reason; the fields are the metric's label values. */
struct lost_updates {
	__u64 sockets_full; /* no seat in the table of sockets: written through, nothing is missing */
	__u64 totals_full;  /* counted in overflow, so without its cgroup */
	__u64 totals_busy; /* the same, where an interrupt found the map's bucket being changed (up to 6.6) */
	__u64 udp_sockets_full; /* no room for a UDP socket that drops: what it drops is not counted */
	__u64 connections_full; /* no room for a connection: opened and closed at its end only, role unknown
				 */
	__u64 connections_busy; /* the same, without memory, or where the last flush has a reused socket's
				   entry */
	__u64 end_unseen; /* a TCP socket was gone without a sign: what it counted since the last flush is
			     missing */
	__u64 name_full;  /* no room or memory for a cgroup's name, or it is too long: it is named only if it
			     is still there when a flush looks */
	__u64 task_storage; /* no memory for a task's counts: written through, nothing is missing */
	__u64 tag_full;	    /* no room or memory for a tag's name or its sums: counted as tag other */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* it begins at a page, so that each value is one cache line */
	__uint(max_entries, 65536);	   /* set from limits.sockets */
	__type(key, __u32);
	__type(value, struct socket_counts);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH); /* preallocated: a new cgroup needs no memory in the packet's path */
	__uint(max_entries, 65536);	 /* set from limits.cgroups */
	__type(key, struct totals_key);
	__type(value, struct totals);
} totals SEC(".maps");

/* Where totals go that found the map of totals full, by protocol * FAMILIES + family. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, (PROTOCOLS * FAMILIES));
	__type(key, __u32);
	__type(value, struct totals);
} overflow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, struct count);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY); /* one for all CPUs, so that it can be moved like all sums */
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lost_updates);
} lost SEC(".maps");

/*
 * Only user space touches these two. An update of a map in a map returns after an RCU grace period
 * (maybe_wait_bpf_programs() in kernel/bpf/syscall.c): every program that ran when it began has ended.
 */
struct grace_period_inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} grace_inner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct grace_period_inner);
} grace_period SEC(".maps") = {
	.values = {&grace_inner},
};

/*
 * Cgroups whose rows user space is about to delete, while sockets may count for them: after a grace period
 * nobody adds to one. 0: no more.
 */
#define CLOSING 64

struct closing {
	__u64 cgroups[CLOSING];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct closing);
} closing SEC(".maps");

/* Accesses that the compiler may not merge with others, nor move past each other. */
#define READ_ONCE(x)	     (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

#endif
