/* SPDX-License-Identifier: GPL-2.0 */
/* Requests to the kernel. */
#ifndef NETLINK_H
#define NETLINK_H

#include "sockets.h"
#include <linux/netlink.h>

/* Returns 0 or what errno would be; a request ends with its payload. */
static int request(int netlink, struct nlmsghdr *header)
{
	union {
		struct nlmsghdr header;
		char bytes[8192];
	} answer;
	struct nlmsgerr *verdict = NLMSG_DATA(&answer.header);

	header->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
	check(send(netlink, header, header->nlmsg_len, 0), "netlink");
	do
		check(recv(netlink, &answer, sizeof(answer), 0), "netlink");
	while (answer.header.nlmsg_type != NLMSG_ERROR);
	return -verdict->error;
}

static int netlink_socket(int protocol)
{
	return check(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol), "netlink");
}

#endif
