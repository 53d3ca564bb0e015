/* SPDX-License-Identifier: GPL-2.0 */
/* A socket that two threads use at the same time, each on a CPU of its own, among others that come and go. */
#ifndef SHARED_H
#define SHARED_H

#include "flood.h"
#include "made.h"
#include "sockets.h"
#include <pthread.h>

static int shared_sockets[V6 + 1];

static void send_shared(int fd, struct address *to)
{
	check(sendto(fd, buffer, DATAGRAM, 0, &to->any, to->length), "sendto");
}

static void *use_shared(void *cpu)
{
	static __thread char received[DATAGRAM];
	int own[V6 + 1];

	pin((long)cpu);
	for (long i = 0; i < options.count; i++)
		for (enum kind kind = V4; kind <= V6; kind++) {
			struct address to = server_address(kind, port_of(shared_sockets[kind]));

			if (i % 16 == 0) {
				if (i)
					close(own[kind]);
				own[kind] = new_socket(kind, SOCK_DGRAM, 0);
			}
			send_shared(own[kind], &to);
			send_shared(shared_sockets[kind], &to);
			while (recv(shared_sockets[kind], received, DATAGRAM, MSG_DONTWAIT) > 0)
				;
		}
	return NULL;
}

/* What finds no room in the socket's buffer has been received too. */
static void shared(void)
{
	enum { THREADS = 2 };
	pthread_t threads[THREADS];

	enter(SERVER);
	for (enum kind kind = V4; kind <= V6; kind++)
		shared_sockets[kind] = bound(kind, SOCK_DGRAM, 0, 0);
	enter(CLIENT);
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, use_shared, (void *)i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (enum kind kind = V4; kind <= V6; kind++)
		for (long i = 0; i < THREADS * options.count; i++) {
			count_payload(CLIENT, UDP, kind, TRANSMIT, sizeof(struct udphdr), DATAGRAM);
			count_payload(SERVER, UDP, kind, TRANSMIT, sizeof(struct udphdr), DATAGRAM);
			count_payload(SERVER, UDP, kind, RECEIVE, sizeof(struct udphdr), DATAGRAM);
			count_payload(SERVER, UDP, kind, RECEIVE, sizeof(struct udphdr), DATAGRAM);
		}
}

#endif
