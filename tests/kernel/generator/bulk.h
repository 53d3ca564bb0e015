/* SPDX-License-Identifier: GPL-2.0 */
/* Bulk: the kernel cuts what is sent into segments of its own choice. */
#ifndef BULK_H
#define BULK_H

#include "tcp.h"
#include "tcp_info.h"

static void *read_bulk(void *fd)
{
	receive_end((long)fd);
	return NULL;
}

static void bulk(void)
{
	enum kind kind = options.family == 6 ? V6 : V4;
	struct tcp_info info;
	int client, server;
	pthread_t reader;

	enter(SERVER);
	listen_all();
	enter(CLIENT);
	client = connect_one(kind);
	server = accept_one(kind);
	pthread_create(&reader, NULL, read_bulk, (void *)(long)server);
	for (long i = 0; i < options.count; i++)
		send_all(client, sizeof(buffer));
	do {
		usleep(100000); /* longer than an ACK may wait */
		info = info_of(client);
	} while (info.tcpi_unacked || info.tcpi_notsent_bytes);
	events[client_segments_in_event] = info.tcpi_segs_in;
	events[client_segments_out_event] = info.tcpi_segs_out;
	info = info_of(server);
	events[server_segments_in_event] = info.tcpi_segs_in;
	events[server_segments_out_event] = info.tcpi_segs_out;
	reset(client);
	pthread_join(reader, NULL);
}

#endif
