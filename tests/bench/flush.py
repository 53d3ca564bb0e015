"""Flush of up to 100,000 sockets against `ss`, and how long either keeps a real-time task waiting."""

import math
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

from tests.bench.support import CPU, Cgroups, Spread, cgroups, print_table, verdict
from tests.bench.worker import Worker, worker

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath

ROUNDS = 7
SEATS = 262_144
CONNECTIONS = (500, 5_000, 50_000)  # two sockets each
OVER_SS, DELAY_PER_SOCKET = 10, 0.5e-6  # the targets


def _processes(connections: int) -> int:
    """Return how many it takes to hold all sockets, given how many descriptors and local ports one has."""
    sockets = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100, 20_000)
    return math.ceil(2 * connections / sockets)


def _send_over(holders: list[Worker]) -> None:
    """Have every socket send and receive."""
    for holder in holders:
        holder.ask()
    for holder in holders:
        holder.answer()


def _worst_delay(watch: Worker) -> float:
    """Return by how much the real-time task was late at most since this was last asked."""
    watch.ask()
    return float(watch.answer())


class _Series:
    """Rounds of one thing: its durations, and the sleeper's worst delays meanwhile."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name = name
        self.action = action
        self.seconds: list[float] = []
        self.delays: list[float] = []

    def run(self, watch: Worker) -> None:
        _worst_delay(watch)
        begin = time.perf_counter()
        self.action()
        self.seconds.append(time.perf_counter() - begin)
        self.delays.append(_worst_delay(watch))

    def row(self, sockets: int) -> tuple[str, ...]:
        return (
            self.name,
            f"{Spread([1e3 * value for value in self.seconds]):.1f}",
            f"{1e9 * statistics.median(self.seconds) / sockets:.0f}",
            f"{Spread([1e3 * value for value in self.delays]):.2f}",
        )


def _ss() -> None:
    subprocess.run(["ss", "-tinH"], check=True, stdout=subprocess.DEVNULL)


def run() -> None:
    """Measure, and print a table for each number of sockets; the targets are for the most."""
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, affinity)
        for connections in CONNECTIONS:
            with cgroups(1) as below:
                _measure(below, connections, judge=connections == max(CONNECTIONS))


def _measure(below: Cgroups, connections: int, *, judge: bool) -> None:
    with ExitStack() as stack:
        root = CgroupRoot(below.path)
        stack.callback(os.close, root.fd)
        path = stack.enter_context(closing(DataPath(root, cgroups=1024, sockets=SEATS, connections=SEATS)))
        path.attach()
        Cgroups.enter(below.children[0])
        processes = _processes(connections)
        share = str(math.ceil(connections / processes))
        holders = [  # each at an address of its own, so that the local ports suffice
            stack.enter_context(worker("connections", f"127.0.0.{number + 2}", share))
            for number in range(processes)
        ]
        watch = stack.enter_context(worker("wakeup", str(CPU)))
        quiet = _Series("nothing, for 50 ms", lambda: time.sleep(0.05))
        active = _Series("sl_flush, all sockets active", path.flush_sockets)
        active_tcp = _Series("sl_tcp_flush, all sockets active", path.flush_tcp)
        idle = _Series("sl_flush, all sockets idle", path.flush_sockets)
        idle_tcp = _Series("sl_tcp_flush, all sockets idle", path.flush_tcp)
        ss = _Series("ss -tinH", _ss)
        everything = (quiet, active, active_tcp, idle, idle_tcp, ss)
        for _ in range(ROUNDS):
            _send_over(holders)
            for series in everything:  # the idle flush takes all seats back
                series.run(watch)
            visited = path.flush_sockets()
        sockets = path.flush_tcp()
    print_table(
        f"Flush of {sockets} TCP sockets, {visited} seats: {ROUNDS} rounds",
        ("min / median / max", "ms", "ns a socket", "worst delay of a SCHED_FIFO task there, ms"),
        [series.row(sockets) for series in everything],
    )
    if judge:
        _print_verdicts({"idle": (idle, idle_tcp), "active": (active, active_tcp)}, ss, sockets)


def _print_verdicts(both: dict[str, tuple[_Series, _Series]], ss: _Series, sockets: int) -> None:
    for name, (seats, tcp) in both.items():
        seconds = [sum(pair) for pair in zip(seats.seconds, tcp.seconds, strict=True)]
        faster = Spread([theirs / ours for theirs, ours in zip(ss.seconds, seconds, strict=True)])
        print(
            f"  both flushes, {name}: {faster:.1f} times as fast as ss; "
            + verdict(f"target: {OVER_SS} times", met=faster.median >= OVER_SS)
        )
        delay = max(*seats.delays, *tcp.delays) / sockets
        print(
            f"  either flush, {name}: worst delay {1e6 * delay:.2f} µs a socket; "
            + verdict(f"target: at most {1e6 * DELAY_PER_SOCKET:.1f} µs", met=delay <= DELAY_PER_SOCKET)
        )
