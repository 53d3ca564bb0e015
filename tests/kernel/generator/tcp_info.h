/* SPDX-License-Identifier: GPL-2.0 */
/* What the kernel says of a connection. */
#ifndef TCP_INFO_H
#define TCP_INFO_H

#include "sockets.h"
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <sys/ioctl.h>

/* include/net/tcp_states.h; netinet/tcp.h has them too, but does not go with linux/tcp.h. */
enum { STATE_ESTABLISHED = 1, STATE_TIME_WAIT = 6, STATE_CLOSE = 7 };

enum { AWAIT_LIMIT = 10000 }; /* milliseconds */

/* As the kernel has it, which may know more than the headers here. */
struct reading {
	union {
		struct tcp_info info;
		unsigned char bytes[512];
	};
	socklen_t length;
};

static struct reading read_info(int fd)
{
	struct reading reading = {.length = sizeof(reading.bytes)};

	check(getsockopt(fd, IPPROTO_TCP, TCP_INFO, reading.bytes, &reading.length), "TCP_INFO");
	return reading;
}

static struct tcp_info info_of(int fd)
{
	return read_info(fd).info;
}

static void await_state(int fd, int state)
{
	for (int waited = 0; info_of(fd).tcpi_state != state; waited++) {
		if (waited == AWAIT_LIMIT) {
			errno = ETIMEDOUT;
			fail("a connection did not reach its state");
		}
		usleep(1000);
	}
}

/* Connections that a listener holds and nobody accepted yet; by then they are open on its side. */
static void await_queued(int listener, unsigned int n)
{
	for (int waited = 0; info_of(listener).tcpi_unacked < n; waited++) {
		if (waited == AWAIT_LIMIT) {
			errno = ETIMEDOUT;
			fail("a connection did not reach its listener");
		}
		usleep(1000);
	}
}

static int waiting_in(int fd, int request)
{
	int bytes;

	check(ioctl(fd, request, &bytes), "ioctl");
	return bytes;
}

#endif
