/* SPDX-License-Identifier: GPL-2.0 */
/* The hooks of tasks: what their calls have moved, the end of each, and the flush of all that live. */
#include "hook.h"
#include "lease.h"
#include "tasks.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* include/linux/socket.h, include/linux/sched.h */
#define MSG_PEEK     2
#define MSG_ERRQUEUE 0x2000 /* what one has sent oneself, and notes of it */
#define PF_EXITING   4

static __always_inline const struct cgroup *cgroup_of_task(const struct task_struct *task)
{
	const struct css_set *set = READ_KERNEL(struct task_struct, task, cgroups);

	return READ_KERNEL(struct css_set, set, dfl_cgrp);
}

static __always_inline void read_comm(const struct task_struct *task, struct comm *comm)
{
	const struct task_struct *leader = READ_KERNEL(struct task_struct, task, group_leader);

	bpf_core_read(comm, sizeof(*comm), &leader->comm);
}

static __always_inline void read_account(const struct task_struct *task, struct task_account *account)
{
	account->cgroup_id = id_of(cgroup_of_task(task));
	if (settings.tasks)
		read_comm(task, &account->comm);
}

/* Another thread may be writing the comm: what is not read twice alike is nobody's. */
static __noinline int settle_comm(const struct task_struct *task, struct task_account *account)
{
	struct comm again = {};

	if (!settings.tasks)
		return 0;
	read_comm(task, &again);
	if (!same_comm(&again, &account->comm))
		account->comm = (struct comm){};
	return 0;
}

/*
 * Let a task count for its account of now, once what is pending has gone to the one before. NULL where it
 * cannot wait in the task.
 */
static __noinline struct task_counts *open_account(struct task_struct *task,
						   const struct task_account *account)
{
	struct task_counts *c = bpf_task_storage_get(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct lost_updates *l;

	if (!c) {
		l = lost_updates();
		if (l)
			__sync_fetch_and_add(&l->task_storage, 1);
		return NULL;
	}
	if (__sync_lock_test_and_set(&c->locked, 1))
		return NULL; /* a flush is at it */
	drain_task(c);
	c->account = *account;
	c->in_other = settings.tasks && !is_told_apart(account);
	/* a full barrier: who locks it next sees the account */
	__sync_lock_test_and_set(&c->locked, 0);
	return c;
}

static __noinline int write_through_task(struct task_account *account, enum socket_family family,
					 enum direction direction, __u64 bytes)
{
	struct task_totals *t;

	if (settings.tasks && !is_told_apart(account))
		account->comm = OTHER_COMMS;
	t = task_totals_of(account, family);
	if (t)
		add_calls(t, direction, bytes, 1);
	return 0;
}

/* A call that has returned so many *bytes*, in the task that has made it. */
static __always_inline void count_call(const struct sock *sk, int bytes, enum direction direction)
{
	enum socket_family family = socket_family_of(sk);
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_account account = {};
	struct task_counts *c = NULL;
	bool waits;
	__u64 before;

	if (bytes < 0 || (!settings.tasks && family != SOCKET_FAMILY_UNIX) || dormant())
		return;
	read_account(task, &account);
	/* nor does it where nobody comes for it: no flush, or the task's end may have been */
	waits = !settings.tasks_unseen && !(task->flags & PF_EXITING);
	c = bpf_task_storage_get(&tasks, task, NULL, 0);
	if (c && !waits) {
		drain_task(c); /* programs before may have let something wait */
		c = NULL;
	}
	if (!c || !same_account(&c->account, &account)) {
		if (level_above(cgroup_of_task(task)) < 0)
			return;
		settle_comm(task, &account);
		c = waits ? open_account(task, &account) : NULL;
	}
	if (!c) {
		write_through_task(&account, family, direction, bytes);
		return;
	}
	before = __sync_fetch_and_add(&c->pending[family][direction], PENDING(bytes, 1));
	if (before & PENDING_FULL)
		open_account(task, &account);
}

HOOK(sl_task_sent, "sock_send_length")

SEC("?tp_btf/sock_send_length")
int BPF_PROG(sl_task_sent_now, const struct sock *sk, int ret, int flags)
{
	count_call(sk, ret, TRANSMIT);
	return 0;
}

HOOK(sl_task_received, "sock_recv_length")

SEC("?tp_btf/sock_recv_length")
int BPF_PROG(sl_task_received_now, const struct sock *sk, int ret, int flags)
{
	if (!(flags & (MSG_PEEK | MSG_ERRQUEUE)))
		count_call(sk, ret, RECEIVE);
	return 0;
}

HOOK(sl_task_exit, "sched_process_exit")

SEC("?tp_btf/sched_process_exit")
int BPF_PROG(sl_task_exit_now, struct task_struct *task)
{
	struct task_counts *c = bpf_task_storage_get(&tasks, task, NULL, 0);

	/* a flush may be at it: both drain it for the same account */
	if (c)
		drain_task(c);
	return 0;
}

/* A task that is writing its account drains itself. */
SEC("?iter/task")
int sl_task_flush(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_counts *c;

	if (!task)
		return 0;
	c = bpf_task_storage_get(&tasks, task, NULL, 0);
	if (!c || __sync_lock_test_and_set(&c->locked, 1))
		return 0;
	drain_task(c);
	/* there may be a place by now */
	if (settings.tasks && c->in_other)
		c->in_other = !is_told_apart(&c->account);
	__sync_lock_test_and_set(&c->locked, 0);
	return 0;
}
