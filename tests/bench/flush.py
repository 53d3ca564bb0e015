"""Flush of 100,000 sockets against `ss` on the same, and how long either keeps a real-time task waiting."""

import math
import os
import resource
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
CONNECTIONS = 50_000  # two sockets each
OVER_SS, DELAY_PER_SOCKET = 10, 0.5e-6  # the targets


def _processes() -> int:
    """Return how many it takes to hold all sockets, given how many descriptors and local ports one has."""
    sockets = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100, 20_000)
    return math.ceil(2 * CONNECTIONS / sockets)


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

    def row(self) -> tuple[str, str, str]:
        return (
            self.name,
            f"{Spread([1e3 * value for value in self.seconds]):.1f}",
            f"{Spread([1e3 * value for value in self.delays]):.2f}",
        )


def _ss() -> None:
    subprocess.run(["ss", "-tinH"], check=True, stdout=subprocess.DEVNULL)


def run() -> None:
    """Measure, and print a table."""
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, affinity)
        below = stack.enter_context(cgroups(1))
        root = CgroupRoot(below.path)
        stack.callback(os.close, root.fd)
        path = stack.enter_context(closing(DataPath(root, cgroups=1024, sockets=SEATS, connections=1000)))
        path.attach()
        Cgroups.enter(below.children[0])
        processes = _processes()
        share = str(math.ceil(CONNECTIONS / processes))
        holders = [  # each at an address of its own, so that the local ports suffice
            stack.enter_context(worker("connections", f"127.0.0.{number + 2}", share))
            for number in range(processes)
        ]
        watch = stack.enter_context(worker("wakeup", str(CPU)))
        quiet = _Series("nothing, for 50 ms", lambda: time.sleep(0.05))
        idle = _Series("flush, all sockets idle", path.flush_sockets)
        active = _Series("flush, all sockets active", path.flush_sockets)
        ss = _Series("ss -tinH", _ss)
        for _ in range(ROUNDS):
            quiet.run(watch)
            _send_over(holders)
            active.run(watch)
            idle.run(watch)  # and takes all seats back
            visited = path.flush_sockets()
            ss.run(watch)
    everything = (quiet, idle, active, ss)
    print_table(
        f"Flush of {visited} TCP sockets: {ROUNDS} rounds",
        ("min / median / max", "ms", "worst delay of a SCHED_FIFO task there, ms"),
        [series.row() for series in everything],
    )
    for series in (idle, active):
        faster = Spread([theirs / ours for theirs, ours in zip(ss.seconds, series.seconds, strict=True)])
        print(
            f"  {series.name}: {faster:.1f} times as fast as ss; "
            + verdict(f"target: {OVER_SS} times", met=faster.median >= OVER_SS)
        )
        delay = max(series.delays) / visited
        print(
            f"  {series.name}: worst delay {1e6 * delay:.2f} µs a socket; "
            + verdict(f"target: at most {1e6 * DELAY_PER_SOCKET:.1f} µs", met=delay <= DELAY_PER_SOCKET)
        )
