/* SPDX-License-Identifier: GPL-2.0 */
/* Both ends of connections, in one thread: what one has done, the other waits for. */
#ifndef ENDS_H
#define ENDS_H

#include "made.h"
#include "tcp.h"
#include "tcp_info.h"

struct ends {
	int client, server;
};

/* Both are known to be open before anything else happens to them. */
static struct ends open_ends(enum kind kind)
{
	struct ends ends = {connect_one(kind), accept_one(kind)};

	await_state(ends.client, STATE_ESTABLISHED);
	await_state(ends.server, STATE_ESTABLISHED);
	return ends;
}

static void converse(int first, int second)
{
	send_all(first, REQUEST);
	receive_all(second, REQUEST);
	send_all(second, REPLY);
	receive_all(first, REPLY);
}

static void close_at_once(int first, int second)
{
	close(first);
	receive_end(second);
	close(second);
}

static void close_in_turn(int first, int second)
{
	converse(first, second);
	close_at_once(first, second);
}

/* Changing the cgroup takes long, so the server's sockets are made ahead of their use. */
static int server_socket(enum kind kind)
{
	static struct {
		int fds[BATCH], left;
	} pools[FAMILIES], *pool;

	pool = &pools[kind == V4 ? IPV4 : IPV6];
	if (!pool->left) {
		enter(SERVER);
		while (pool->left < BATCH)
			pool->fds[pool->left++] = new_socket(kind, SOCK_STREAM, 0);
		enter(CLIENT);
	}
	return pool->fds[--pool->left];
}

static int server_listener(enum kind kind)
{
	int fd = server_socket(kind);

	bind_wildcard(fd, kind, 0);
	check(listen(fd, BATCH), "listen");
	return fd;
}

/* A port that never answers, and that others may be bound to as well. */
static int silent_listener(enum kind kind)
{
	int fd = server_socket(kind);

	set_option(fd, SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT");
	bind_wildcard(fd, kind, 0);
	drop_all(fd);
	check(listen(fd, BATCH), "listen");
	return fd;
}

static int client_of(int listener, enum kind kind)
{
	int fd = new_socket(kind, SOCK_STREAM, 0);

	connect_to(fd, kind, port_of(listener));
	return fd;
}

#endif
