// SPDX-License-Identifier: GPL-2.0
/*
 * Makes traffic and says exactly what it made: traffic SCENARIO --count N [OPTION VALUE ...]
 *
 *   tcp         connections that end in every orderly and disorderly way, client and server in two threads
 *   unaccepted  a listener closed with connections that nobody accepted
 *   killed      processes killed with open connections
 *   udp         sockets connected or not, answered, refused, and closed with unread data
 *   flood       UDP sockets closed at once while another thread floods their port
 *   shared      UDP sockets that two threads use at the same time
 *   others      UDP-Lite, ping sockets, raw ICMP, raw IP
 *   steady      UDP and TCP sockets that send in turn until standard input ends
 *   idle        the same, but after one round they wait
 *   bulk        one connection that sends --count times 1 MiB, and its TCP_INFO
 *   connections TCP connections that begin and end in every way there is, all over at the end but --keep of
 *               them, which last until standard input ends; on one namespace's loopback
 *   netns_destroyed
 *               connections that are open when their network namespace loses its last process
 *   accounts    connections whose TCP_INFO is read when nothing more can change it: --rounds of data,
 *               with --slow 1 for a slow reader, with --small-buffer 1 for a small send buffer
 *   listen_overflow
 *               more connects than a listener's --backlog has room for, until standard input ends
 *   udp_drops   UDP sockets that drop what comes, the last of them until standard input ends
 *   crossing    connections that one side resets while the other sends
 *
 * One process plays both sides: a socket belongs to the cgroup and the network namespace that its maker
 * was in, wherever the maker goes afterwards. Prints one line of JSON: under "figures" the IP packets and
 * bytes of each side that follow from the calls it made, TCP excepted, under "events" how often what
 * happened, under "connections" and "failures" what became of TCP connections, under "tcp_info" sums.
 */
#define _GNU_SOURCE
#include "tcp.h"
#include "udp.h"
#include "flood.h"
#include "shared.h"
#include "others.h"
#include "pairs.h"
#include "bulk.h"
#include "connections.h"
#include "netns.h"
#include "accounts.h"
#include "overflow.h"
#include "drops.h"
#include "crossing.h"
#include <fcntl.h>
#include <sys/resource.h>

static const struct {
	const char *name;
	void (*run)(void);
} scenarios[] = {{"tcp", tcp},
		 {"unaccepted", unaccepted},
		 {"killed", killed},
		 {"udp", udp},
		 {"flood", flood},
		 {"shared", shared},
		 {"others", others},
		 {"idle", idle},
		 {"steady", steady},
		 {"bulk", bulk},
		 {"connections", connections},
		 {"netns_destroyed", netns_destroyed},
		 {"accounts", accounts},
		 {"listen_overflow", listen_overflow},
		 {"udp_drops", udp_drops},
		 {"crossing", crossing}};

static int open_path(const char *path, int flags)
{
	return check(open(path, flags | O_CLOEXEC), path);
}

static void read_options(int argc, char **argv)
{
	for (int i = 2; i + 1 < argc; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];

		if (!strcmp(name, "--count"))
			options.count = atol(value);
		else if (!strcmp(name, "--seconds"))
			options.seconds = atol(value);
		else if (!strcmp(name, "--family"))
			options.family = atol(value);
		else if (!strcmp(name, "--keep"))
			options.keep = atol(value);
		else if (!strcmp(name, "--rounds"))
			options.rounds = atol(value);
		else if (!strcmp(name, "--backlog"))
			options.backlog = atol(value);
		else if (!strcmp(name, "--slow"))
			options.slow = atol(value);
		else if (!strcmp(name, "--small-buffer"))
			options.small_buffer = atol(value);
		else if (!strcmp(name, "--v4"))
			options.v4 = value;
		else if (!strcmp(name, "--v6"))
			options.v6 = value;
		else if (!strcmp(name, "--client-cgroup"))
			options.cgroup[CLIENT] = open_path(value, O_WRONLY);
		else if (!strcmp(name, "--server-cgroup"))
			options.cgroup[SERVER] = open_path(value, O_WRONLY);
		else if (!strcmp(name, "--client-netns"))
			options.netns[CLIENT] = open_path(value, O_RDONLY);
		else if (!strcmp(name, "--server-netns"))
			options.netns[SERVER] = open_path(value, O_RDONLY);
		else {
			errno = EINVAL;
			fail(name);
		}
	}
}

static void raise_file_limit(void)
{
	struct rlimit limit;

	check(getrlimit(RLIMIT_NOFILE, &limit), "RLIMIT_NOFILE");
	limit.rlim_cur = limit.rlim_max;
	check(setrlimit(RLIMIT_NOFILE, &limit), "RLIMIT_NOFILE");
}

int main(int argc, char **argv)
{
	read_options(argc, argv);
	raise_file_limit();
	alarm(TIME_LIMIT); /* ends what hangs */
	for (size_t i = 0; argc > 1 && i < sizeof(scenarios) / sizeof(*scenarios); i++)
		if (!strcmp(argv[1], scenarios[i].name)) {
			scenarios[i].run();
			print_result();
			return 0;
		}
	errno = EINVAL;
	fail("SCENARIO");
}
