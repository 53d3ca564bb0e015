/* SPDX-License-Identifier: GPL-2.0 */
/* Connections whose TCP_INFO is final when it is read. */
#ifndef ACCOUNTS_H
#define ACCOUNTS_H

#include "ends.h"

static const int sizes[] = {0, 1, 100, 1448, 5000, 65536, 20000, 300000};
enum { SIZES = sizeof(sizes) / sizeof(*sizes) };

static bool moved(long n, long *left, const char *what)
{
	if (n < 0 && errno != EAGAIN)
		fail(what);
	if (n > 0)
		*left -= n;
	return n > 0;
}

/* Both ends are this thread, so neither may block. */
static void transfer(int from, int to, long size)
{
	enum { SIP = 2048, PAUSE = 500 }; /* bytes, microseconds */
	static char received[65536];
	long unsent = size, unread = size, mouthful = options.slow ? SIP : sizeof(received);

	while (unread) {
		struct pollfd ends[] = {{.fd = to, .events = POLLIN}, {.fd = from, .events = POLLOUT}};
		bool busy = false;

		if (unsent)
			busy |= moved(send(from, buffer, unsent, MSG_DONTWAIT | MSG_NOSIGNAL), &unsent,
				      "send");
		if (options.slow)
			usleep(PAUSE);
		busy |= moved(recv(to, received, mouthful, MSG_DONTWAIT), &unread, "recv");
		if (!busy)
			check(poll(ends, unsent ? 2 : 1, 10000), "poll");
	}
}

static bool quiet(int fd, const struct tcp_info *info)
{
	return !info->tcpi_unacked && !info->tcpi_notsent_bytes && !waiting_in(fd, SIOCOUTQ) &&
	       !waiting_in(fd, SIOCINQ);
}

/* Nothing is left to be sent, acknowledged or read, and nothing is on its way. */
static void settle(int client, int server)
{
	enum { STILL = 300 }; /* milliseconds without any segment, longer than an ACK may wait */

	for (int still = 0, before = 0; still < STILL; still++) {
		struct tcp_info c, s;
		int segments;

		set_option(client, IPPROTO_TCP, TCP_QUICKACK, 1, "TCP_QUICKACK");
		set_option(server, IPPROTO_TCP, TCP_QUICKACK, 1, "TCP_QUICKACK");
		c = info_of(client);
		s = info_of(server);
		segments = c.tcpi_segs_in + c.tcpi_segs_out + s.tcpi_segs_in + s.tcpi_segs_out;
		if (segments != before || !quiet(client, &c) || !quiet(server, &s))
			still = 0;
		/* the SYN-ACK was the listener's; more are missing if the handshake was repeated */
		if (quiet(client, &c) && quiet(server, &s) && c.tcpi_segs_out == s.tcpi_segs_in &&
		    s.tcpi_segs_out + 1 == c.tcpi_segs_in)
			return;
		before = segments;
		usleep(1000);
	}
}

static void add_counts(enum side side, const struct reading *reading)
{
	enum { TOTAL_RTO = 240 }; /* since 6.7, and not in older headers */
	uint16_t total_rto;

#define SUM(name) sums[side][name##_sum] += reading->info.tcpi_##name;
	COUNTS
#undef SUM
	if (reading->length < TOTAL_RTO + sizeof(total_rto)) {
		events[total_rto_absent_event] = 1;
		return;
	}
	memcpy(&total_rto, reading->bytes + TOTAL_RTO, sizeof(total_rto));
	sums[side][total_rto_sum] += total_rto;
}

static void add_times(enum side side, const struct reading *reading)
{
#define SUM(name) sums[side][name##_sum] += reading->info.tcpi_##name;
	TIMES
#undef SUM
}

static void repair(int fd, int value)
{
	set_option(fd, IPPROTO_TCP, TCP_REPAIR, value, "TCP_REPAIR");
}

/* Which way an account ended; whoever gets a reset has one segment more at the end. */
enum silence { SILENTLY, BY_CLIENT, BY_SERVER, SILENCES };

static void end_server(int client, int server, enum silence silence)
{
	if (silence == SILENTLY) { /* a socket under repair sends nothing when it ends */
		repair(client, TCP_REPAIR_ON);
		repair(server, TCP_REPAIR_ON);
		close(server);
	} else if (silence == BY_SERVER) {
		reset(server);
		await_state(client, STATE_CLOSE);
	}
}

static void end_account(int client, int server, enum silence silence, bool last)
{
	struct reading client_reading = read_info(client), server_reading = read_info(server);

	end_server(client, server, silence);
	if (silence == BY_SERVER)
		client_reading = read_info(client);
	if (last)
		reset(client);
	else
		disconnect(client);
	if (silence == SILENTLY && !last)
		repair(client, TCP_REPAIR_OFF_NO_WP);
	if (silence == BY_CLIENT) {
		await_state(server, STATE_CLOSE);
		server_reading = read_info(server);
		close(server);
	}
	add_counts(CLIENT, &client_reading);
	add_counts(SERVER, &server_reading);
	if (last)
		add_times(CLIENT, &client_reading);
	add_times(SERVER, &server_reading);
	events[ended_silently_event + silence]++;
}

/* A send buffer limits only where its segments have to wait: over a slow link, in more than one. */
static void shrink_buffers(int fd)
{
	if (options.slow)
		set_option(fd, SOL_SOCKET, SO_RCVBUF, 8192, "SO_RCVBUF");
	if (options.small_buffer) {
		set_option(fd, SOL_SOCKET, SO_SNDBUF, 32768, "SO_SNDBUF");
		set_option(fd, IPPROTO_TCP, TCP_MAXSEG, 4000, "TCP_MAXSEG");
	}
}

static void account(int client, enum kind kind, long i, bool last)
{
	int server = accept_one(kind), there = sizes[i % SIZES], back = sizes[i / SIZES % SIZES];

	for (long round = 0; round < options.rounds; round++) {
		transfer(client, server, there);
		transfer(server, client, back);
	}
	events[client_sent_event] += there * options.rounds;
	events[server_sent_event] += back * options.rounds;
	await_state(server, STATE_ESTABLISHED);
	settle(client, server);
	end_account(client, server, i % SILENCES, last);
}

/* The client's sockets serve for several connections each. */
static void accounts(void)
{
	enum { USES = 10 };
	int client = -1;

	enter(SERVER);
	listen_all();
	for (enum kind kind = 0; kind < DUAL; kind++)
		shrink_buffers(listeners[kind]);
	enter(CLIENT);
	for (long i = 0; i < options.count; i++) {
		enum kind kind = i / USES % KINDS;

		if (i % USES == 0) {
			client = new_socket(kind, SOCK_STREAM, 0);
			shrink_buffers(client);
		}
		connect_to(client, kind, port_of(listeners[kind]));
		account(client, kind, i, i % USES == USES - 1 || i == options.count - 1);
	}
}

#endif
