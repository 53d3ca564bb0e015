// SPDX-License-Identifier: GPL-2.0
/*
 * Processes that come and go, with threads, and count themselves what their calls on sockets have moved.
 *
 *   callers PROCESSES AT_ONCE THREADS ROUNDS
 *
 * Prints for each name of a process and family of sockets: NAME FAMILY SENT_BYTES SEND_CALLS RECEIVED_BYTES
 * RECEIVE_CALLS. Threads have names of their own. Children tell by a pipe, which is no socket.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define NAMES	7
#define LARGEST 9000

enum kind { UNIX, TCP4, TCP6, UDP4, KINDS };
enum family { FAMILY_UNIX, FAMILY_IPV4, FAMILY_IPV6, FAMILIES };

static const char *const families[] = {"unix", "ipv4", "ipv6"};
static const enum family family_of[] = {FAMILY_UNIX, FAMILY_IPV4, FAMILY_IPV6, FAMILY_IPV4};

struct moved {
	uint64_t sent_bytes, send_calls, received_bytes, receive_calls;
};

struct report {
	int name;
	struct moved moved[FAMILIES];
};

struct thread {
	pthread_t id;
	int number, rounds;
	struct moved moved[FAMILIES];
};

static void address_of(enum kind kind, struct sockaddr_storage *address, socklen_t *length)
{
	memset(address, 0, sizeof(*address));
	if (kind == TCP6) {
		struct sockaddr_in6 *in6 = (void *)address;

		in6->sin6_family = AF_INET6;
		in6->sin6_addr = in6addr_loopback;
		*length = sizeof(*in6);
	} else {
		struct sockaddr_in *in = (void *)address;

		in->sin_family = AF_INET;
		in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		*length = sizeof(*in);
	}
}

static void must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

/* Two sockets that are connected to each other. */
static void make_pair(enum kind kind, int pair[2])
{
	int type = kind == UDP4 ? SOCK_DGRAM : SOCK_STREAM;
	struct sockaddr_storage address;
	socklen_t length;
	int listener;

	if (kind == UNIX) {
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
		return;
	}
	address_of(kind, &address, &length);
	must(listener = socket(address.ss_family, type, 0), "socket");
	must(bind(listener, (void *)&address, length), "bind");
	must(getsockname(listener, (void *)&address, &length), "getsockname");
	if (type == SOCK_STREAM)
		must(listen(listener, 1), "listen");
	must(pair[0] = socket(address.ss_family, type, 0), "socket");
	must(connect(pair[0], (void *)&address, length), "connect");
	if (type == SOCK_DGRAM) {
		pair[1] = listener;
		return;
	}
	must(pair[1] = accept(listener, NULL, NULL), "accept");
	close(listener);
}

/* Each time by another call. */
static void send_some(int fd, size_t size, unsigned int round, struct moved *moved)
{
	static const char bytes[LARGEST];
	struct iovec parts[] = {{(void *)bytes, size / 2}, {(void *)bytes, size - size / 2}};
	ssize_t sent;

	switch (round % 3) {
	case 0:
		sent = write(fd, bytes, size);
		break;
	case 1:
		sent = send(fd, bytes, size, MSG_NOSIGNAL);
		break;
	default:
		sent = writev(fd, parts, 2);
	}
	must(sent, "send");
	moved->sent_bytes += sent;
	moved->send_calls++;
}

static size_t receive_some(int fd, unsigned int round, struct moved *moved)
{
	char bytes[LARGEST];
	ssize_t received;

	if (round % 4 == 1)
		must(recv(fd, bytes, sizeof(bytes), MSG_PEEK), "recv");
	received = round % 2 ? read(fd, bytes, sizeof(bytes)) : recv(fd, bytes, sizeof(bytes), 0);
	must(received, "recv");
	moved->received_bytes += received;
	moved->receive_calls++;
	return received;
}

static void *exchange(void *argument)
{
	struct thread *thread = argument;
	unsigned int seed = thread->number + getpid();
	char name[16];

	if (gettid() != getpid()) {
		snprintf(name, sizeof(name), "thread%d", thread->number);
		pthread_setname_np(pthread_self(), name);
	}
	for (int round = 0; round < thread->rounds; round++) {
		enum kind kind = (thread->number + round) % KINDS;
		struct moved *moved = &thread->moved[family_of[kind]];
		size_t size = 2 + rand_r(&seed) % (LARGEST - 2), left = size;
		int pair[2];

		make_pair(kind, pair);
		/* an error is no traffic */
		if (recv(pair[1], name, sizeof(name), MSG_DONTWAIT) >= 0)
			errx(1, "there was something to receive");
		send_some(pair[0], size, round, moved);
		while (left)
			left -= receive_some(pair[1], round, moved);
		close(pair[0]);
		close(pair[1]);
	}
	return NULL;
}

static struct report live(int number, int threads, int rounds)
{
	struct report report = {.name = number % NAMES};
	struct thread each[threads];
	char name[16];

	snprintf(name, sizeof(name), "caller%d", report.name);
	prctl(PR_SET_NAME, name);
	memset(each, 0, sizeof(each));
	for (int i = 0; i < threads; i++) {
		each[i].number = i;
		each[i].rounds = rounds;
		/* the first thread of some is at it itself */
		if (!i && number % 2)
			continue;
		if (pthread_create(&each[i].id, NULL, exchange, &each[i]))
			errx(1, "pthread_create");
	}
	if (number % 2)
		exchange(&each[0]);
	for (int i = number % 2; i < threads; i++)
		pthread_join(each[i].id, NULL);
	for (int i = 0; i < threads; i++)
		for (int family = 0; family < FAMILIES; family++) {
			report.moved[family].sent_bytes += each[i].moved[family].sent_bytes;
			report.moved[family].send_calls += each[i].moved[family].send_calls;
			report.moved[family].received_bytes += each[i].moved[family].received_bytes;
			report.moved[family].receive_calls += each[i].moved[family].receive_calls;
		}
	return report;
}

static void take_report(int fd, struct moved sums[NAMES][FAMILIES])
{
	struct report report;

	/* no longer than what a pipe takes at once */
	if (read(fd, &report, sizeof(report)) != sizeof(report))
		errx(1, "a process ended without a word");
	for (int family = 0; family < FAMILIES; family++) {
		struct moved *sum = &sums[report.name][family], *one = &report.moved[family];

		sum->sent_bytes += one->sent_bytes;
		sum->send_calls += one->send_calls;
		sum->received_bytes += one->received_bytes;
		sum->receive_calls += one->receive_calls;
	}
}

int main(int argc, char **argv)
{
	static struct moved sums[NAMES][FAMILIES];
	int processes, at_once, threads, rounds, living = 0, reports[2];

	if (argc != 5)
		errx(2, "PROCESSES AT_ONCE THREADS ROUNDS");
	processes = atoi(argv[1]);
	at_once = atoi(argv[2]);
	threads = atoi(argv[3]);
	rounds = atoi(argv[4]);
	must(pipe(reports), "pipe");
	for (int number = 0; number < processes; number++) {
		pid_t child;

		if (living == at_once) {
			take_report(reports[0], sums);
			living--;
		}
		must(child = fork(), "fork");
		if (!child) {
			struct report report = live(number, threads, rounds);

			_exit(write(reports[1], &report, sizeof(report)) != sizeof(report));
		}
		living++;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	while (living--)
		take_report(reports[0], sums);
	while (wait(NULL) > 0)
		;
	for (int name = 0; name < NAMES; name++)
		for (int family = 0; family < FAMILIES; family++) {
			struct moved *sum = &sums[name][family];

			if (sum->send_calls)
				printf("caller%d %s %lu %lu %lu %lu\n", name, families[family],
				       sum->sent_bytes, sum->send_calls, sum->received_bytes,
				       sum->receive_calls);
		}
	return 0;
}
