// SPDX-License-Identifier: GPL-2.0
/* The kernel half of sockledger, one object; each header is a concern and tells its part of the story. */
#include "ledger.h"	 /* what is kept: layouts and maps */
#include "kept.h"	 /* what user space keeps beside it */
#include "totals.h"	 /* what they are added to */
#include "tags.h"	 /* what users call sockets */
#include "drain.h"	 /* from a socket's pending counts to the totals */
#include "traffic.h"	 /* the hot path: every packet */
#include "flush.h"	 /* all sockets at once */
#include "tcp_hooks.h"	 /* connections: what TCP tells, and what is read of it */
#include "udp_hooks.h"	 /* datagrams that were dropped */
#include "task_hooks.h"	 /* what calls move, by any family of sockets */
#include "cgroups.h"	 /* what cgroups are called, and their ends */
#include "older.h"	 /* sockets that were there before */
#include "attachments.h" /* who else counts here */
#include "host.h"	 /* where we are */

char LICENSE[] SEC("license") = "GPL";
