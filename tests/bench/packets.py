"""Cost per packet of our programs and of their rivals, by the kernel's own clock, over an empty program."""

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import NamedTuple

from tests.bench.support import (
    BENCH,
    CPU,
    RESET_AT_CLOSE,
    AttachedProgram,
    Cgroups,
    ProgramFigures,
    Spread,
    cgroups,
    compiled,
    print_table,
    run_statistics,
    verdict,
)

from sockledger.config import Limits
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.libbpf import Object, Program
from sockledger.kernel.networks import Network

ROUNDS = 9
MESSAGES = 15_000  # a round and contender
CGROUPS = 50
PAIRS = (500, 50, 1)  # of sockets: their seats miss the caches, fit the nearer ones, stay in the nearest

NETWORKS = 1000  # that addresses are looked up in, and two that have this traffic's
CLASSES = {ip_network("127.0.0.0/8"): "loopback", ip_network("127.0.1.0/24"): "second"}

FLOOR = "empty program (its whole run)"
OURS = "sockledger"
WITHOUT_TAGS = "sockledger without tags"
WITH_CLASSES = f"sockledger with {NETWORKS:,} networks"
PERCPU = "per-CPU hash by cgroup"
FLOW = "LRU hash by flow"
TARGETS = {PERCPU: 0.7, FLOW: 0.5}

# How one sends a message and the other receives it.
Exchange = tuple[Callable[[bytes], object], Callable[[int], object]]
# Makes sockets in two cgroups.
Maker = Callable[[Path, Path, ExitStack], list[Exchange]]


class Directions(NamedTuple):
    """A figure of each of the two programs."""

    receive: float
    transmit: float


@dataclass
class Contender:
    """A pair of programs."""

    name: str
    programs: tuple[Program, Program]
    figures: list[ProgramFigures] = field(default_factory=list)

    def nanoseconds(self, cgroup_fd: int, traffic: Callable[[], None]) -> Directions:
        """Attach, run the traffic, detach: the mean time of a run of each program."""
        with ExitStack() as stack:
            attached = []
            for program in self.programs:
                link = program.attach_cgroup(cgroup_fd)
                stack.callback(link.destroy)
                attached.append(stack.enter_context(closing(AttachedProgram(link))))
            before = [each.figures() for each in attached]
            traffic()
            self.figures = [each.figures() for each in attached]
        return Directions(
            *(
                (new.run_ns - old.run_ns) / (new.runs - old.runs)
                for new, old in zip(self.figures, before, strict=True)
            )
        )


# ---- traffic


def _udp_socket(cgroup: Path, address: str, stack: ExitStack) -> socket.socket:
    Cgroups.enter(cgroup)
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind((address, 0))
    return made


def _udp_pair(first: Path, second: Path, stack: ExitStack) -> list[Exchange]:
    one, other = (_udp_socket(cgroup, "127.0.0.1", stack) for cgroup in (first, second))
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return [(one.send, other.recv), (other.send, one.recv)]


def _udp_server(first: Path, second: Path, stack: ExitStack) -> list[Exchange]:
    """One that is not connected has two clients, of two classes."""
    server = _udp_socket(first, "127.0.0.1", stack)
    exchanges: list[Exchange] = []
    for address in ("127.0.0.1", "127.0.1.1"):
        client = _udp_socket(second, address, stack)
        client.connect(server.getsockname())
        answer = partial(_send_to, server, client.getsockname())
        exchanges += [(client.send, server.recv), (answer, client.recv)]
    return exchanges


def _send_to(sender: socket.socket, address: tuple[str, int], message: bytes) -> None:
    sender.sendto(message, address)


def _tcp_pair(first: Path, second: Path, stack: ExitStack) -> list[Exchange]:
    Cgroups.enter(first)
    with socket.create_server(("127.0.0.1", 0)) as server:
        Cgroups.enter(second)
        one = stack.enter_context(socket.create_connection(server.getsockname()))
        other = stack.enter_context(server.accept()[0])
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    return [(one.send, other.recv), (other.send, one.recv)]


@contextmanager
def _traffic(make: Maker, below: Cgroups, pairs: int) -> Iterator[Callable[[], None]]:
    """Yield a function that sends MESSAGES messages over all pairs, both ways, in a random order."""
    with ExitStack() as stack:
        exchanges = []
        for number in range(pairs):
            first, second = (below.children[(number + shift) % len(below.children)] for shift in (0, 1))
            exchanges += make(first, second, stack)
        random.Random(0).shuffle(exchanges)
        exchanges = (exchanges * (MESSAGES // len(exchanges) + 1))[:MESSAGES]
        message = bytes(100)

        def run() -> None:
            for send, receive in exchanges:
                send(message)
                receive(200)

        yield run


PAIR_MAKERS: dict[str, Maker] = {"UDP": _udp_pair, "TCP": _tcp_pair}


# ---- the measurement


def run() -> None:
    """Measure, and print a table for each kind of traffic."""
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, affinity)
        stack.enter_context(run_statistics())
        below = stack.enter_context(cgroups(CGROUPS))
        root = CgroupRoot(below.path)
        stack.callback(os.close, root.fd)
        rivals = stack.enter_context(closing(Object(compiled(BENCH / "rivals.bpf.c"), "bench")))
        rivals.load()
        ours, without_tags, with_classes = (
            stack.enter_context(
                closing(
                    DataPath(
                        root,
                        cgroups=1024,
                        sockets=Limits().sockets,
                        connections=1000,
                        parts=parts,
                    )
                )
            )
            for parts in (Parts(), Parts(tags=False), Parts(peers=True))
        )
        with_classes.networks.put(_networks())
        contenders = [
            Contender(name, (programs[f"{prefix}receive"], programs[f"{prefix}transmit"]))
            for name, programs, prefix in (
                (FLOOR, rivals.programs, "empty_"),
                (OURS, ours.programs, "sl_"),
                (WITHOUT_TAGS, without_tags.programs, "sl_"),
                (WITH_CLASSES, with_classes.programs, "sl_"),
                (PERCPU, rivals.programs, "plain_"),
                (f"{PERCPU}, atomic adds", rivals.programs, "atomic_"),
                (FLOW, rivals.programs, "flow_"),
            )
        ]
        for pairs in PAIRS:
            for protocol, make in PAIR_MAKERS.items():
                spread = f"{2 * pairs} sockets in {min(CGROUPS, 2 * pairs)} cgroups"
                with _traffic(make, below, pairs) as traffic:
                    _measure(f"{protocol}, {spread}", contenders, root.fd, traffic)
        with _traffic(_udp_server, below, CGROUPS) as traffic:
            title = f"UDP, {CGROUPS} sockets that talk to two classes each, and their {2 * CGROUPS} peers"
            _measure(title, contenders, root.fd, traffic)
        _print_sizes(contenders)


def _networks() -> dict[Network, str]:
    """Return networks of nobody here, of all lengths, and those of this traffic."""
    numbers = random.Random(0)
    others: dict[Network, str] = {}
    while len(others) < NETWORKS:
        address = IPv4Address(numbers.randrange(int(IPv4Address("128.0.0.0")), 1 << 32))
        others[IPv4Network((address, numbers.randrange(8, 33)), strict=False)] = f"class {len(others) % 20}"
    return others | CLASSES


def _measure(title: str, contenders: list[Contender], cgroup_fd: int, traffic: Callable[[], None]) -> None:
    found: dict[str, list[Directions]] = {contender.name: [] for contender in contenders}
    for contender in contenders:  # after that every socket has its seat, every map its entries
        contender.nanoseconds(cgroup_fd, traffic)
    for number in range(ROUNDS):
        first = number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            found[contender.name].append(contender.nanoseconds(cgroup_fd, traffic))
    cells: dict[str, list[str]] = {name: [name] for name in found}
    ratios: dict[str, list[Spread]] = {name: [] for name in found}
    for index in range(len(Directions._fields)):
        floor = [values[index] for values in found[FLOOR]]
        costs = {
            name: [values[index] - base for values, base in zip(rounds, floor, strict=True)]
            for name, rounds in found.items()
        }
        cells[FLOOR] += [f"{Spread(floor):.1f}", ""]
        cells[OURS] += [f"{Spread(costs[OURS]):.1f}", ""]
        for name in found.keys() - {FLOOR, OURS}:
            ratio = Spread([ours / theirs for ours, theirs in zip(costs[OURS], costs[name], strict=True)])
            ratios[name].append(ratio)
            cells[name] += [f"{Spread(costs[name]):.1f}", f"{ratio:.2f}"]
    print_table(
        f"{title}: ns a packet, {ROUNDS} rounds of {MESSAGES} messages",
        ("min / median / max", "receive", "ours / theirs", "transmit", "ours / theirs"),
        list(cells.values()),
    )
    for name, target in TARGETS.items():
        for direction, ratio in zip(Directions._fields, ratios[name], strict=True):
            met = ratio.median <= target
            print("  " + verdict(f"target: {direction} at most {target} of {name}", met=met))


def _print_sizes(contenders: list[Contender]) -> None:
    rows = []
    for contender in contenders:
        for direction, each in zip(Directions._fields, contender.figures, strict=True):
            sizes = (each.instructions, each.verified_instructions, each.jited_bytes)
            rows.append((f"{contender.name}, {direction}", *map(str, sizes)))
    print_table(
        "Programs with their subprograms, also those for rare cases",
        ("", "instructions", "verified instructions", "bytes of machine code"),
        rows,
    )
