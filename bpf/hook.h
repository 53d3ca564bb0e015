/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A link to a tracepoint cannot be given another program, and one of two that are attached for a moment would
 * count an event twice. So what is attached there only jumps to the program in a slot, which user space
 * replaces: each event is one program's. A hook that moves to another tracepoint gets another name.
 */
#ifndef SOCKLEDGER_HOOK_H
#define SOCKLEDGER_HOOK_H

#include <bpf/bpf_helpers.h>

/* The program that is attached is *name*, the one in its slot is called so with _now behind. */
#define HOOK(name, tracepoint)                                                                               \
	struct {                                                                                             \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY);                                                       \
		__uint(max_entries, 1);                                                                      \
		__type(key, __u32);                                                                          \
		__type(value, __u32);                                                                        \
	} name##_slot SEC(".maps");                                                                          \
                                                                                                             \
	SEC("?tp_btf/" tracepoint)                                                                           \
	int name(void *ctx)                                                                                  \
	{                                                                                                    \
		bpf_tail_call(ctx, &name##_slot, 0);                                                         \
		return 0;                                                                                    \
	}

#endif
