/* SPDX-License-Identifier: GPL-2.0 */
/* Connections that are open when their network namespace loses its last process. */
#ifndef NETNS_H
#define NETNS_H

#include "endings.h"
#include "netlink.h"
#include "pairs.h"
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <linux/if.h>

static void bring_loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd = new_socket(V4, SOCK_DGRAM, 0);

	check(ioctl(fd, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
	close(fd);
}

static void open_in_new_netns(int ready)
{
	struct pairs pairs;

	for (enum side side = 0; side < SIDES; side++)
		options.netns[side] = -1;
	check(unshare(CLONE_NEWNET), "unshare");
	bring_loopback_up();
	pairs = connected_pairs(options.count);
	for (long i = 0; i < options.count; i++) {
		converse(pairs.fds[CLIENT][i], pairs.fds[SERVER][i]);
		if (i % 3 == 0) /* unread when its reader dies */
			send_all(pairs.fds[i % SIDES][i], REQUEST);
	}
	check(write(ready, "", 1), "write");
	pause();
}

/* A name for the namespace, because the kernel tells when a name ends with what it stands for. */
static void name_netns_of(pid_t process, int netlink, int name)
{
	struct {
		struct nlmsghdr header;
		struct rtgenmsg general;
		struct nlattr name_header __attribute__((aligned(NLMSG_ALIGNTO)));
		int32_t name;
		struct nlattr process_header;
		uint32_t process;
	} message = {{.nlmsg_len = sizeof(message), .nlmsg_type = RTM_NEWNSID},
		     {},
		     {NLA_HDRLEN + sizeof(name), NETNSA_NSID},
		     name,
		     {NLA_HDRLEN + sizeof(process), NETNSA_PID},
		     process};

	errno = request(netlink, &message.header);
	if (errno)
		fail("RTM_NEWNSID");
}

static bool tells_end(struct nlmsghdr *message, int name)
{
	struct nlattr *attribute = NLMSG_DATA(message) + NLMSG_ALIGN(sizeof(struct rtgenmsg));

	return message->nlmsg_type == RTM_DELNSID && *(int32_t *)(attribute + 1) == name;
}

static void await_end(int netlink, int name)
{
	union {
		struct nlmsghdr header;
		char bytes[8192];
	} news;

	do
		await_readable(netlink);
	while (check(recv(netlink, &news, sizeof(news), 0), "netlink") && !tells_end(&news.header, name));
}

static void netns_destroyed(void)
{
	int ready[2], asking = netlink_socket(NETLINK_ROUTE), listening = netlink_socket(NETLINK_ROUTE);
	struct sockaddr_nl any = {.nl_family = AF_NETLINK};
	pid_t child;

	check(pipe2(ready, O_CLOEXEC), "pipe");
	child = start_child();
	if (!child)
		open_in_new_netns(ready[1]);
	close(ready[1]);
	if (read(ready[0], buffer, 1) != 1)
		fail("the process in the network namespace");
	for (long i = 0; i < options.count; i++)
		count_connection(i % KINDS);
	opened[CLIENT][ACTIVE] += options.count;
	opened[SERVER][PASSIVE] += options.count;
	check(bind(listening, (struct sockaddr *)&any, sizeof(any)), "bind"); /* else it is told nothing */
	set_option(listening, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_NSID, "RTNLGRP_NSID");
	name_netns_of(child, asking, child);
	kill_child(child);
	await_end(listening, child);
	events[netns_destroyed_event] = 1;
}

#endif
