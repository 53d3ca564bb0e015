"""Counts that owe nothing to our programs: the kernel's packet filter, and the counters of an interface."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kernel.foreign import ALLOW_MULTI, DROP, EGRESS, foreign_program
from tests.kernel.ledger import NOTHING
from tests.kernel.machine import Cgroup, Netns, run
from tests.kernel.traffic import Result

from sockledger.kernel.sums import Traffic

CLOSED_PORT = 1  # the generator's, for connections to be refused

# The handshake's third ACK: an IP header, and a TCP header with the timestamp option.
THIRD_ACK = {"ipv4": 20 + 32, "ipv6": 40 + 32}


# A reset that answers a segment (it has no options, unlike one that a socket sends by itself) is sent
# through a socket of the kernel's; for IPv6 the programs do not run then, though it bears the other socket.
_IPV6_REPLY = "meta nfproto ipv6 tcp flags & rst == rst tcp doff 5 accept"


def _syns(family: str) -> str:
    """Return the rule for SYNs that find a listener."""
    match = f"meta nfproto {family} tcp flags & (syn | ack) == syn tcp dport != {CLOSED_PORT}"
    return f"{match} counter name server_tcp_{family}_receive accept"


_LISTEN = """
import pathlib, socket, sys
pathlib.Path(sys.argv[1]).write_text("0")
listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
print(listening.getsockname()[1], flush=True)
sys.stdin.read()
"""


def runs_for_ipv6_synack(cgroup: Cgroup) -> bool:
    """Whether this kernel runs egress programs for the SYN-ACK over IPv6, which 6.1 does not.

    A program that drops all that a listener in *cgroup* sends lets a connection come about only if not.
    """
    with (
        foreign_program(cgroup, EGRESS, ALLOW_MULTI, DROP),
        subprocess.Popen(
            [sys.executable, "-c", _LISTEN, str(cgroup.path / "cgroup.procs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as listener,
    ):
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        try:
            socket.create_connection(("::1", port), timeout=0.9).close()
        except TimeoutError:
            runs = True
        else:
            runs = False
        listener.kill()
    return runs


class SynAcks:
    """Counts a namespace's outgoing SYN-ACKs over IPv6."""

    def __init__(self, netns: Netns) -> None:
        self._netns = netns
        netns.run(
            "nft",
            "table inet synacks { counter synacks {}; chain output { type filter hook output priority 1;"
            " meta nfproto ipv6 tcp flags & (syn | ack) == (syn | ack) counter name synacks; }; }",
        )

    def counted(self) -> Traffic:
        """Return what has left so far."""
        (counter,) = [
            entry["counter"]
            for entry in json.loads(
                self._netns.run("nft", "-j", "list", "counters", "table", "inet", "synacks")
            )["nftables"]
            if "counter" in entry
        ]
        return Traffic(0, 0, counter["bytes"], counter["packets"])


class PacketFilter:
    """nftables counters of each cgroup's TCP and UDP, by protocol and family.

    Its socket expression knows full sockets only, as the programs do. But the programs also see packets of
    a handshake as the listener's for which it may find none: the SYN that comes in where a connection has
    just ended (TIME_WAIT) and the SYN-ACK that goes out, which have rules of their own here, and the third
    ACK that comes in, of which each connection has exactly one. Traffic must be made on a single CPU:
    another may end a socket between the filter's look and the programs'.
    """

    def __init__(self, netns: Netns, root: Cgroup, sides: dict[str, Cgroup], *, ipv6_synack: bool) -> None:
        """Count from now on. *ipv6_synack*: whether programs run for it."""
        self._netns = netns
        rules = {"input": [_syns(family) for family in ("ipv4", "ipv6")], "output": [_IPV6_REPLY]}
        counters = []
        for chain, direction in (("input", "receive"), ("output", "transmit")):
            for protocol in ("tcp", "udp"):
                for family in ("ipv4", "ipv6"):
                    match = f"meta nfproto {family} meta l4proto {protocol}"
                    for side, cgroup in sides.items():
                        name = f"{side}_{protocol}_{family}_{direction}"
                        path = cgroup.path.relative_to(root.path)
                        level = len(path.parts)
                        rules[chain].append(
                            f'{match} socket cgroupv2 level {level} "{path}" counter name {name}'
                        )
                        counters.append(f"counter {name} {{ }}")
        for family in ("ipv4", "ipv6") if ipv6_synack else ("ipv4",):
            rules["output"].append(
                f"meta nfproto {family} tcp flags & (syn | ack) == (syn | ack) "
                f"counter name server_tcp_{family}_transmit"
            )
        chains = [
            f"chain {hook} {{ type filter hook {hook} priority 0; {'; '.join(rules[hook])}; }}"
            for hook in rules
        ]
        # nft finds the cgroup by its path below /sys/fs/cgroup, which is not cgroup v2 on every host
        run(
            *("unshare", "--mount", "sh", "-c"),
            f"mount --bind {root.path} /sys/fs/cgroup && exec nsenter --net={netns.path} nft -f -",
            stdin="\n".join(["table inet truth {", *counters, *chains, "}"]),
        )

    def counts(self, side: str, result: Result) -> dict[tuple[str, str], Traffic]:
        """Return what one side's sockets received and sent, given the connections the generator made."""
        found: dict[tuple[str, str], Traffic] = defaultdict(lambda: NOTHING)
        for entry in json.loads(self._netns.run("nft", "-j", "list", "counters"))["nftables"]:
            if "counter" not in entry:
                continue
            counter = entry["counter"]
            its_side, protocol, family, direction = counter["name"].split("_")
            if its_side != side:
                continue
            figures = counter["bytes"], counter["packets"]
            traffic = Traffic(*figures, 0, 0) if direction == "receive" else Traffic(0, 0, *figures)
            found[protocol, family] = found[protocol, family].plus(traffic)
        if side == "server":
            for family, size in THIRD_ACK.items():
                acks = result.events[f"connections_{family}"]
                found["tcp", family] = found["tcp", family].plus(Traffic(acks * size, acks, 0, 0))
        return {key: traffic for key, traffic in found.items() if any(traffic)}


@contextmanager
def single_cpu() -> Iterator[None]:
    """Have this thread, and what it starts, on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


ETHERNET_HEADER = 14


def settled_interface(netns: Netns) -> Traffic:
    """Return an interface's counts once they stand still: delayed ACKs have been sent."""
    before = interface_counts(netns)
    while True:
        time.sleep(0.3)
        after = interface_counts(netns)
        if after == before:
            return after
        before = after


def interface_counts(netns: Netns, name: str = "veth") -> Traffic:
    """Return what an interface's counters say of IP; super-packets count once."""
    (link,) = json.loads(netns.run("ip", "-json", "-stats", "link", "show", name))
    receive, transmit = link["stats64"]["rx"], link["stats64"]["tx"]
    return Traffic(
        receive["bytes"] - ETHERNET_HEADER * receive["packets"],
        receive["packets"],
        transmit["bytes"] - ETHERNET_HEADER * transmit["packets"],
        transmit["packets"],
    )
