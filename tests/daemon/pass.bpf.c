/* SPDX-License-Identifier: GPL-2.0 */
/* What another's program may look like, to be attached exclusively: it lets all packets pass. */
struct __sk_buff;

__attribute__((section("cgroup_skb/egress"), used)) int pass(struct __sk_buff *skb)
{
	(void)skb;
	return 1;
}

__attribute__((section("license"), used)) char _license[] = "GPL";
