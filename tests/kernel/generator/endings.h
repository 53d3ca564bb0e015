/* SPDX-License-Identifier: GPL-2.0 */
/* How connections end, before and after somebody accepted them. */
#ifndef ENDINGS_H
#define ENDINGS_H

#include "ends.h"
#include <sys/prctl.h>

static void reset_one(int first, int second)
{
	converse(first, second);
	reset(first);
	receive_end(second);
	close(second);
}

static void close_unread(int first, int second)
{
	send_all(second, REPLY);
	await_readable(first);
	close_at_once(first, second);
}

static void half_close(int first, int second)
{
	converse(first, second);
	check(shutdown(first, SHUT_WR), "shutdown");
	receive_end(second);
	send_all(second, REPLY);
	receive_all(first, REPLY);
	close_at_once(second, first);
}

/* The second's FIN is lost, so that the first's meets it on its way: both go through CLOSING. */
static void close_crossing(int first, int second)
{
	converse(first, second);
	drop_all(first);
	close(second);
	while (!drops_of(first))
		usleep(100);
	drop_no_more(first);
	close(first);
}

static const struct {
	enum event event;
	enum side first;
	void (*end)(int first, int second);
} endings[] = {
	{client_close_event, CLIENT, close_in_turn},
	{server_close_event, SERVER, close_in_turn},
	{client_reset_event, CLIENT, reset_one},
	{server_reset_event, SERVER, reset_one},
	{client_unread_event, CLIENT, close_unread},
	{server_unread_event, SERVER, close_unread},
	{unused_event, SERVER, close_at_once},
	{half_closed_by_client_event, CLIENT, half_close},
	{half_closed_by_server_event, SERVER, half_close},
	{simultaneous_close_event, CLIENT, close_crossing},
};
enum { ENDINGS_PLAYED = sizeof(endings) / sizeof(*endings) };

static void play_ending(int n, enum kind kind)
{
	struct ends ends = open_ends(kind);

	if (endings[n].first == CLIENT)
		endings[n].end(ends.client, ends.server);
	else
		endings[n].end(ends.server, ends.client);
	events[endings[n].event]++;
}

/* Open on the server's side too, where it is the listener's and has no file. */
static int never_accepted(int listener, enum kind kind)
{
	int client = client_of(listener, kind);

	await_queued(listener, 1);
	opened[SERVER][PASSIVE]++;
	return client;
}

static void play_unaccepted(enum kind kind)
{
	int listener = server_listener(kind), client = never_accepted(listener, kind);

	close_at_once(listener, client);
	events[unaccepted_event]++;
}

static void accept_late(enum kind kind)
{
	int listener = server_listener(kind), client = client_of(listener, kind), server;

	send_all(client, REQUEST);
	close(client);
	await_queued(listener, 1);
	server = accept_from(listener);
	close(listener);
	receive_end(server);
	close(server);
	events[accepted_late_event]++;
}

static void reset_unaccepted(enum kind kind)
{
	int listener = server_listener(kind), client = client_of(listener, kind), server;

	await_queued(listener, 1);
	reset(client);
	server = accept_from(listener);
	close(listener);
	receive_end(server);
	close(server);
	events[reset_unaccepted_event]++;
}

/* The handshake's third ACK is ignored: what opens the server's side is the first data. */
static void accept_deferred(enum kind kind)
{
	int listener = server_listener(kind), client, server;

	set_option(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 10, "TCP_DEFER_ACCEPT");
	client = client_of(listener, kind);
	send_all(client, REQUEST);
	server = accept_from(listener);
	close(listener);
	receive_all(server, REQUEST);
	close_at_once(server, client);
	events[deferred_accept_event]++;
}

/* Does not outlive this process. */
static pid_t start_child(void)
{
	pid_t child = check(fork(), "fork");

	if (!child)
		check(prctl(PR_SET_PDEATHSIG, SIGKILL), "PR_SET_PDEATHSIG");
	return child;
}

static void kill_child(pid_t child)
{
	kill(child, SIGKILL);
	check(waitpid(child, NULL, 0), "waitpid");
}

/* What comes from the child says that its end is open; its own counts die with it. */
static void kill_client(enum kind kind)
{
	pid_t child = start_child();
	int server;

	if (!child) {
		send_all(connect_one(kind), REQUEST);
		pause();
	}
	server = accept_one(kind);
	receive_all(server, REQUEST);
	opened[CLIENT][ACTIVE]++;
	count_connection(kind);
	kill_child(child);
	receive_end(server);
	close(server);
	events[killed_event]++;
}

static void kill_server(enum kind kind)
{
	int client = connect_one(kind);
	pid_t child = start_child();

	if (!child) {
		send_all(accept_one(kind), REPLY);
		pause();
	}
	receive_all(client, REPLY);
	opened[SERVER][PASSIVE]++;
	kill_child(child);
	receive_end(client);
	close(client);
	events[killed_server_event]++;
}

#endif
