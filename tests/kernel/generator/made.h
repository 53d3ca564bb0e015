/* SPDX-License-Identifier: GPL-2.0 */
/* What was made: figures that follow from the calls, and events. */
#ifndef MADE_H
#define MADE_H

#include "common.h"
#include <stdio.h>
#include <stdint.h>

static uint64_t figures[SIDES][PROTOCOLS][FAMILIES][DIRECTIONS][2]; /* bytes, packets */

static void count(enum side side, enum protocol protocol, enum family family, enum direction direction,
		  uint64_t bytes, uint64_t packets)
{
	figures[side][protocol][family][direction][0] += bytes;
	figures[side][protocol][family][direction][1] += packets;
}

/* One datagram with a payload, seen by one side. */
static void count_payload(enum side side, enum protocol protocol, enum kind kind, enum direction direction,
			  int header, int payload)
{
	int ip_header = packet_family[kind] == IPV6 ? 40 : 20;

	count(side, protocol, packet_family[kind], direction, ip_header + header + payload, 1);
}

/* Connections that reached ESTABLISHED on this side, by who began them. */
enum role { ACTIVE, PASSIVE, ROLES };
static const char *const role_names[] = {"active", "passive"};
static uint64_t opened[SIDES][ROLES];

/* Attempts that sent a SYN and came to nothing; aborted by this side itself, whatever the means. */
enum failure { CONNECT_REFUSED, CONNECT_TIMED_OUT, CONNECT_ABORTED, FAILURES };
static const char *const failure_names[] = {"refused", "timed_out", "aborted"};
static uint64_t failed[SIDES][FAILURES];

/* Sums of what TCP_INFO calls tcpi_NAME; the times go on when a socket is used again. */
#define COUNTS                                                                                               \
	SUM(bytes_acked)                                                                                     \
	SUM(bytes_received)                                                                                  \
	SUM(total_retrans)                                                                                   \
	SUM(segs_in)                                                                                         \
	SUM(segs_out)                                                                                        \
	SUM(rcv_ooopack)
#define TIMES                                                                                                \
	SUM(busy_time)                                                                                       \
	SUM(rwnd_limited)                                                                                    \
	SUM(sndbuf_limited)

#define SUM(name) name##_sum,
enum sum { COUNTS TIMES total_rto_sum, SUM_COUNT };
#undef SUM
#define SUM(name) #name,
static const char *const sum_names[] = {COUNTS TIMES "total_rto"};
#undef SUM
static uint64_t sums[SIDES][SUM_COUNT];

#define EVENTS                                                                                               \
	EVENT(client_close)                                                                                  \
	EVENT(server_close)                                                                                  \
	EVENT(client_reset)                                                                                  \
	EVENT(server_reset)                                                                                  \
	EVENT(client_unread)                                                                                 \
	EVENT(server_unread)                                                                                 \
	EVENT(unused)                                                                                        \
	EVENT(tcp_refused)                                                                                   \
	EVENT(unaccepted)                                                                                    \
	EVENT(killed)                                                                                        \
	EVENT(connections_ipv4)                                                                              \
	EVENT(connections_ipv6)                                                                              \
	EVENT(mapped)                                                                                        \
	EVENT(udp_answered)                                                                                  \
	EVENT(udp_connected)                                                                                 \
	EVENT(udp_refused)                                                                                   \
	EVENT(udp_unread)                                                                                    \
	EVENT(udp_dual)                                                                                      \
	EVENT(flooded)                                                                                       \
	EVENT(udplite)                                                                                       \
	EVENT(ping)                                                                                          \
	EVENT(raw_icmp)                                                                                      \
	EVENT(raw)                                                                                           \
	EVENT(rounds)                                                                                        \
	EVENT(client_segments_in)                                                                            \
	EVENT(client_segments_out)                                                                           \
	EVENT(server_segments_in)                                                                            \
	EVENT(server_segments_out)                                                                           \
	EVENT(accepted_late)                                                                                 \
	EVENT(reset_unaccepted)                                                                              \
	EVENT(deferred_accept)                                                                               \
	EVENT(half_closed_by_client)                                                                         \
	EVENT(half_closed_by_server)                                                                         \
	EVENT(simultaneous_close)                                                                            \
	EVENT(refused_reused)                                                                                \
	EVENT(aborted_by_close)                                                                              \
	EVENT(aborted_by_disconnect)                                                                         \
	EVENT(aborted_by_shutdown)                                                                           \
	EVENT(timed_out_user)                                                                                \
	EVENT(timed_out_retries)                                                                             \
	EVENT(fast_open_requested)                                                                           \
	EVENT(fast_open_used)                                                                                \
	EVENT(simultaneous_open)                                                                             \
	EVENT(simultaneous_open_both)                                                                        \
	EVENT(self_connect)                                                                                  \
	EVENT(syn_cookie)                                                                                    \
	EVENT(reused)                                                                                        \
	EVENT(turned)                                                                                        \
	EVENT(mptcp)                                                                                         \
	EVENT(mptcp_absent)                                                                                  \
	EVENT(killed_server)                                                                                 \
	EVENT(destroyed_client)                                                                              \
	EVENT(destroyed_server)                                                                              \
	EVENT(destroyed_connecting)                                                                          \
	EVENT(destroyed_listener)                                                                            \
	EVENT(destroy_absent)                                                                                \
	EVENT(kept)                                                                                          \
	EVENT(netns_destroyed)                                                                               \
	EVENT(ended_silently)                                                                                \
	EVENT(client_resets)                                                                                 \
	EVENT(server_resets)                                                                                 \
	EVENT(client_sent)                                                                                   \
	EVENT(server_sent)                                                                                   \
	EVENT(total_rto_absent)                                                                              \
	EVENT(port)                                                                                          \
	EVENT(backlog)                                                                                       \
	EVENT(listen_drops)                                                                                  \
	EVENT(udp_drops)                                                                                     \
	EVENT(udp_drops_buffer)                                                                              \
	EVENT(udp_drops_filter)                                                                              \
	EVENT(udp_drops_checksum)                                                                            \
	EVENT(udp_drops_short)

#define EVENT(name) name##_event,
enum event { EVENTS EVENT_COUNT };
#undef EVENT
#define EVENT(name) #name,
static const char *const event_names[] = {EVENTS};
#undef EVENT
static uint64_t events[EVENT_COUNT];

static void print_sides(const char *name, const char *const *keys, int n, const uint64_t *values)
{
	printf(", \"%s\": {", name);
	for (int s = 0; s < SIDES; s++) {
		printf("%s\"%s\": {", s ? ", " : "", side_names[s]);
		for (int i = 0; i < n; i++)
			printf("%s\"%s\": %lu", i ? ", " : "", keys[i], values[s * n + i]);
		printf("}");
	}
	printf("}");
}

static void print_result(void)
{
	const char *comma = "";

	printf("{\"figures\": [");
	for (int s = 0; s < SIDES; s++)
		for (int p = 0; p < PROTOCOLS; p++)
			for (int f = 0; f < FAMILIES; f++) {
				uint64_t(*n)[2] = figures[s][p][f];

				printf("%s[\"%s\", \"%s\", \"%s\", %lu, %lu, %lu, %lu]", comma, side_names[s],
				       protocol_names[p], family_names[f], n[RECEIVE][0], n[RECEIVE][1],
				       n[TRANSMIT][0], n[TRANSMIT][1]);
				comma = ", ";
			}
	printf("], \"events\": {");
	for (int e = 0; e < EVENT_COUNT; e++)
		printf("%s\"%s\": %lu", e ? ", " : "", event_names[e], events[e]);
	printf("}");
	print_sides("connections", role_names, ROLES, &opened[0][0]);
	print_sides("failures", failure_names, FAILURES, &failed[0][0]);
	print_sides("tcp_info", sum_names, SUM_COUNT, &sums[0][0]);
	printf("}\n");
}

#endif
