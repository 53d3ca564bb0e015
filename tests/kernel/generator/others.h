/* SPDX-License-Identifier: GPL-2.0 */
/* The rest of the IP family. */
#ifndef OTHERS_H
#define OTHERS_H

#include "made.h"
#include "sockets.h"
#include "udp.h"
#include <linux/icmp.h>
#include <netinet/icmp6.h>
#include <stdbool.h>
#include <sys/stat.h>

static void udplite(enum kind kind)
{
	struct address to;
	int server, client;

	enter(SERVER);
	server = bound(kind, SOCK_DGRAM, IPPROTO_UDPLITE, 0);
	enter(CLIENT);
	client = new_socket(kind, SOCK_DGRAM, IPPROTO_UDPLITE);
	to = server_address(kind, port_of(server));
	for (long i = 0; i < options.count; i++) {
		exchange(OTHER, kind, client, &to, server);
		events[udplite_event]++;
	}
	close(client);
	close(server);
}

/* The echo is answered by the kernel, so only the client's side has figures. */
static void echo(enum kind kind, int type)
{
	bool raw = type == SOCK_RAW;
	struct address to = server_address(kind, 0);
	struct icmphdr request = {.type = kind == V4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST};
	struct icmp_filter replies4 = {~(1u << ICMP_ECHOREPLY)};
	struct icmp6_filter replies6;
	int fd;

	enter(CLIENT);
	fd = new_socket(kind, type, kind == V4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
	ICMP6_FILTER_SETBLOCKALL(&replies6);
	ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &replies6);
	if (raw && kind == V4) {
		check(setsockopt(fd, SOL_RAW, ICMP_FILTER, &replies4, sizeof(replies4)), "ICMP_FILTER");
		request.checksum = htons(~((ICMP_ECHO << 8) & 0xffff)); /* all else is 0 */
	}
	if (raw && kind == V6)
		check(setsockopt(fd, IPPROTO_ICMPV6, ICMP6_FILTER, &replies6, sizeof(replies6)),
		      "ICMP6_FILTER");
	for (long i = 0; i < options.count; i++) {
		check(sendto(fd, &request, sizeof(request), 0, &to.any, to.length), "sendto");
		count_payload(CLIENT, ICMP, kind, TRANSMIT, sizeof(request), 0);
		await_readable(fd);
		check(recv(fd, buffer, sizeof(buffer), 0), "recv");
		count_payload(CLIENT, ICMP, kind, RECEIVE, sizeof(request), 0);
		events[raw ? raw_icmp_event : ping_event]++;
	}
	close(fd);
}

/* Every raw socket of the protocol gets a packet, the sender's own too if it lives in the same namespace. */
static void raw_ip(enum kind kind)
{
	struct address to = server_address(kind, 0);
	struct stat netns[SIDES] = {};
	int fds[SIDES];
	bool echoed;

	for (enum side side = 0; side < SIDES; side++) {
		enter(side);
		fds[side] = new_socket(kind, SOCK_RAW, RAW_PROTOCOL);
		if (options.netns[side] >= 0)
			check(fstat(options.netns[side], &netns[side]), "fstat");
	}
	echoed = netns[CLIENT].st_ino == netns[SERVER].st_ino;
	for (long i = 0; i < options.count; i++) {
		check(sendto(fds[CLIENT], buffer, DATAGRAM, 0, &to.any, to.length), "sendto");
		count_payload(CLIENT, OTHER, kind, TRANSMIT, 0, DATAGRAM);
		for (enum side side = echoed ? CLIENT : SERVER; side < SIDES; side++) {
			await_readable(fds[side]);
			check(recv(fds[side], buffer, sizeof(buffer), 0), "recv");
			count_payload(side, OTHER, kind, RECEIVE, 0, DATAGRAM);
		}
		events[raw_event]++;
	}
	close(fds[CLIENT]);
	close(fds[SERVER]);
}

static void others(void)
{
	for (enum kind kind = V4; kind <= V6; kind++) {
		udplite(kind);
		echo(kind, SOCK_DGRAM);
		echo(kind, SOCK_RAW);
		raw_ip(kind);
	}
}

#endif
