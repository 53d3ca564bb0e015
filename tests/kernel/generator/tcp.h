/* SPDX-License-Identifier: GPL-2.0 */
/* Connections, and every way in which they end. */
#ifndef TCP_H
#define TCP_H

#include "made.h"
#include "sockets.h"
#include "tcp_info.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

enum ending {
	CLIENT_CLOSE,
	SERVER_CLOSE,
	CLIENT_RESET,
	SERVER_RESET,
	CLIENT_UNREAD, /* closed with unread data: the kernel resets after the state is CLOSE */
	SERVER_UNREAD,
	UNUSED, /* accepted and closed at once */
	REFUSED,
	ENDINGS
};

static int listeners[KINDS];

static void listen_all(void)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		if (kind == DUAL) {
			listeners[DUAL] = listeners[MAPPED];
			break;
		}
		listeners[kind] = bound(kind, SOCK_STREAM, 0, 0);
		check(listen(listeners[kind], 4096), "listen");
	}
}

/* Both threads go through the same list of connections. */
static enum ending ending_of(long i)
{
	return i / KINDS % ENDINGS;
}

static int accept_from(int listener)
{
	int fd = check(accept(listener, NULL, NULL), "accept");

	opened[SERVER][PASSIVE]++;
	return fd;
}

static int accept_one(long i)
{
	return accept_from(listeners[i % KINDS]);
}

static void count_connection(enum kind kind)
{
	events[connections_ipv4_event + packet_family[kind]]++;
	events[mapped_event] += kind == MAPPED;
}

static void connect_to(int fd, enum kind kind, int port)
{
	struct address a = server_address(kind, port);

	check(connect(fd, &a.any, a.length), "connect");
	opened[CLIENT][ACTIVE]++;
	count_connection(kind);
}

static int connect_one(long i)
{
	enum kind kind = i % KINDS;
	int fd = new_socket(kind, SOCK_STREAM, 0);

	connect_to(fd, kind, port_of(listeners[kind]));
	return fd;
}

static void *serve(void *unused)
{
	static char message[REPLY]; /* the reply begins with the request */

	for (long i = 0; i < options.count; i++) {
		enum ending ending = ending_of(i);
		int fd;

		if (ending == REFUSED)
			continue;
		fd = accept_one(i);
		if (ending == SERVER_UNREAD || ending == UNUSED) {
			if (ending == SERVER_UNREAD)
				await_readable(fd);
			close(fd);
			continue;
		}
		check(recv(fd, message, REQUEST, MSG_WAITALL), "recv");
		check(send(fd, message, REPLY, MSG_NOSIGNAL), "send");
		if (ending == SERVER_RESET) {
			reset(fd);
			continue;
		}
		if (ending != SERVER_CLOSE)
			receive_end(fd);
		close(fd);
	}
	return NULL;
}

static void refuse(int fd, enum kind kind)
{
	struct address a = server_address(kind, CLOSED_PORT);

	if (!connect(fd, &a.any, a.length) || errno != ECONNREFUSED)
		fail("a connection to a closed port was not refused");
	failed[CLIENT][CONNECT_REFUSED]++;
	events[tcp_refused_event]++;
}

static void refused(enum kind kind)
{
	int fd = new_socket(kind, SOCK_STREAM, 0);

	refuse(fd, kind);
	close(fd);
}

static void one_connection(long i)
{
	static char reply[REPLY];
	enum ending ending = ending_of(i);
	int fd;

	if (ending == REFUSED) {
		refused(i % KINDS);
		return;
	}
	fd = connect_one(i);
	if (ending != UNUSED)
		send_all(fd, REQUEST);
	if (ending == CLIENT_UNREAD)
		await_readable(fd);
	else if (ending == SERVER_CLOSE || ending == SERVER_RESET || ending == SERVER_UNREAD ||
		 ending == UNUSED)
		receive_end(fd);
	else
		check(recv(fd, reply, REPLY, MSG_WAITALL), "recv");
	if (ending == CLIENT_RESET)
		reset(fd);
	else
		close(fd);
	events[client_close_event + ending]++;
}

static void tcp(void)
{
	pthread_t server;

	enter(SERVER);
	listen_all();
	enter(CLIENT);
	pthread_create(&server, NULL, serve, NULL);
	for (long i = 0; i < options.count; i++)
		one_connection(i);
	pthread_join(server, NULL);
}

static void unaccepted(void)
{
	int fds[BATCH], queued[KINDS] = {};

	for (int i = 0; i < BATCH; i++)
		queued[i % KINDS == DUAL ? MAPPED : i % KINDS]++;
	for (long done = 0; done < options.count; done += BATCH) {
		enter(SERVER);
		listen_all();
		enter(CLIENT);
		for (long i = 0; i < BATCH; i++)
			fds[i] = connect_one(i);
		for (enum kind kind = 0; kind < DUAL; kind++) {
			await_queued(listeners[kind], queued[kind]);
			close(listeners[kind]);
		}
		opened[SERVER][PASSIVE] += BATCH;
		for (long i = 0; i < BATCH; i++) {
			receive_end(fds[i]);
			close(fds[i]);
			events[unaccepted_event]++;
		}
	}
}

static void killed(void)
{
	int ready[2], accepted[BATCH];
	pid_t child;

	enter(SERVER);
	listen_all();
	enter(CLIENT);
	for (long done = 0; done < options.count; done += BATCH) {
		check(pipe2(ready, O_CLOEXEC), "pipe");
		child = check(fork(), "fork");
		if (!child) {
			for (long i = 0; i < BATCH; i++)
				send_all(connect_one(i), REQUEST);
			check(write(ready[1], "", 1), "write");
			pause();
			exit(0);
		}
		check(read(ready[0], buffer, 1), "read");
		for (long i = 0; i < BATCH; i++) {
			accepted[i] = accept_one(i);
			receive_all(accepted[i], REQUEST);
			if (i % 2) /* unread when its reader dies */
				send_all(accepted[i], REPLY);
		}
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		for (long i = 0; i < BATCH; i++) {
			receive_end(accepted[i]);
			close(accepted[i]);
			events[killed_event]++;
			/* the child's own counts died with it */
			opened[CLIENT][ACTIVE]++;
			count_connection(i % KINDS);
		}
		close(ready[0]);
		close(ready[1]);
	}
}

#endif
