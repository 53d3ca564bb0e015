/* SPDX-License-Identifier: GPL-2.0 */
/* How connections come about, other than by a connect that is accepted. */
#ifndef OPENINGS_H
#define OPENINGS_H

#include "endings.h"
#include "failures.h"
#include <stdatomic.h>

/* The first to an address asks for a cookie, later ones have data in the SYN. */
static void open_fast(enum kind kind)
{
	int listener = server_listener(kind), client = new_socket(kind, SOCK_STREAM, 0), server;
	struct address to = server_address(kind, port_of(listener));

	set_option(listener, IPPROTO_TCP, TCP_FASTOPEN, BATCH, "TCP_FASTOPEN");
	if (check(sendto(client, buffer, REQUEST, MSG_FASTOPEN, &to.any, to.length), "fast open") != REQUEST)
		fail("fast open");
	server = accept_from(listener);
	close(listener);
	await_state(client, STATE_ESTABLISHED);
	await_state(server, STATE_ESTABLISHED);
	opened[CLIENT][ACTIVE]++;
	count_connection(kind);
	if (info_of(client).tcpi_options & TCPI_OPT_SYN_DATA)
		events[fast_open_used_event]++;
	else
		events[fast_open_requested_event]++;
	receive_all(server, REQUEST);
	close_in_turn(client, server);
}

struct crossing {
	int fd;
	struct address to;
	atomic_int *started;
};

static void *connect_crossing(void *argument)
{
	struct crossing *crossing = argument;

	atomic_fetch_add(crossing->started, 1);
	while (atomic_load(crossing->started) < 2)
		;
	check(connect(crossing->fd, &crossing->to.any, crossing->to.length), "connect");
	return NULL;
}

static int meeting_points[SIDES][KINDS];

static int bound_to_meet(int fd, enum side side, enum kind kind)
{
	set_option(fd, SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT");
	bind_wildcard(fd, kind, port_of(meeting_points[side][kind]));
	return fd;
}

/*
 * Two sockets that connect to each other's port. A SYN that comes before its receiver has begun goes to a
 * silent listener, so it is lost and not refused; the other, which began later, then opens both. If both
 * SYNs arrive, each socket gets a SYN-ACK after the SYN, and no ACK has to follow.
 */
static bool cross_once(enum kind kind)
{
	bool both;
	atomic_int started = 0;
	int client = bound_to_meet(new_socket(kind, SOCK_STREAM, 0), CLIENT, kind);
	int server = bound_to_meet(server_socket(kind), SERVER, kind);
	struct crossing there = {client, server_address(kind, port_of(server)), &started};
	struct crossing back = {server, server_address(kind, port_of(client)), &started};
	pthread_t other;

	pthread_create(&other, NULL, connect_crossing, &back);
	connect_crossing(&there);
	pthread_join(other, NULL);
	await_state(client, STATE_ESTABLISHED);
	await_state(server, STATE_ESTABLISHED);
	opened[CLIENT][ACTIVE]++;
	opened[SERVER][ACTIVE]++;
	count_connection(kind);
	events[simultaneous_open_event]++;
	both = info_of(client).tcpi_segs_in > 1 && info_of(server).tcpi_segs_in > 1;
	events[simultaneous_open_both_event] += both;
	reset_one(client, server); /* leaves no TIME_WAIT: the next has the same addresses */
	return both;
}

static void open_crossing(enum kind kind)
{
	enum { TRIES = 20 };

	for (int tries = 0; tries < TRIES && !cross_once(kind); tries++)
		;
}

static void connect_to_self(enum kind kind)
{
	int fd = new_socket(kind, SOCK_STREAM, 0);

	bind_wildcard(fd, kind, 0);
	connect_to(fd, kind, port_of(fd));
	converse(fd, fd);
	close(fd);
	events[self_connect_event]++;
}

static void open_by_cookie(enum kind kind)
{
	struct ends ends;

	set_sysctl("ipv4/tcp_syncookies", "2");
	ends = open_ends(kind);
	set_sysctl("ipv4/tcp_syncookies", "1");
	close_in_turn(ends.client, ends.server);
	events[syn_cookie_event]++;
}

/* One socket, many connections: with data and without, ended by it and by the other. */
static void reuse(enum kind kind)
{
	enum { REUSES = 6 };
	int client = new_socket(kind, SOCK_STREAM, 0);

	for (int i = 0; i < REUSES; i++) {
		int server;

		connect_to(client, kind, port_of(listeners[kind]));
		server = accept_one(kind);
		await_state(server, STATE_ESTABLISHED);
		if (i % 2)
			converse(client, server);
		if (i % 3 == 2) {
			close(server);
			receive_end(client);
			disconnect(client);
		} else {
			disconnect(client);
			receive_end(server);
			close(server);
		}
		events[reused_event]++;
	}
	close(client);
}

/* A listener that connects when its time is over. */
static void turn(enum kind kind)
{
	int fd = server_listener(kind), client = client_of(fd, kind);
	struct address to = server_address(kind, port_of(listeners[kind]));

	close_in_turn(client, accept_from(fd));
	disconnect(fd);
	check(connect(fd, &to.any, to.length), "connect");
	opened[SERVER][ACTIVE]++;
	close_in_turn(fd, accept_one(kind));
	events[turned_event]++;
}

static int mptcp_listeners[KINDS];

static void listen_mptcp(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_MPTCP);

	if (fd < 0) {
		events[mptcp_absent_event] = 1;
		return;
	}
	close(fd);
	for (enum kind kind = 0; kind < KINDS; kind++) {
		mptcp_listeners[kind] = bound(kind, SOCK_STREAM, IPPROTO_MPTCP, 0);
		check(listen(mptcp_listeners[kind], BATCH), "listen");
	}
}

/* One subflow, whose state is what TCP_INFO says. */
static void open_mptcp(enum kind kind)
{
	struct ends ends;

	if (events[mptcp_absent_event])
		return;
	ends.client = new_socket(kind, SOCK_STREAM, IPPROTO_MPTCP);
	connect_to(ends.client, kind, port_of(mptcp_listeners[kind]));
	ends.server = accept_from(mptcp_listeners[kind]);
	await_state(ends.server, STATE_ESTABLISHED);
	close_in_turn(ends.client, ends.server);
	events[mptcp_event]++;
}

#endif
