/* SPDX-License-Identifier: GPL-2.0 */
/* A listener that more connect to than its queue holds, and that accepts none. */
#ifndef OVERFLOW_H
#define OVERFLOW_H

#include "ends.h"
#include "pairs.h"

static int connect_in_vain(int listener, enum kind kind)
{
	struct address a = server_address(kind, port_of(listener));
	int fd = new_socket(kind, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (!connect(fd, &a.any, a.length) || errno != EINPROGRESS)
		fail("a connection to a full listener");
	return fd;
}

static void listen_overflow(void)
{
	enum kind kind = options.family == 6 ? V6 : V4;
	long room = options.backlog + 1; /* the kernel's own reading of it */
	int *clients = calloc(options.count, sizeof(*clients)), listener;

	enter(SERVER);
	listener = bound(kind, SOCK_STREAM, 0, 0);
	check(listen(listener, options.backlog), "listen");
	events[port_event] = port_of(listener);
	events[backlog_event] = options.backlog;
	enter(CLIENT);
	for (long i = 0; i < options.count; i++)
		if (i < room) {
			clients[i] = client_of(listener, kind);
			await_queued(listener, i + 1);
			opened[SERVER][PASSIVE]++;
		} else
			clients[i] = connect_in_vain(listener, kind);
	say_ready();
	await_input_end();
	for (long i = room; i < options.count; i++) {
		close(clients[i]);
		failed[CLIENT][CONNECT_ABORTED]++;
	}
	events[listen_drops_event] = drops_of(listener);
	close(listener);
	for (long i = 0; i < room && i < options.count; i++) {
		receive_end(clients[i]);
		close(clients[i]);
	}
}

#endif
