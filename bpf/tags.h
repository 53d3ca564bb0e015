/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Names that users give to sockets, to say what for. Who may write to the map of tags gives one by the
 * socket's descriptor; a seat counts for one tag, so what is pending stays with the one that it was counted
 * for.
 */
#ifndef SOCKLEDGER_TAGS_H
#define SOCKLEDGER_TAGS_H

#include "settings.h"
#include "socket.h"
#include "totals.h"

#define TAG_BYTES 32

/* A name, padded with NULs; in words, for these are compared. */
struct tag {
	__u64 words[TAG_BYTES / sizeof(__u64)];
};

/*
 * What a socket is tagged with. Its number in its cgroup is noted here by the first packet: 0 before that, as
 * who tags writes it; one that he writes in its place makes his own bytes another of his tags'. The lock is
 * never taken: nobody can freeze a map that has one, which any who may write to it could.
 */
struct socket_tag {
	struct tag tag;
	__u32 number;
	struct bpf_spin_lock lock;
};

/*
 * The one map that others write to, so its layout never changes. Connections have their listener's tag: for
 * one whose copy finds no memory the kernel drops it, so no listener is here that nobody has tagged.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_tag);
} tags SEC(".maps");

/* A cgroup's tags that are told apart: settings.tags at most, numbered from 1 on. */
struct tag_place {
	__u64 cgroup_id;
	__u64 number;
};

#define TAG_NONE    0
#define TAG_OTHERS  0xffff  /* those beyond, and what is no name */
#define TAG_UNKNOWN 0x10000 /* for now; no seat's */
#define MOST_TAGS   64

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct tag_place);
	__type(value, struct tag);
} tag_names SEC(".maps");

struct tagged_key {
	__u64 cgroup_id;
	struct tag tag;
};

struct tagged_totals {
	__u64 receive_bytes;
	__u64 transmit_bytes;
};

/* Key 0, made by user space, takes what finds it full. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* few have any */
	__uint(max_entries, 16384);	      /* set from limits.cgroups */
	__type(key, struct tagged_key);
	__type(value, struct tagged_totals);
} tagged_totals SEC(".maps");

/* "other", as its first word. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define OTHER_TAGS ((struct tag){{0x726568746fULL}})
#else
#define OTHER_TAGS ((struct tag){{0x6f74686572000000ULL}})
#endif

static __always_inline bool same_tag(const struct tag *one, const struct tag *other)
{
	return one->words[0] == other->words[0] && one->words[1] == other->words[1] &&
	       one->words[2] == other->words[2] && one->words[3] == other->words[3];
}

/* Whether it is one: characters that can be seen, and then nothing but NULs, of which there is one. */
static __always_inline bool is_name(const struct tag *tag)
{
	const char *characters = (const char *)tag;
	bool over = false;

	for (int i = 0; i < TAG_BYTES; i++) {
		char c = characters[i];

		if (over ? c : c && (c <= ' ' || c > '~'))
			return false;
		over |= !c;
	}
	return over && characters[0];
}

static __always_inline void count_tag_full(void)
{
	struct lost_updates *l = lost_updates();

	if (l)
		__sync_fetch_and_add(&l->tag_full, 1);
}

/*
 * The number of a tag in its cgroup, taken if need be. Places are taken in order, so behind one that is free
 * there are none. Global, so that the verifier follows its loops once.
 */
__noinline int tag_number(__u64 cgroup_id, const struct tag *tag)
{
	struct tag_place place = {.cgroup_id = cgroup_id};
	struct tag name, *taken;

	if (!tag)
		return TAG_NONE; /* cannot be, but the verifier wants to see it tested */
	name = *tag;
	if (!is_name(&name))
		return TAG_OTHERS;
	if (is_closing(cgroup_id))
		return TAG_UNKNOWN;
	for (int number = 1; number <= MOST_TAGS && number <= settings.tags; number++) {
		place.number = number;
		taken = bpf_map_lookup_elem(&tag_names, &place);
		if (!taken) {
			bpf_map_update_elem(&tag_names, &place, &name, BPF_NOEXIST);
			taken = bpf_map_lookup_elem(&tag_names, &place);
		}
		if (!taken) {
			count_tag_full();
			return TAG_UNKNOWN;
		}
		if (same_tag(taken, &name))
			return number;
	}
	return TAG_OTHERS;
}

/* NULL where there is no room, or the cgroup's rows are being deleted. */
static __noinline struct tagged_totals *tagged_totals_of(const struct tagged_key *key)
{
	struct tagged_totals none = {}, *t;

	if (is_closing(key->cgroup_id))
		return NULL;
	t = bpf_map_lookup_elem(&tagged_totals, key);
	if (t)
		return t;
	bpf_map_update_elem(&tagged_totals, key, &none, BPF_NOEXIST);
	t = bpf_map_lookup_elem(&tagged_totals, key);
	if (!t)
		count_tag_full();
	return t;
}

/* Bytes that are in the totals, too. */
static __noinline int add_tagged(__u64 cgroup_id, __u32 number, __u64 received, __u64 sent)
{
	struct tag_place place = {.cgroup_id = cgroup_id, .number = number};
	const struct tag *name = bpf_map_lookup_elem(&tag_names, &place);
	struct tagged_key key = {.cgroup_id = cgroup_id}, other = {};
	struct tagged_totals *t;

	key.tag = name ? *name : OTHER_TAGS;
	t = tagged_totals_of(&key);
	if (!t)
		t = bpf_map_lookup_elem(&tagged_totals, &other);
	if (t) {
		add(&t->receive_bytes, received);
		add(&t->transmit_bytes, sent);
	}
	return 0;
}

/*
 * What the packet's socket is tagged with, NULL if it is not. The helper takes longer than all else that is
 * done for a packet, and hardly any socket has anything in storage, so that is looked at first: by the packet
 * where the verifier allows it, else by the socket's seat, if it is known.
 */
static __always_inline struct socket_tag *socket_tag_of(struct __sk_buff *skb, const struct socket_counts *s)
{
	struct bpf_sock *sk = skb->sk;
	const void *at = sk;

	if (!settings.tags)
		return NULL;
	if (!bpf_rdonly_cast)
		at = s ? (const void *)READ_ONCE(s->address) : NULL;
	if (at && !READ_SOCK(at, sk_bpf_storage))
		return NULL;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	return sk ? bpf_sk_storage_get(&tags, sk, NULL, 0) : NULL;
}

/* The tag for which a packet of the socket in this seat counts. */
static __always_inline __u32 noted_tag_of(struct __sk_buff *skb, const struct socket_counts *s)
{
	const struct socket_tag *t = socket_tag_of(skb, s);

	if (!t)
		return TAG_NONE;
	return t->number ? t->number : TAG_UNKNOWN;
}

/* The same of any packet; the tag gets its number. */
static __noinline __u32 tag_of(struct __sk_buff *skb)
{
	struct socket_tag *t = socket_tag_of(skb, NULL);
	__u32 number;

	if (!t)
		return TAG_NONE;
	number = READ_ONCE(t->number);
	if (!number || (number > MOST_TAGS && number != TAG_OTHERS)) {
		number = tag_number(bpf_skb_cgroup_id(skb), &t->tag);
		if (number == TAG_UNKNOWN)
			return TAG_OTHERS;
		WRITE_ONCE(t->number, number);
	}
	return number;
}

#endif
