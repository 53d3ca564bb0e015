/* SPDX-License-Identifier: GPL-2.0 */
/* Datagrams that reach a UDP socket and that nobody will ever read. */
#ifndef DROPS_H
#define DROPS_H

#include "made.h"
#include "pairs.h"
#include "sockets.h"
#include <netinet/udp.h>

enum cause { BUFFER, FILTER, CHECKSUM, SHORT, CAUSES }; /* the last: closed after the flood */
enum { FLOODED = 100 };

static int new_victim(enum cause cause, enum kind kind)
{
	int fd = bound(kind, SOCK_DGRAM, 0, 0);

	if (cause == FILTER)
		drop_all(fd);
	else if (cause != CHECKSUM)
		set_option(fd, SOL_SOCKET, SO_RCVBUF, 1, "SO_RCVBUF");
	return fd;
}

static void send_to_victim(enum kind kind, int port)
{
	struct address to = server_address(kind, port);
	int fd = new_socket(kind, SOCK_DGRAM, 0);

	for (int i = 0; i < FLOODED; i++)
		check(sendto(fd, buffer, DATAGRAM, 0, &to.any, to.length), "sendto");
	close(fd);
}

/* Too long to be looked at before the socket has it: it is dropped when it should be read. */
static void send_wrong_checksums(enum kind kind, int port)
{
	enum kind packets = packet_family[kind] == IPV4 ? V4 : V6;
	struct address to = server_address(packets, 0);
	struct udphdr *header = (struct udphdr *)buffer;
	int fd = new_socket(packets, SOCK_RAW, IPPROTO_UDP);

	drop_all(fd); /* it gets a copy of all that comes */
	*header = (struct udphdr){.source = htons(CLOSED_PORT), .dest = htons(port), .check = htons(1)};
	header->len = htons(sizeof(*header) + DATAGRAM);
	for (int i = 0; i < FLOODED; i++)
		check(sendto(fd, buffer, sizeof(*header) + DATAGRAM, 0, &to.any, to.length), "sendto");
	close(fd);
}

/* Until each datagram has been read or dropped. */
static void drain(int fd)
{
	static char received[DATAGRAM];

	for (uint32_t n = 0; n + drops_of(fd) < FLOODED;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		if (recv(fd, received, sizeof(received), MSG_DONTWAIT) >= 0)
			n++;
		else
			poll(&p, 1, 1);
	}
}

static void count_drops(int fd, enum cause cause)
{
	events[udp_drops_event] += drops_of(fd);
	events[udp_drops_buffer_event + cause] += drops_of(fd);
}

/* How many there are while the sockets live, and how many at last: the same. */
static void udp_drops(void)
{
	int *victims = calloc(options.count, sizeof(*victims));

	enter(SERVER);
	for (long i = 0; i < options.count; i++)
		victims[i] = new_victim(i % CAUSES, i / CAUSES % KINDS);
	enter(CLIENT);
	for (long i = 0; i < options.count; i++) {
		enum cause cause = i % CAUSES;
		enum kind kind = i / CAUSES % KINDS;

		if (cause == CHECKSUM)
			send_wrong_checksums(kind, port_of(victims[i]));
		else
			send_to_victim(kind, port_of(victims[i]));
		drain(victims[i]);
		count_drops(victims[i], cause);
		if (cause == SHORT)
			close(victims[i]);
	}
	say_ready();
	await_input_end();
	for (long i = 0; i < options.count; i++)
		if (i % CAUSES != SHORT)
			close(victims[i]);
}

#endif
