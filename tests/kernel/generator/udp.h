/* SPDX-License-Identifier: GPL-2.0 */
/* Datagrams: both sides are this thread, each waits for what the other sent. */
#ifndef UDP_H
#define UDP_H

#include "made.h"
#include "sockets.h"
#include <netinet/udp.h>

static void send_datagram(enum side side, enum protocol protocol, enum kind kind, int fd, struct address *to)
{
	check(sendto(fd, buffer, DATAGRAM, 0, to ? &to->any : NULL, to ? to->length : 0), "sendto");
	count_payload(side, protocol, kind, TRANSMIT, sizeof(struct udphdr), DATAGRAM);
}

static struct address receive_datagram(enum side side, enum protocol protocol, enum kind kind, int fd)
{
	struct address from = {.length = sizeof(from.v6)};
	long size;

	await_readable(fd);
	size = check(recvfrom(fd, buffer, sizeof(buffer), 0, &from.any, &from.length), "recvfrom");
	count_payload(side, protocol, kind, RECEIVE, sizeof(struct udphdr), size);
	return from;
}

/* A datagram there and one back. */
static void exchange(enum protocol protocol, enum kind kind, int client, struct address *to, int server)
{
	struct address from;

	send_datagram(CLIENT, protocol, kind, client, to);
	from = receive_datagram(SERVER, protocol, kind, server);
	send_datagram(SERVER, protocol, kind, server, &from);
	receive_datagram(CLIENT, protocol, kind, client);
}

static void udp(void)
{
	int sinks[KINDS];

	enter(SERVER);
	for (enum kind kind = 0; kind < DUAL; kind++)
		sinks[kind] = bound(kind, SOCK_DGRAM, 0, 0);
	sinks[DUAL] = sinks[MAPPED];
	enter(CLIENT);
	for (long i = 0; i < options.count; i++) {
		enum kind kind = i % KINDS;
		int sink = sinks[kind], fd = new_socket(kind, SOCK_DGRAM, 0);
		struct address to = server_address(kind, port_of(sink)), from;

		switch (i / KINDS % 5) {
		case 0:
			exchange(UDP, kind, fd, &to, sink);
			events[udp_answered_event]++;
			break;
		case 1:
			check(connect(fd, &to.any, to.length), "connect");
			exchange(UDP, kind, fd, NULL, sink);
			events[udp_connected_event]++;
			break;
		case 2:
			to = server_address(kind, CLOSED_PORT);
			check(connect(fd, &to.any, to.length), "connect");
			send_datagram(CLIENT, UDP, kind, fd, NULL);
			events[udp_refused_event]++;
			break;
		case 3:
			send_datagram(CLIENT, UDP, kind, fd, &to);
			from = receive_datagram(SERVER, UDP, kind, sink);
			send_datagram(SERVER, UDP, kind, sink, &from);
			await_readable(fd);
			count_payload(CLIENT, UDP, kind, RECEIVE, sizeof(struct udphdr), DATAGRAM);
			events[udp_unread_event]++;
			break;
		case 4: /* where the socket allows it, both families over one */
			exchange(UDP, kind, fd, &to, sink);
			if (kind == MAPPED || kind == DUAL) {
				enum kind other = kind == MAPPED ? DUAL : MAPPED;

				to = server_address(other, port_of(sink));
				exchange(UDP, other, fd, &to, sink);
				events[udp_dual_event]++;
			}
			break;
		}
		close(fd);
	}
}

#endif
