/* SPDX-License-Identifier: GPL-2.0 */
/* Sockets and their addresses, whichever the side and the kind. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include "common.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
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

static struct address own_address(int fd)
{
	struct address a = {.length = sizeof(a.v6)};

	check(getsockname(fd, &a.any, &a.length), "getsockname");
	return a;
}

static int port_of(int fd)
{
	struct address a = own_address(fd);

	return ntohs(a.any.sa_family == AF_INET ? a.v4.sin_port : a.v6.sin6_port);
}

/* To the wildcard address; port 0 is any. */
static void bind_wildcard(int fd, enum kind kind, int port)
{
	struct address a = address_of(kind == MAPPED ? DUAL : kind, "0.0.0.0", "::", port);
	int only = kind == V6;

	if (kind != V4)
		check(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only)), "IPV6_V6ONLY");
	/* whoever looks at a file (lsof, say) holds it open for a moment longer than its owner */
	for (int tries = 0; bind(fd, &a.any, a.length); tries++) {
		if (errno != EADDRINUSE || !port || tries == 1000)
			fail("bind");
		usleep(100);
	}
}

static int bound(enum kind kind, int type, int protocol, int port)
{
	int fd = new_socket(kind, type, protocol);

	bind_wildcard(fd, kind, port);
	return fd;
}

static void set_option(int fd, int level, int name, int value, const char *what)
{
	check(setsockopt(fd, level, name, &value, sizeof(value)), what);
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

/* The address stays the socket's own only if it was bound to it. */
static void disconnect(int fd)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	check(connect(fd, &nobody, sizeof(nobody)), "disconnecting");
}

/* Whatever comes for this socket is lost, as if on its way. */
static void drop_all(int fd)
{
	struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sock_fprog program = {1, &nothing};

	check(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)), "SO_ATTACH_FILTER");
}

static void drop_no_more(int fd)
{
	set_option(fd, SOL_SOCKET, SO_DETACH_FILTER, 0, "SO_DETACH_FILTER");
}

static uint32_t drops_of(int fd)
{
	uint32_t info[SK_MEMINFO_VARS];
	socklen_t length = sizeof(info);

	check(getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &length), "SO_MEMINFO");
	return info[SK_MEMINFO_DROPS];
}

static void set_sysctl(const char *name, const char *value)
{
	char path[128];
	int fd;

	/* under /proc/sys/net a path means the network namespace of whoever opens it */
	snprintf(path, sizeof(path), "/proc/sys/net/%s", name);
	fd = check(open(path, O_WRONLY | O_CLOEXEC), path);
	check(write(fd, value, strlen(value)), path);
	close(fd);
}

#endif
