/* SPDX-License-Identifier: GPL-2.0 */
/* Sockets and their addresses, whichever the side and the kind. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include "common.h"
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* Sockets made from now on belong to this side. */
static void enter(enum side side)
{
	if (options.cgroup[side] >= 0)
		check(write(options.cgroup[side], "0", 1), "joining the cgroup");
	if (options.netns[side] >= 0)
		check(setns(options.netns[side], CLONE_NEWNET), "entering the network namespace");
}

struct address {
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	};
	socklen_t length;
};

static struct address address_of(enum kind kind, const char *v4, const char *v6, int port)
{
	struct address a = {};
	char mapped[64];

	if (kind == V4) {
		a.v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
		inet_pton(AF_INET, v4, &a.v4.sin_addr);
		a.length = sizeof(a.v4);
		return a;
	}
	a.v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
	snprintf(mapped, sizeof(mapped), "::ffff:%s", v4);
	inet_pton(AF_INET6, kind == MAPPED ? mapped : v6, &a.v6.sin6_addr);
	a.length = sizeof(a.v6);
	return a;
}

static struct address server_address(enum kind kind, int port)
{
	return address_of(kind, options.v4, options.v6, port);
}

static int new_socket(enum kind kind, int type, int protocol)
{
	return check(socket(socket_family[kind], type | SOCK_CLOEXEC, protocol), "socket");
}

static int port_of(int fd)
{
	struct address a = {.length = sizeof(a.v6)};

	check(getsockname(fd, &a.any, &a.length), "getsockname");
	return ntohs(a.any.sa_family == AF_INET ? a.v4.sin_port : a.v6.sin6_port);
}

/* A socket on the wildcard address; port 0 is any. */
static int bound(enum kind kind, int type, int protocol, int port)
{
	struct address a = address_of(kind == MAPPED ? DUAL : kind, "0.0.0.0", "::", port);
	int fd = new_socket(kind, type, protocol), only = kind == V6;

	if (kind != V4)
		check(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only)), "IPV6_V6ONLY");
	/* whoever looks at a file (lsof, say) holds it open for a moment longer than its owner */
	for (int tries = 0; bind(fd, &a.any, a.length); tries++) {
		if (errno != EADDRINUSE || !port || tries == 1000)
			fail("bind");
		usleep(100);
	}
	return fd;
}

static void send_all(int fd, int size)
{
	while (size)
		size -= check(send(fd, buffer, size, MSG_NOSIGNAL), "send");
}

static void receive_all(int fd, int size)
{
	if (check(recv(fd, buffer, size, MSG_WAITALL), "recv") != size)
		fail("recv: the connection ended early");
}

static void receive_end(int fd)
{
	static __thread char rest[4096];

	while (recv(fd, rest, sizeof(rest), 0) > 0)
		;
}

static void await_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (check(poll(&p, 1, 10000), "poll") == 0) {
		errno = ETIMEDOUT;
		fail("nothing came");
	}
}

static void reset(int fd)
{
	struct linger now = {.l_onoff = 1};

	check(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)), "SO_LINGER");
	close(fd);
}

#endif
