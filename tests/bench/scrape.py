"""A scrape of 100, 1,000 and 7,000 active cgroups: its parts, and the first flush, which names them."""

import os
import socket
import time
from contextlib import ExitStack, closing

from tests.bench.support import Cgroups, Spread, cgroups, print_table, verdict

from sockledger.collectors.registry import COLLECTORS, Registry
from sockledger.exposition import text
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.meters import Meters
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger

ROUNDS = 7
CGROUPS = (100, 1_000, 7_000)
GROWTH = 1.2  # the target: so many times as long for a cgroup at the most of them as at a tenth, no more


def run() -> None:
    """Measure, and print a table."""
    rows, whole = [], {}
    for count in CGROUPS:
        with cgroups(count) as below:
            cells, seconds = _measure(below, count)
        rows.append((f"{count} cgroups", *cells))
        whole[count] = seconds.median / count
    print_table(
        f"A scrape with all collectors, each cgroup active: min / median / max of {ROUNDS}",
        ("ms", "first flush", "flush", "collecting, rendering", "both, µs a cgroup"),
        rows,
    )
    few, many = (whole[count] for count in CGROUPS[1:])
    print(
        f"  a cgroup costs {many / few:.2f} times as much at {CGROUPS[-1]} as at {CGROUPS[-2]}; "
        + verdict(f"target: linear, at most {GROWTH}", met=many / few <= GROWTH)
    )


def _talk(socks: list[socket.socket]) -> None:
    for each in socks:
        each.sendto(b"x", each.getsockname())
        each.recv(1)


def _measure(below: Cgroups, count: int) -> tuple[tuple[str, ...], Spread]:
    with ExitStack() as stack:
        root = CgroupRoot(below.path)
        stack.callback(os.close, root.fd)
        path = stack.enter_context(closing(DataPath(root, cgroups=8192, sockets=65536, connections=65536)))
        path.attach()
        socks = []
        for child in below.children:
            Cgroups.enter(child)
            socks.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            socks[-1].bind(("127.0.0.1", 0))
        births = Births({})
        ledger = Ledger(path, root, Meters((), root, path), births=births)
        registry = Registry(COLLECTORS, ledger, births)
        flushes, pages = [], []
        for _ in range(1 + ROUNDS):
            _talk(socks)
            begin = time.perf_counter()
            ledger.flush()
            flushed = time.perf_counter()
            text.render(registry.collect(), seen=births.newest, openmetrics=False)
            flushes.append(flushed - begin)
            pages.append(time.perf_counter() - flushed)
    first, both = flushes[0], Spread([a + b for a, b in zip(flushes[1:], pages[1:], strict=True)])
    cells = (
        f"{1e3 * first:.1f}",
        f"{Spread([1e3 * each for each in flushes[1:]]):.1f}",
        f"{Spread([1e3 * each for each in pages[1:]]):.1f}",
        f"{Spread([1e6 * each / count for each in both.values]):.1f}",
    )
    return cells, both
