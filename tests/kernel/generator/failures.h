/* SPDX-License-Identifier: GPL-2.0 */
/* Connections that never came about. */
#ifndef FAILURES_H
#define FAILURES_H

#include "ends.h"

static int silent[KINDS];

static int connecting(enum kind kind)
{
	struct address a = server_address(kind, port_of(silent[kind]));
	int fd = new_socket(kind, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (!connect(fd, &a.any, a.length) || errno != EINPROGRESS)
		fail("a connection to a silent port");
	return fd;
}

static void abort_by_close(enum kind kind)
{
	close(connecting(kind));
	failed[CLIENT][CONNECT_ABORTED]++;
	events[aborted_by_close_event]++;
}

static void abort_by_disconnect(enum kind kind)
{
	int fd = connecting(kind);

	disconnect(fd);
	failed[CLIENT][CONNECT_ABORTED]++;
	events[aborted_by_disconnect_event]++;
	close(fd);
}

static void abort_by_shutdown(enum kind kind)
{
	int fd = connecting(kind);

	check(shutdown(fd, SHUT_WR), "shutdown");
	failed[CLIENT][CONNECT_ABORTED]++;
	events[aborted_by_shutdown_event]++;
	close(fd);
}

static void refuse_then_connect(enum kind kind)
{
	int client = new_socket(kind, SOCK_STREAM, 0);

	refuse(client, kind);
	connect_to(client, kind, port_of(listeners[kind]));
	close_in_turn(client, accept_one(kind));
	events[refused_reused_event]++;
}

/* Giving up takes seconds, so all do it at the same time and are waited for together. */
static int *giving_up;
static long giving_up_count;

static void give_up_later(int fd)
{
	giving_up = reallocarray(giving_up, giving_up_count + 1, sizeof(*giving_up));
	giving_up[giving_up_count++] = fd;
}

static void time_out_by_user(enum kind kind)
{
	int fd = connecting(kind);

	set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 500, "TCP_USER_TIMEOUT");
	give_up_later(fd);
	events[timed_out_user_event]++;
}

static void time_out_by_retries(enum kind kind)
{
	int fd = connecting(kind);

	set_option(fd, IPPROTO_TCP, TCP_SYNCNT, 1, "TCP_SYNCNT");
	give_up_later(fd);
	events[timed_out_retries_event]++;
}

static int error_of(int fd)
{
	int error;
	socklen_t length = sizeof(error);

	check(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), "SO_ERROR");
	return error;
}

static void await_giving_up(void)
{
	for (long i = 0; i < giving_up_count; i++) {
		await_readable(giving_up[i]);
		errno = error_of(giving_up[i]);
		if (errno != ETIMEDOUT)
			fail("a connection that should have timed out");
		failed[CLIENT][CONNECT_TIMED_OUT]++;
		close(giving_up[i]);
	}
}

#endif
