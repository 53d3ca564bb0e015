/* SPDX-License-Identifier: GPL-2.0 */
/* What the host is, for a daemon that may be in namespaces of its own. */
#include "kernel.h"
#include <bpf/bpf_core_read.h>

#define MOST_ANCESTORS 256

/* The inode of the network namespace that the kernel's first task is in; 0: not found. */
SEC("?syscall")
int sl_host_network(void *ctx)
{
	const struct task_struct *task = (const void *)bpf_get_current_task();

	for (int i = 0; i < MOST_ANCESTORS; i++) {
		if (!BPF_CORE_READ(task, pid))
			return BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
		task = BPF_CORE_READ(task, real_parent);
	}
	return 0;
}
