/* SPDX-License-Identifier: GPL-2.0 */
/* Sockets that an administrator destroys while they are in use, as ss -K does. */
#ifndef DESTROY_H
#define DESTROY_H

#include "endings.h"
#include "failures.h"
#include "netlink.h"
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>

static void set_end(struct address *a, __be16 *port, __be32 *ip)
{
	if (a->any.sa_family == AF_INET) {
		*port = a->v4.sin_port;
		memcpy(ip, &a->v4.sin_addr, sizeof(a->v4.sin_addr));
	} else {
		*port = a->v6.sin6_port;
		memcpy(ip, &a->v6.sin6_addr, sizeof(a->v6.sin6_addr));
	}
}

/* Returns 0 or what errno would be. */
static int destroy(struct address own, struct address peer)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 socket;
	} message = {{.nlmsg_len = sizeof(message), .nlmsg_type = SOCK_DESTROY},
		     {.sdiag_family = own.any.sa_family,
		      .sdiag_protocol = IPPROTO_TCP,
		      .id.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}};
	struct inet_diag_sockid *id = &message.socket.id;
	int netlink = netlink_socket(NETLINK_SOCK_DIAG), error;

	set_end(&own, &id->idiag_sport, id->idiag_src);
	set_end(&peer, &id->idiag_dport, id->idiag_dst);
	error = request(netlink, &message.header);
	close(netlink);
	return error;
}

static void destroy_surely(int fd, struct address peer)
{
	errno = destroy(own_address(fd), peer);
	if (errno)
		fail("SOCK_DESTROY");
}

static void try_destroying(void)
{
	struct address nobody = {.any.sa_family = AF_INET};
	int listener = server_listener(V4);

	events[destroy_absent_event] = destroy(own_address(listener), nobody) != 0;
	close(listener);
}

static void destroy_client(enum kind kind)
{
	struct ends ends = open_ends(kind);

	converse(ends.client, ends.server);
	destroy_surely(ends.client, own_address(ends.server));
	receive_end(ends.server);
	close(ends.server);
	close(ends.client);
	events[destroyed_client_event]++;
}

static void destroy_server(enum kind kind)
{
	struct ends ends = open_ends(kind);

	converse(ends.client, ends.server);
	destroy_surely(ends.server, own_address(ends.client));
	receive_end(ends.client);
	close(ends.client);
	close(ends.server);
	events[destroyed_server_event]++;
}

static void destroy_connecting(enum kind kind)
{
	int fd = connecting(kind);

	destroy_surely(fd, server_address(kind, port_of(silent[kind])));
	errno = error_of(fd);
	if (errno != ECONNABORTED)
		fail("a connecting socket that was destroyed");
	close(fd);
	failed[CLIENT][CONNECT_ABORTED]++;
	events[destroyed_connecting_event]++;
}

static void destroy_listener(enum kind kind)
{
	int listener = server_listener(kind), client = never_accepted(listener, kind);
	struct address nobody = {.any.sa_family = socket_family[kind]};

	destroy_surely(listener, nobody);
	receive_end(client);
	close(client);
	close(listener);
	events[destroyed_listener_event]++;
}

#endif
