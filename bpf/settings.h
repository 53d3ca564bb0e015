/* SPDX-License-Identifier: GPL-2.0 */
/* What is in use, set by user space before the load: the verifier leaves out the rest. */
#ifndef SOCKLEDGER_SETTINGS_H
#define SOCKLEDGER_SETTINGS_H

#include <linux/types.h>

const volatile struct settings {
	__u64 root;  /* id of the cgroup in which we count */
	__u64 lease; /* jiffies in which is counted without a flush; 0: for good */
	__u8 tcp;
	__u8 tcp_histograms; /* per cgroup, beside those of the node */
	__u8 udp;
	__u8 peers;
	__u8 tasks;	   /* by comm, and all families; else AF_UNIX alone */
	__u8 tasks_unseen; /* to a walk over tasks: they are in other pid namespaces */
	__u32 comms;	   /* that are told apart in a cgroup */
	__u32 tags;	   /* the same; 0: nobody may tag */
} settings SEC(".rodata.settings") = {};

#endif
