/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tasks send and receive by sockets of any family, as the kernel tells when their calls return: AF_UNIX,
 * too, which passes no packet hook. Counts wait in the task's own storage, as packets do in a seat; what is
 * pending belongs to the account that it was counted for, whatever becomes of the task.
 */
#ifndef SOCKLEDGER_TASKS_H
#define SOCKLEDGER_TASKS_H

#include "drain.h"
#include "settings.h"
#include "socket.h"

enum socket_family {
	SOCKET_FAMILY_OTHER,
	SOCKET_FAMILY_UNIX,
	SOCKET_FAMILY_IPV4,
	SOCKET_FAMILY_IPV6,
	SOCKET_FAMILY_NETLINK,
	SOCKET_FAMILY_VSOCK,
};

#define SOCKET_FAMILIES (SOCKET_FAMILY_VSOCK + 1)

/* As the kernel has it, padded with NULs; in words, for these are compared. */
struct comm {
	__u64 words[2];
};

/* Whose calls: all of a thread group are its leader's. Without a comm where they are not told apart. */
struct task_account {
	__u64 cgroup_id;
	struct comm comm;
};

/*
 * Only the task itself adds, and writes another account. A flush that drains it keeps it from that by the
 * lock; nobody waits for it.
 */
struct task_counts {
	struct task_account account;
	__u32 locked;
	__u32 in_other; /* there was no place for its comm: it counts as one of the others */
	__u64 pending[SOCKET_FAMILIES][DIRECTIONS]; /* PENDING(bytes, calls) */
};

struct task_key {
	struct task_account account;
	enum socket_family socket_family;
	__u32 unused;
};

struct task_totals {
	__u64 received_bytes;
	__u64 receive_calls;
	__u64 sent_bytes;
	__u64 send_calls;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_counts);
} tasks SEC(".maps");

/* The entries of cgroup 0, made by user space for each family, take what finds it full. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set from limits.cgroups */
	__type(key, struct task_key);
	__type(value, struct task_totals);
} task_totals SEC(".maps");

/* A cgroup's places for comms that are told apart: settings.comms at most. */
struct comm_place {
	__u64 cgroup_id;
	__u64 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct comm_place);
	__type(value, struct comm);
} task_comms SEC(".maps");

/* "other", as its first word. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define OTHER_COMMS ((struct comm){{0x726568746fULL}})
#else
#define OTHER_COMMS ((struct comm){{0x6f74686572000000ULL}})
#endif

static __always_inline bool same_comm(const struct comm *one, const struct comm *other)
{
	return one->words[0] == other->words[0] && one->words[1] == other->words[1];
}

static __always_inline bool same_account(const struct task_account *one, const struct task_account *other)
{
	return one->cgroup_id == other->cgroup_id && same_comm(&one->comm, &other->comm);
}

static __always_inline enum socket_family socket_family_of(const struct sock *sk)
{
	switch (READ_SOCK(sk, __sk_common.skc_family)) {
	case AF_UNIX:
		return SOCKET_FAMILY_UNIX;
	case AF_INET:
		return SOCKET_FAMILY_IPV4;
	case AF_INET6:
		return SOCKET_FAMILY_IPV6;
	case AF_NETLINK:
		return SOCKET_FAMILY_NETLINK;
	case AF_VSOCK:
		return SOCKET_FAMILY_VSOCK;
	default:
		return SOCKET_FAMILY_OTHER;
	}
}

static __noinline struct task_totals *task_totals_of(const struct task_account *account,
						     enum socket_family family)
{
	struct task_key key = {.account = *account, .socket_family = family},
			other = {.socket_family = family};
	struct task_totals none = {};

	return sums_of(&task_totals, &key, &none, &other);
}

static long look_at_place(__u32 number, struct task_account *account)
{
	struct comm_place place = {.cgroup_id = account->cgroup_id, .number = number};
	struct comm *taken = bpf_map_lookup_elem(&task_comms, &place);

	if (!taken) {
		bpf_map_update_elem(&task_comms, &place, &account->comm, BPF_NOEXIST);
		taken = bpf_map_lookup_elem(&task_comms, &place);
	}
	if (!taken || !same_comm(taken, &account->comm))
		return 0;
	account->cgroup_id = 0; /* found */
	return 1;
}

/* Whether a comm has a place in its cgroup, taken if need be. No comm at all is one of the others. */
static __noinline bool is_told_apart(const struct task_account *account)
{
	struct task_account wanted = *account;

	if (!account->comm.words[0])
		return false;
	bpf_loop(settings.comms, look_at_place, &wanted, 0);
	return !wanted.cgroup_id;
}

static __always_inline void add_calls(struct task_totals *t, enum direction direction, __u64 bytes,
				      __u64 calls)
{
	add(direction == RECEIVE ? &t->received_bytes : &t->sent_bytes, bytes);
	add(direction == RECEIVE ? &t->receive_calls : &t->send_calls, calls);
}

/* Who calls has locked it, or is the task. */
static __noinline int drain_task(struct task_counts *c)
{
	struct task_account account = c->account;

	if (c->in_other)
		account.comm = OTHER_COMMS;
	for (int family = 0; family < SOCKET_FAMILIES; family++) {
		__u64 received = take(&c->pending[family][RECEIVE]);
		__u64 sent = take(&c->pending[family][TRANSMIT]);
		struct task_totals *t;

		if (!(received | sent))
			continue;
		t = task_totals_of(&account, family);
		if (!t)
			return 0; /* cannot be: user space has made cgroup 0's */
		add_calls(t, RECEIVE, PENDING_BYTES(received), PENDING_PACKETS(received));
		add_calls(t, TRANSMIT, PENDING_BYTES(sent), PENDING_PACKETS(sent));
	}
	return 0;
}

#endif
