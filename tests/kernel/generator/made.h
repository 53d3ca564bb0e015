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
	EVENT(server_segments_out)

#define EVENT(name) name##_event,
enum event { EVENTS EVENT_COUNT };
#undef EVENT
#define EVENT(name) #name,
static const char *const event_names[] = {EVENTS};
#undef EVENT
static uint64_t events[EVENT_COUNT];

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
	printf("}}\n");
}

#endif
