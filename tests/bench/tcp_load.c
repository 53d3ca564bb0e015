/* SPDX-License-Identifier: GPL-2.0 */
/*
 * TCP over loopback, client and server a process each on one CPU, in a network namespace of their own; or
 * AF_UNIX between the two.
 *
 * Usage: tcp_load connections|requests|unix CPU CLIENT_CGROUP SERVER_CGROUP
 *
 * Each number on standard input has it make as many transactions: connect, request, response, close; or
 * request and response of 1 byte over each of some connections in turn. It answers how many seconds that
 * took.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 50, PRIORITY = 10 };

static long check(long result, const char *what)
{
	if (result >= 0)
		return result;
	perror(what);
	exit(1);
}

static void write_file(const char *path, const char *text)
{
	int fd = check(open(path, O_WRONLY | O_CLOEXEC), path);

	check(write(fd, text, strlen(text)), path);
	close(fd);
}

static void enter_cgroup(const char *path)
{
	char processes[4096];

	snprintf(processes, sizeof(processes), "%s/cgroup.procs", path);
	write_file(processes, "0");
}

static void enter_new_netns(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd;

	check(unshare(CLONE_NEWNET), "unshare");
	fd = check(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
	check(ioctl(fd, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
	close(fd);
	/* or the local ports are used up within two seconds, for a minute */
	write_file("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
}

/* Nobody else runs on this CPU meanwhile. */
static void take_cpu(int cpu)
{
	struct sched_param parameters = {.sched_priority = PRIORITY};
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
	check(sched_setscheduler(0, SCHED_FIFO, &parameters), "sched_setscheduler");
}

static int listen_on_loopback(struct sockaddr_in *address)
{
	int fd = check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	socklen_t size = sizeof(*address);

	*address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	check(bind(fd, (void *)address, size), "bind");
	check(listen(fd, 128), "listen");
	check(getsockname(fd, (void *)address, &size), "getsockname");
	return fd;
}

static int connect_to(const struct sockaddr_in *address)
{
	int fd = check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"), yes = 1;

	check(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)), "TCP_NODELAY");
	check(connect(fd, (const void *)address, sizeof(*address)), "connect");
	return fd;
}

static int accept_from(int listener)
{
	return check(accept4(listener, NULL, NULL, SOCK_CLOEXEC), "accept");
}

static void request(int fd)
{
	char byte = 'q';

	check(write(fd, &byte, 1), "write");
	if (check(read(fd, &byte, 1), "read") != 1)
		check(-1, "the server has gone");
}

/* False at the end. */
static int respond(int fd)
{
	char byte;

	if (check(read(fd, &byte, 1), "read") != 1)
		return 0;
	check(write(fd, &byte, 1), "write");
	return 1;
}

/* For as long as requests come on each in turn. */
static void respond_in_turn(const int *fds)
{
	for (int i = 0, more = 1; more; i = (i + 1) % CONNECTIONS)
		more = respond(fds[i]);
}

static void serve(int listener, int keep)
{
	int fds[CONNECTIONS], fd;

	for (int i = 0; keep && i < CONNECTIONS; i++)
		fds[i] = accept_from(listener);
	if (keep)
		respond_in_turn(fds);
	for (;;) {
		fd = accept_from(listener);
		while (respond(fd))
			;
		close(fd);
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Over *fds* in turn, or over a new connection each time. */
static void ask(const int *fds, const struct sockaddr_in *address)
{
	int fd, next = 0;
	double begin;
	long count;

	while (scanf("%ld", &count) == 1) {
		begin = now();
		while (count--) {
			if (fds) {
				request(fds[next]);
				next = (next + 1) % CONNECTIONS;
			} else {
				fd = connect_to(address);
				request(fd);
				close(fd);
			}
		}
		printf("%.9f\n", now() - begin);
		fflush(stdout);
	}
}

static void make_pairs(int *near, int *far)
{
	int pair[2];

	for (int i = 0; i < CONNECTIONS; i++) {
		check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
		near[i] = pair[0];
		far[i] = pair[1];
	}
}

int main(int argc, char **argv)
{
	int keep, local, listener = -1, fds[CONNECTIONS], theirs[CONNECTIONS];
	struct sockaddr_in address;

	if (argc != 5) {
		fprintf(stderr, "Usage: %s connections|requests|unix CPU CLIENT_CGROUP SERVER_CGROUP\n",
			argv[0]);
		return 2;
	}
	keep = !strcmp(argv[1], "requests");
	local = !strcmp(argv[1], "unix");
	enter_new_netns();
	take_cpu(atoi(argv[2]));
	enter_cgroup(argv[4]);
	if (local)
		make_pairs(fds, theirs);
	else
		listener = listen_on_loopback(&address);
	if (!check(fork(), "fork")) {
		check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
		if (local)
			respond_in_turn(theirs);
		else
			serve(listener, keep);
		return 0;
	}
	enter_cgroup(argv[3]);
	for (int i = 0; keep && i < CONNECTIONS; i++)
		fds[i] = connect_to(&address);
	ask(keep || local ? fds : NULL, &address);
	return 0;
}
