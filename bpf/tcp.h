/* SPDX-License-Identifier: GPL-2.0 */
/*
 * TCP's layouts and maps. tcp_sock counts by itself: it is read at each flush and at a connection's end,
 * against a cursor of what has been added to the totals already.
 */
#ifndef SOCKLEDGER_TCP_H
#define SOCKLEDGER_TCP_H

#include "ledger.h"
#include "settings.h"

enum role { ROLE_ACTIVE, ROLE_PASSIVE, ROLE_UNKNOWN };
#define ROLES (ROLE_UNKNOWN + 1)

/* Why a connect failed; aborted: by its own side, before there was an answer. */
enum failure {
	FAILURE_REFUSED,
	FAILURE_RESET,
	FAILURE_TIMED_OUT,
	FAILURE_HOST_UNREACHABLE,
	FAILURE_NET_UNREACHABLE,
	FAILURE_ABORTED,
	FAILURE_OTHER,
};
#define FAILURES (FAILURE_OTHER + 1)

/* What a connection may be busy with: enum tcp_chrono in include/linux/tcp.h, without its 0. */
enum chrono { CHRONO_SENDING, CHRONO_RECEIVE_WINDOW, CHRONO_SEND_BUFFER };
#define CHRONOS (CHRONO_SEND_BUFFER + 1)

#define STATES BPF_TCP_MAX_STATES

/* Upper bounds in microseconds, each 4 times the last from 100 on; the last bucket has none. */
#define BUCKETS	     11
#define FIRST_BUCKET 100

enum measure { RTT, CONNECT_DURATION, LIFETIME };
#define MEASURES (LIFETIME + 1)

struct distribution {
	__u64 count;
	__u64 sum; /* microseconds */
};

/* Of one cgroup. */
struct tcp_totals {
	__u64 opened[ROLES];
	__u64 closed[ROLES];
	__u64 connections[ROLES]; /* open now */
	__u64 sockets[STATES];	  /* now, by state, as the last flush found them */
	__u64 connect_failures[FAILURES];
	__u64 retransmitted_segments;
	__u64 retransmission_timeouts;
	__u64 transmit_segments;
	__u64 receive_segments;
	__u64 out_of_order_segments;
	__u64 acked_bytes;
	__u64 received_bytes;
	__u64 busy[CHRONOS]; /* jiffies */
	struct distribution measured[MEASURES];
};

struct histogram {
	__u64 sum; /* microseconds */
	__u64 buckets[BUCKETS];
};

struct tcp_histograms {
	struct histogram measured[MEASURES];
};

/* Of the whole node. */
struct node_totals {
	__u64 retransmitted_segments;
	struct tcp_histograms histograms;
};

struct listen_key {
	__u64 cgroup_id;
	__u64 port;
};

struct listen_totals {
	__u64 drops;
};

struct listen_queue {
	__u64 length;
	__u64 limit;
};

/* A moment's state of tcp_sock; as a cursor: what has been added to the totals so far. */
struct reading {
	__u64 acked_bytes;
	__u64 received_bytes;
	__u32 transmit_segments;
	__u32 receive_segments;
	__u32 retransmitted_segments;
	__u32 out_of_order_segments;
	__u32 busy[CHRONOS];
	__u32 jiffies;	    /* when it was read */
	__u32 rtt;	    /* microseconds; it is what it is, and no sum */
	__u32 queue_length; /* these three of listeners */
	__u32 queue_limit;
	__u32 drops;
	enum failure failure : 8; /* if it is the end of a connect */
	__u8 state;
};

/*
 * FOUND is a connection that is older than these programs, or so it seems: who finds a socket without an
 * entry may have looked when its end had just been counted. So it counts only when a flush finds it, too, or
 * its end does.
 */
enum phase { CONNECTING, OPEN, LISTENING, FOUND, NONE };

/*
 * How a socket's entry lives. Who takes an entry out of LIVE owns it: the flush, for as long as it reads and
 * adds (PINNED); or the end, for good. An end that comes while the flush has it leaves the rest to the flush.
 * So entries are changed by one at a time, and nothing waits. The memory of one that was deleted may be
 * another's at once: it is LIVE only when all else is written.
 */
#define LIVE	1
#define PINNED	2
#define ENDED	4
#define SETTLED 8 /* alone: only to be deleted, which has failed once */

/* Not larger than 192 bytes: with what the map adds it takes 256. */
struct tcp_socket {
	__u64 life;
	__u64 cookie;
	__u64 address; /* of struct sock */
	__u64 cgroup_id;
	__u64 since; /* when it began to connect, was opened, or was found; nanoseconds */
	enum phase phase : 8;
	enum role role : 8;
	__u16 port;	/* of a listener */
	__u16 observed; /* when its RTT was, in RTT_SLOTs */
	bool reused;	/* its key is of a REUSED socket */
	bool in_other;	/* there was no room for its cgroup's totals when it began */
	struct reading cursor;
	struct reading end; /* the last one, written before ENDED */
};

#define RTT_SLOT 10000000000ULL /* nanoseconds */

/* Turns a cookie into its other key, for a socket of which a flush still has the last connection's entry. */
#define REUSED (1ULL << 63)

/* For so long the end that was counted may take to become the socket's state; nanoseconds. */
#define MATURE 1000000

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144); /* set from limits.connections */
	__type(key, __u64);
	__type(value, struct tcp_socket);
} tcp_sockets SEC(".maps");

/* Key 0, made by user space, takes what finds these maps full. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct cgroup_key);
	__type(value, struct tcp_totals);
} tcp_totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct listen_key);
	__type(value, struct listen_totals);
} listen_totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct cgroup_key);
	__type(value, struct tcp_histograms);
} tcp_histograms SEC(".maps");

/* By class of the remote address; 0: without networks, or of a socket that was gone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set to the number of classes that there may be */
	__type(key, __u32);
	__type(value, struct node_totals);
} node_totals SEC(".maps");

/* Made anew by each flush, which user space begins by emptying it: those of ports that somebody listens on.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct listen_key);
	__type(value, struct listen_queue);
} listen_queues SEC(".maps");

#endif
