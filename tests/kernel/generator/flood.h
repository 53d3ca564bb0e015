/* SPDX-License-Identifier: GPL-2.0 */
/* The flood: datagrams come while their socket is closed, on another CPU. */
#ifndef FLOOD_H
#define FLOOD_H

#include "made.h"
#include "sockets.h"
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <unistd.h>

static volatile bool stop;
static volatile long target; /* port * 2 + kind */
static int flood_sockets[V6 + 1];

static void pin(int cpu)
{
	cpu_set_t all, one;
	int nth = cpu;

	/* each on its own, if there are two: the race needs them to run at the same time */
	sched_getaffinity(0, sizeof(all), &all);
	if (CPU_COUNT(&all) < 2)
		return;
	CPU_ZERO(&one);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &all) && nth-- == 0)
			CPU_SET(i, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

/*
 * One send that the receiver handles as SEGMENTS datagrams, one after the other in a tight loop: the
 * socket is looked up once, so what comes after its end is late.
 */
static void send_segments(int fd, struct address *to, enum kind kind)
{
	union {
		char bytes[CMSG_SPACE(sizeof(uint16_t))];
		struct cmsghdr header;
	} control = {.header = {CMSG_LEN(sizeof(uint16_t)), IPPROTO_UDP, UDP_SEGMENT}};
	struct iovec data = {buffer, SEGMENTS * SEGMENT};
	struct msghdr message = {.msg_name = &to->any,
				 .msg_namelen = to->length,
				 .msg_iov = &data,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};

	*(uint16_t *)CMSG_DATA(&control.header) = SEGMENT;
	if (sendmsg(fd, &message, 0) != SEGMENTS * SEGMENT)
		return;
	count(CLIENT, UDP, packet_family[kind], TRANSMIT,
	      (kind == V6 ? 40 : 20) + sizeof(struct udphdr) + SEGMENTS * SEGMENT, SEGMENTS);
}

static void send_burst(int fd, struct address *to, enum kind kind)
{
	enum { BURST = 8 };
	struct iovec data = {buffer, DATAGRAM};
	struct mmsghdr messages[BURST];
	int sent;

	for (int i = 0; i < BURST; i++)
		messages[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &to->any,
							   .msg_namelen = to->length,
							   .msg_iov = &data,
							   .msg_iovlen = 1}};
	sent = sendmmsg(fd, messages, BURST, 0);
	for (int i = 0; i < sent; i++)
		count_payload(CLIENT, UDP, kind, TRANSMIT, sizeof(struct udphdr), DATAGRAM);
}

static void *send_flood(void *unused)
{
	pin(0);
	for (long i = 0; !stop; i++) {
		long at = target;
		enum kind kind = at % 2;
		struct address to = server_address(kind, at / 2);

		if (i % 8)
			send_segments(flood_sockets[kind], &to, kind);
		else
			send_burst(flood_sockets[kind], &to, kind);
	}
	return NULL;
}

static void flood(void)
{
	enum { PORTS = 4, PATIENCE = 2000 };
	pthread_t flooder;

	target = FLOOD_PORT * 2;
	enter(CLIENT);
	for (enum kind kind = V4; kind <= V6; kind++)
		flood_sockets[kind] = new_socket(kind, SOCK_DGRAM, 0);
	enter(SERVER);
	pthread_create(&flooder, NULL, send_flood, NULL);
	pin(1);
	for (long i = 0; i < options.count; i++) {
		enum kind kind = i % 2;
		int port = FLOOD_PORT + i / 2 % PORTS, fd = bound(kind, SOCK_DGRAM, 0, port);

		target = port * 2 + kind;
		for (int n = 0; n < PATIENCE && i % 8; n++) /* close in the middle of the flood, mostly */
			if (recv(fd, buffer, DATAGRAM, MSG_DONTWAIT) > 0)
				break;
		close(fd);
		events[flooded_event]++;
	}
	stop = true;
	pthread_join(flooder, NULL);
}

#endif
