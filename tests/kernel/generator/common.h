/* SPDX-License-Identifier: GPL-2.0 */
/* Who and what there is, the options, and how it all fails. */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum side { CLIENT, SERVER, SIDES };
enum protocol { OTHER, TCP, UDP, ICMP, PROTOCOLS };
enum family { IPV4, IPV6, FAMILIES };
enum direction { RECEIVE, TRANSMIT, DIRECTIONS };

/* How a client reaches a server; the last two go to a dual-stack socket. */
enum kind { V4, V6, MAPPED, DUAL, KINDS };

static const char *const side_names[] = {"client", "server"};
static const char *const protocol_names[] = {"other", "tcp", "udp", "icmp"};
static const char *const family_names[] = {"ipv4", "ipv6"};
static const enum family packet_family[] = {IPV4, IPV6, IPV4, IPV6};
static const int socket_family[] = {AF_INET, AF_INET6, AF_INET6, AF_INET6};

enum {
	CLOSED_PORT = 1, /* outside the range of ephemeral ports, where a connect could meet itself */
	FLOOD_PORT = 20000,
	RAW_PROTOCOL = 253, /* for experiments, RFC 3692 */
	REQUEST = 100,
	REPLY = 700,
	DATAGRAM = 100,
	SEGMENTS = 64, /* in a datagram of the flood; the most that old kernels take */
	SEGMENT = 16,
	BATCH = 50,
	TIME_LIMIT = 600,
};

static struct {
	long count, seconds, family, keep, rounds, backlog;
	bool slow, small_buffer;
	const char *v4, *v6;
	int cgroup[SIDES], netns[SIDES]; /* file descriptors, or -1 */
} options = {.count = 100,
	     .seconds = 60,
	     .rounds = 1,
	     .backlog = 8,
	     .v4 = "127.0.0.1",
	     .v6 = "::1",
	     .cgroup = {-1, -1},
	     .netns = {-1, -1}};

static char buffer[1 << 20];

static void fail(const char *what)
{
	fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long check(long result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

#endif
