/* SPDX-License-Identifier: GPL-2.0 */
/* The way from a socket's pending counts to the totals: the only place that takes counts out of a seat. */
#ifndef SOCKLEDGER_DRAIN_H
#define SOCKLEDGER_DRAIN_H

#include "tags.h"
#include "totals.h"

/* Idle sockets are the most: look before taking. */
static __always_inline __u64 take(__u64 *pending)
{
	return READ_ONCE(*pending) ? __sync_lock_test_and_set(pending, 0) : 0;
}

/*
 * Move what is pending to the totals, and return whether anything was. Any number may run at once: the
 * exchange moves a count once. The key may be read after it, for the seat's owner stays until all who may add
 * or drain have left.
 */
static __noinline int drain(struct socket_counts *s)
{
	int moved = 0;

	for (int family = 0; family < FAMILIES; family++) {
		__u64 received = take(&s->pending[family][RECEIVE]);
		__u64 sent = take(&s->pending[family][TRANSMIT]);
		struct totals_key key = {};
		struct totals *t;

		if (!(received | sent))
			continue;
		key.cgroup_id = s->cgroup_id;
		key.protocol = s->protocol;
		key.family = family;
		key.peer = s->peer;
		t = totals_of(&key);
		if (!t)
			return 1; /* cannot be: overflow is an array that holds every index */
		if (received)
			add_receive(t, PENDING_BYTES(received), PENDING_PACKETS(received));
		if (sent)
			add_transmit(t, PENDING_BYTES(sent), PENDING_PACKETS(sent));
		moved = 1;
		if (s->tag)
			add_tagged(s->cgroup_id, s->tag, PENDING_BYTES(received), PENDING_BYTES(sent));
	}
	return moved;
}

#endif
