/* SPDX-License-Identifier: GPL-2.0 */
/* Sockets that live on while the test does something. */
#ifndef PAIRS_H
#define PAIRS_H

#include "tcp.h"
#include "udp.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static bool input_ended(void)
{
	struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};

	return poll(&p, 1, 0) != 0;
}

/* With what was made so far. */
static void say_ready(void)
{
	print_result();
	printf("ready\n");
	fflush(stdout);
}

static void await_input_end(void)
{
	check(read(STDIN_FILENO, buffer, 1), "read");
}

/* The ends of n connections, or of n ways of datagrams. */
struct pairs {
	long n;
	int *fds[SIDES];
};

static struct pairs new_pairs(long n)
{
	struct pairs p = {.n = n};

	for (enum side side = 0; side < SIDES; side++)
		p.fds[side] = calloc(n, sizeof(int));
	return p;
}

static struct pairs connected_pairs(long n)
{
	struct pairs p = new_pairs(n);

	enter(SERVER);
	listen_all();
	enter(CLIENT);
	for (long i = 0; i < n; i++) {
		p.fds[CLIENT][i] = connect_one(i);
		p.fds[SERVER][i] = accept_one(i);
	}
	return p;
}

static struct pairs udp_pairs(long n)
{
	struct pairs p = new_pairs(n);

	enter(SERVER);
	for (long i = 0; i < n; i++)
		p.fds[SERVER][i] = bound(i % KINDS, SOCK_DGRAM, 0, 0);
	enter(CLIENT);
	for (long i = 0; i < n; i++) {
		struct address to = server_address(i % KINDS, port_of(p.fds[SERVER][i]));

		p.fds[CLIENT][i] = new_socket(i % KINDS, SOCK_DGRAM, 0);
		check(connect(p.fds[CLIENT][i], &to.any, to.length), "connect");
	}
	return p;
}

static struct pairs streams, datagrams;

static void make_pairs(void)
{
	streams = connected_pairs(options.count / 2);
	datagrams = udp_pairs(options.count / 2);
}

static void one_round(void)
{
	for (long i = 0; i < streams.n; i++) {
		send_all(streams.fds[CLIENT][i], REQUEST);
		receive_all(streams.fds[SERVER][i], REQUEST);
		exchange(UDP, i % KINDS, datagrams.fds[CLIENT][i], NULL, datagrams.fds[SERVER][i]);
	}
	events[rounds_event]++;
}

/* By resets, because the packets of TIME_WAIT belong to no socket and are counted nowhere but on interfaces.
 */
static void end_pairs(void)
{
	for (long i = 0; i < streams.n; i++) {
		reset(streams.fds[CLIENT][i]);
		/* a FIN that crosses the reset would find no socket */
		if (recv(streams.fds[SERVER][i], buffer, 1, 0) != -1 || errno != ECONNRESET)
			fail("a reset that did not arrive");
		close(streams.fds[SERVER][i]);
		close(datagrams.fds[CLIENT][i]);
		close(datagrams.fds[SERVER][i]);
	}
}

static void idle(void)
{
	make_pairs();
	one_round();
	say_ready();
	await_input_end();
	end_pairs();
}

static void steady(void)
{
	time_t end = time(NULL) + options.seconds;

	make_pairs();
	one_round();
	say_ready();
	while (time(NULL) < end && !input_ended())
		one_round();
	end_pairs();
}

#endif
