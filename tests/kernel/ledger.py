"""What tests do with a DataPath: flush it, and compare what it says."""

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import reduce

from tests.kernel.objects import BPF

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.sums import Traffic
from sockledger.kernel.tag_pin import TagPin

NOTHING = Traffic(0, 0, 0, 0)
CGROUPS = 1000
SOCKETS = 65536
CONNECTIONS = 100_000
ALL_PARTS = Parts(tcp_histograms=True)


@contextmanager
def attached(
    root: CgroupRoot,
    image: bytes | None = None,
    *,
    cgroups: int = CGROUPS,
    sockets: int = SOCKETS,
    connections: int = CONNECTIONS,
    label_sets: int = 0,
    comms: int = 20,
    tags: int = 16,
    tag_pin: TagPin | None = None,
    parts: Parts = ALL_PARTS,
    kind: type[DataPath] = DataPath,
) -> Iterator[DataPath]:
    path = kind(
        root,
        cgroups=cgroups,
        sockets=sockets,
        connections=connections,
        label_sets=label_sets,
        comms=comms,
        tags=tags,
        tag_pin=tag_pin,
        parts=parts,
        image=image,
    )
    try:
        path.attach()
        yield path
    finally:
        path.close()


@contextmanager
def repeating(action: Callable[[], object], period: float | None) -> Iterator[None]:
    """Do it in a thread, *period* seconds apart; None: never."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(period):
            action()

    thread = threading.Thread(target=loop)
    if period is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if period is not None:
            thread.join()


def flushing(path: DataPath, period: float | None, *, grace: bool = True) -> AbstractContextManager[None]:
    """Flush all the while, *period* seconds apart; None: never.

    Without *grace*, and so oftener than the kernel's grace periods allow: only for builds that never retire.
    """
    return repeating(path.flush_sockets if grace else path.programs["sl_flush"].run, period)


def flush(path: DataPath) -> None:
    """Flush, and wait for drains that began elsewhere."""
    path.flush_sockets()
    path.grace_period()


def all_totals(path: DataPath) -> Traffic:
    overflow = (traffic for _, traffic in path.overflow())
    return reduce(Traffic.plus, [*(traffic for _, traffic in path.totals()), *overflow], NOTHING)


def control(path: DataPath, root: CgroupRoot) -> Traffic:
    """What went through the attach point at the root, which is there all the while."""
    found = path.control(root.id)
    assert found is not None
    return found


def minus(left: Traffic, right: Traffic) -> Traffic:
    return Traffic(*map(int.__sub__, left, right))


def stop_counting(path: DataPath) -> None:
    """Take off the hot path, and let what runs of it end."""
    for name in ("sl_transmit", "sl_receive"):
        path.links.remove(name)
    path.grace_period()


def final_difference(path: DataPath, root: CgroupRoot) -> Traffic:
    """Stop counting, and return totals minus control: exact, whatever else runs on this machine."""
    stop_counting(path)
    flush(path)
    return minus(all_totals(path), control(path, root))


def totals_of(path: DataPath, cgroup_id: int) -> dict[tuple[str, str], Traffic]:
    """Return a cgroup's totals by protocol and family."""
    found: dict[tuple[str, str], Traffic] = defaultdict(lambda: NOTHING)
    for key, traffic in path.totals():
        if key.cgroup_id == cgroup_id and any(traffic):
            name = path.labels.protocol[key.protocol], path.labels.family[key.family]
            found[name] = found[name].plus(traffic)
    return dict(found)


def seats(path: DataPath) -> list[dict[str, int]]:
    table = path.maps["sockets"]
    return [table.value.unpack(table.lookup_index(index)) for index in range(table.max_entries)]


def branches(path: DataPath) -> dict[str, int]:
    """Return how often each branch was taken, of an object with BRANCH_COUNTERS."""
    names = re.findall(r"^\tBRANCH_(\w+),", (BPF / "branch.h").read_text(), re.MULTILINE)
    table = path.maps["branches"]
    return {name: int.from_bytes(table.lookup_index(index), "little") for index, name in enumerate(names)}


def record_of(path: DataPath, sums: str, *key: int) -> dict[str, int]:
    """Return one entry of a map of sums, by the names of its members; all 0 if there is none."""
    fields = path.sums[sums].fields
    return dict(zip(fields, dict(path.sums[sums].rows()).get(key, (0,) * len(fields)), strict=True))
