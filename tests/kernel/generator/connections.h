/* SPDX-License-Identifier: GPL-2.0 */
/* Connections of every kind, in turn. */
#ifndef CONNECTIONS_H
#define CONNECTIONS_H

#include "destroy.h"
#include "endings.h"
#include "failures.h"
#include "openings.h"
#include "pairs.h"

static void (*const plays[])(enum kind kind) = {
	refused,
	refuse_then_connect,
	abort_by_close,
	abort_by_disconnect,
	abort_by_shutdown,
	time_out_by_user,
	time_out_by_retries,
	play_unaccepted,
	accept_late,
	reset_unaccepted,
	accept_deferred,
	kill_client,
	kill_server,
	open_fast,
	open_fast,
	open_crossing,
	connect_to_self,
	open_by_cookie,
	reuse,
	turn,
	open_mptcp,
};
enum { PLAYS = sizeof(plays) / sizeof(*plays) };

static void (*const destructions[])(enum kind kind) = {destroy_client, destroy_server, destroy_connecting,
						       destroy_listener};
enum { DESTRUCTIONS = sizeof(destructions) / sizeof(*destructions) };

static void play(long i)
{
	enum { ALL = ENDINGS_PLAYED + PLAYS + DESTRUCTIONS };
	int n = i % ALL;
	enum kind kind = (i + i / ALL) % KINDS; /* each time around another */

	if (n < ENDINGS_PLAYED)
		play_ending(n, kind);
	else if (n < ENDINGS_PLAYED + PLAYS)
		plays[n - ENDINGS_PLAYED](kind);
	else if (!events[destroy_absent_event])
		destructions[n - ENDINGS_PLAYED - PLAYS](kind);
}

static long living_in(const char *table)
{
	FILE *file = fopen(table, "re");
	char line[512];
	unsigned int state;
	long living = 0;

	if (!file)
		fail(table);
	while (fgets(line, sizeof(line), file))
		living += sscanf(line, "%*d: %*s %*s %x", &state) == 1 && state != STATE_TIME_WAIT;
	fclose(file);
	return living;
}

/* The kernel goes on with what its owner has closed. */
static void await_over(long but)
{
	for (int waited = 0;
	     living_in("/proc/thread-self/net/tcp") + living_in("/proc/thread-self/net/tcp6") > but;
	     waited++) {
		if (waited == 600) {
			errno = ETIMEDOUT;
			fail("connections that do not end");
		}
		usleep(100000);
	}
}

static void set_up(void)
{
	if (options.netns[CLIENT] < 0) {
		errno = EINVAL;
		fail("the settings of a network namespace are changed: --client-netns");
	}
	enter(SERVER);
	set_sysctl("ipv4/tcp_fastopen", "3");
	listen_mptcp();
	streams = connected_pairs(options.keep);
	events[kept_event] = options.keep;
	for (enum kind kind = 0; kind < KINDS; kind++) {
		silent[kind] = silent_listener(kind);
		for (enum side side = 0; side < SIDES; side++)
			meeting_points[side][kind] = silent_listener(kind);
	}
	try_destroying();
}

static void tear_down(void)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		if (kind != DUAL)
			close(listeners[kind]);
		if (!events[mptcp_absent_event])
			close(mptcp_listeners[kind]);
		close(silent[kind]);
		for (enum side side = 0; side < SIDES; side++)
			close(meeting_points[side][kind]);
	}
}

static void connections(void)
{
	set_up();
	for (long i = 0; i < options.count; i++)
		play(i);
	await_giving_up();
	tear_down();
	await_over(SIDES * options.keep);
	if (!options.keep)
		return;
	say_ready();
	await_input_end();
	for (long i = 0; i < options.keep; i++)
		close_in_turn(streams.fds[CLIENT][i], streams.fds[SERVER][i]);
	await_over(0);
}

#endif
