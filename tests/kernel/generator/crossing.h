/* SPDX-License-Identifier: GPL-2.0 */
/* One side ends a connection while a segment of the other is on its way: whose packet finds it, and when? */
#ifndef CROSSING_H
#define CROSSING_H

#include "flood.h"
#include "tcp.h"
#include <sched.h>
#include <stdatomic.h>

static atomic_long accepted_crossing, over_crossing;

/* Not sleeping: the two are to go on at the same moment, if there are two CPUs. */
static void await_count(atomic_long *count, long wanted)
{
	for (long spins = 0; atomic_load(count) < wanted; spins++)
		if (spins > 100000)
			sched_yield();
}

static void dawdle(unsigned int *seed)
{
	enum { LONGEST = 600 };

	for (volatile int left = rand_r(seed) % LONGEST; left > 0; left--)
		;
}

static void *end_crossing(void *unused)
{
	unsigned int seed = 1;

	pin(1);
	for (long i = 0; i < options.count; i++) {
		int fd = accept_one(i);

		atomic_store(&accepted_crossing, i + 1);
		dawdle(&seed);
		reset(fd);
		await_count(&over_crossing, i + 1);
	}
	return NULL;
}

static int connect_once(enum kind kind)
{
	struct address a = server_address(kind, port_of(listeners[kind]));
	int fd = new_socket(kind, SOCK_STREAM, 0);

	/* it was established, or nobody had accepted it; by now it may be reset */
	if (connect(fd, &a.any, a.length) && errno != ECONNRESET)
		fail("connect");
	opened[CLIENT][ACTIVE]++;
	count_connection(kind);
	return fd;
}

static void crossing(void)
{
	unsigned int seed = 2;
	pthread_t server;

	enter(SERVER);
	listen_all();
	enter(CLIENT);
	pthread_create(&server, NULL, end_crossing, NULL);
	pin(0);
	for (long i = 0; i < options.count; i++) {
		int fd = connect_once(i % KINDS);

		await_count(&accepted_crossing, i + 1);
		dawdle(&seed);
		send(fd, buffer, 1, MSG_NOSIGNAL); /* it may be too late */
		reset(fd);
		atomic_store(&over_crossing, i + 1);
	}
	pthread_join(server, NULL);
}

#endif
