"""Cgroups that are gone: each has had its name, and what it has counted stays with it."""

import errno
import gc
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread

import pytest
from tests.kernel import ledger as kernel_ledger
from tests.kernel.ledger import (
    CGROUPS,
    NOTHING,
    all_totals,
    control,
    final_difference,
    repeating,
    stop_counting,
)
from tests.kernel.machine import Cgroup, Netns, new_cgroup, run
from tests.kernel.objects import PAUSE, SLOW_MOTION, Change, build
from tests.kernel.tcp import ESTABLISHED, new_ends, reset
from tests.kernel.traffic import scaled
from tests.patience import eventually

from sockledger.collectors.registry import COLLECTORS, Registry
from sockledger.exposition import text
from sockledger.exposition.family import Series
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.libbpf import Program, Table
from sockledger.kernel.meters import Meters
from sockledger.kernel.noted import ENDED, KeptLabelSet, NotedCgroup, boottime
from sockledger.kernel.shown import ShownMap
from sockledger.kernel.sums import RETIRED
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.retirement import label_set_id
from sockledger.ledger.scrapers import RECENT
from sockledger.workloads.names import Names
from sockledger.workloads.naming import Naming, Workload

HEADERS = {socket.AF_INET: 20 + 8, socket.AF_INET6: 40 + 8}
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
GONE = 600.0
SECOND = 10**9
LONG_ENOUGH = int(GONE + 1) * SECOND
attached = partial(kernel_ledger.attached, label_sets=CGROUPS)
DAY = 86400 * SECOND


class Clock:
    """CLOCK_BOOTTIME, and what the test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return boottime() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ledger_of(path: DataPath, root: CgroupRoot, clock: Clock) -> Ledger:
    return Ledger(path, root, Meters((), root, path), gone=GONE, clock=clock)


@contextmanager
def new_socket(
    netns: Netns, cgroup: Cgroup, family: socket.AddressFamily = socket.AF_INET
) -> Iterator[socket.socket]:
    """A UDP socket of the cgroup, bound, that nothing else sends to."""
    with netns.entered(), cgroup.joined(), socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind((HOSTS[family], 0))
        made.settimeout(20)
        yield made


def exchange(made: socket.socket, number: int, size: int = 100) -> int:
    """Send datagrams from a socket to itself; return the bytes sent, and received."""
    for _ in range(number):
        made.sendto(bytes(size), made.getsockname())
        assert len(made.recv(65536)) == size
    return number * (size + HEADERS[made.family])


def send(
    netns: Netns,
    cgroup: Cgroup,
    number: int = 10,
    size: int = 100,
    family: socket.AddressFamily = socket.AF_INET,
) -> int:
    with new_socket(netns, cgroup, family) as made:
        return exchange(made, number, size)


def sent(ledger: Ledger) -> dict[str, int]:
    """Return the bytes sent of each cgroup that is shown, by name."""
    found: Counter[str] = Counter()
    for account, traffic in ledger.books.accounts.items():
        assert traffic.transmit_bytes == traffic.receive_bytes
        found[account.workload.cgroup] += traffic.transmit_bytes
    return dict(found)


def released(path: DataPath, number: int) -> None:
    """Wait until the kernel has released so many of the cgroups that are noted."""
    eventually(lambda: sum(each.released > 0 for each in path.cgroups.all().values()) == number, "released")


def fold(ledger: Ledger, clock: Clock) -> None:
    """Let enough time go by, and all that is gone be folded and forgotten."""
    clock.ahead += LONG_ENOUGH
    for _ in range(3):
        ledger.flush()


def assert_balanced(path: DataPath, root: CgroupRoot) -> None:
    """All that is in the maps is all that has passed the root, to the byte."""
    stop_counting(path)
    path.flush_sockets()
    path.grace_period()
    assert all_totals(path) == control(path, root) != NOTHING


def kept(path: DataPath) -> dict[str, int]:
    """Return the label sets' ids, by what they have for cgroup."""
    return {Workload(*each.labels).cgroup: number for number, each in path.label_sets.all().items()}


def entries(path: DataPath) -> dict[str, int]:
    """Return how many entries there are in each map that grows with cgroups."""
    names = ("cgroups", "label_sets", "shown", *path.kept)
    return {
        name: sum(len(keys) for keys, _ in path.maps[name].batches()) // path.maps[name].key_size
        for name in names
    }


# ---- names


@pytest.mark.parametrize("period", [0.05, None], ids=["flushed meanwhile", "nobody looks"])
def test_a_thousand_short_lives(
    parent: Cgroup, below: CgroupRoot, netns: Netns, period: float | None
) -> None:
    """Each lives for about 100 ms and sends a number of bytes of its own."""
    count, at_once = scaled(1000), 50
    truth = {}
    with attached(below, cgroups=2 * count) as path:
        ledger = Ledger(path, below, Meters((), below, path))
        with repeating(ledger.flush, period):
            for first in range(0, count, at_once):
                with ExitStack() as stack:
                    for number in range(first, min(first + at_once, count)):
                        cgroup = stack.enter_context(new_cgroup(parent.path, f"job-{number}"))
                        truth[f"/job-{number}"] = send(netns, cgroup, 1 + number % 3, 100 + number)
                    time.sleep(0.1)
        released(path, count)
        ledger.flush()
        assert sent(ledger) == truth
        assert path.lost_updates()["name_full"] == 0
        assert_balanced(path, below)


def test_below_another_root(parent: Cgroup, netns: Netns) -> None:
    """Names begin at the cgroup in which we count; those beside it are not noted."""
    with ExitStack() as stack:
        root_cgroup = stack.enter_context(new_cgroup(parent.path, "root"))
        root = CgroupRoot(root_cgroup.path)
        stack.callback(os.close, root.fd)
        older = stack.enter_context(new_cgroup(root_cgroup.path, "older"))
        path = stack.enter_context(attached(root))
        a = stack.enter_context(new_cgroup(root_cgroup.path, "a"))
        b = stack.enter_context(new_cgroup(a.path, os.fsdecode(b"b \xff")))
        stack.enter_context(new_cgroup(parent.path, "beside"))
        assert {number: each.path for number, each in path.cgroups.all().items()} == {
            older.id: "/older",
            a.id: "/a",
            b.id: os.fsdecode(b"/a/b \xff"),
        }


def test_other_hierarchies_are_not_noted(root: CgroupRoot, parent: Cgroup, tmp_path: Path) -> None:
    """Cgroup v1's ids coincide with v2's: its cgroups come and go until one has."""
    with ExitStack() as stack:
        path = stack.enter_context(attached(root))
        # ids go up by the number of a cgroup's files, which are not as many in both hierarchies
        ours = {
            cgroup.id: f"/{parent.path.name}/{cgroup.path.name}"
            for cgroup in (stack.enter_context(new_cgroup(parent.path, f"{n}")) for n in range(100))
        }
        other = tmp_path / "v1"
        other.mkdir()
        run("mount", "-t", "cgroup", "-o", "none,name=sockledger-test", "none", str(other))
        stack.callback(run, "umount", str(other))
        met = set()
        number = 0
        while number < max(ours):
            with new_cgroup(other, "other") as cgroup:
                number = cgroup.id
            met |= {number} & ours.keys()
        assert met
        noted = path.cgroups.all()
        assert {number: noted[number].path for number in ours} == ours
        assert not any(noted[number].removed or noted[number].released for number in ours)
        assert not any("other" in each.path for each in noted.values())


LONGEST = 414


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1])
def test_a_long_path_is_never_cut(parent: Cgroup, netns: Netns, length: int, clock: Clock) -> None:
    prefix = f"/{parent.path.name}/"
    first, second = "a" * 200, "b" * (length - len(prefix) - 201)
    with ExitStack() as stack:
        stack.enter_context(new_cgroup(parent.path, "beside"))
        root = CgroupRoot(parent.path)
        stack.callback(os.close, root.fd)
        path = stack.enter_context(attached(root))
        ledger = ledger_of(path, root, clock)
        outer = stack.enter_context(new_cgroup(parent.path, first))
        with new_cgroup(outer.path, second) as cgroup:
            truth = {f"/{first}/{second}": send(netns, cgroup)}
            ledger.flush()
            assert sent(ledger) == truth
        assert path.lost_updates()["name_full"] == (length > LONGEST)
        eventually(lambda: not (outer.path / second).exists())
        for _ in range(3):
            ledger.flush()
        assert sent(ledger) == truth
        eventually(lambda: any(each.released for each in path.cgroups.all().values()))
        fold(ledger, clock)
        assert sent(ledger) == {}
        assert_balanced(path, root)


def test_no_room_for_names(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """Those beyond are named if a flush sees them; all are counted, and there is room again later."""
    with ExitStack() as stack:
        path = stack.enter_context(attached(below, cgroups=3))
        ledger = ledger_of(path, below, clock)
        with ExitStack() as lives:
            cgroups = [lives.enter_context(new_cgroup(parent.path, f"{n}")) for n in range(6)]
            truth = {f"/{n}": send(netns, cgroup, 1 + n) for n, cgroup in enumerate(cgroups)}
            assert path.lost_updates()["name_full"] == 3
            with new_cgroup(parent.path, "short") as cgroup:
                truth["unknown"] = send(netns, cgroup, 50)
            eventually(lambda: below.path_of(cgroups[5].id) is not None)
            ledger.flush()
            assert sent(ledger) == truth
        released(path, 3)
        ledger.flush()
        assert sent(ledger) == truth
        for _ in range(5):
            fold(ledger, clock)
        assert sent(ledger) == {}
        # nobody has seen the ends of those for which there was no room
        noted = path.cgroups.all()
        assert len(noted) == 2
        assert path.lost_updates()["name_full"] == 4
        assert {key.cgroup_id for key, _ in path.totals()} == {RETIRED, *path.label_sets.all(), *noted}
        assert_balanced(path, below)


@pytest.mark.parametrize("held", [True, False])
def test_removed_while_older_ones_are_looked_for(
    parent: Cgroup, below: CgroupRoot, netns: Netns, monkeypatch: pytest.MonkeyPatch, *, held: bool
) -> None:
    """Only the kernel says that one is released, for sockets may count for it until then."""
    walk = CgroupRoot.walk
    with attached(below) as path, ExitStack() as stack:
        a = Cgroup(parent.path / "a")
        a.path.mkdir()
        number = a.id
        if held:
            with new_socket(netns, a) as made:
                stack.enter_context(made.dup())

        def remove_and_walk(root: CgroupRoot) -> Iterator[tuple[int, str]]:
            a.path.rmdir()
            if not held:
                released(path, 1)
            yield from walk(root)

        monkeypatch.setattr(CgroupRoot, "walk", remove_and_walk)
        path.cgroups.note_older(below)
        noted = path.cgroups.all()[number]
        assert (noted.removed > 0, noted.released > 0) == (True, not held)


def test_an_end_for_which_there_was_no_room(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """Sockets that outlive the cgroup still count for it."""
    with attached(below, cgroups=2) as path, ExitStack() as stack:
        ledger = ledger_of(path, below, clock)
        with ExitStack() as lives:
            for name in ("one", "other"):
                lives.enter_context(new_cgroup(parent.path, name))
            with new_cgroup(parent.path, "a") as a, new_socket(netns, a) as made:
                number = a.id
                truth = exchange(made, 3)
                held = stack.enter_context(made.dup())
                held.settimeout(20)
                ledger.flush()
        released(path, 2)
        for _ in range(3):
            ledger.flush()
        assert path.cgroups.all().keys() == {number}
        for _ in range(2):
            assert sent(ledger) == {"/a": truth}
            fold(ledger, clock)
            assert sent(ledger) == {}
            assert not path.cgroups.all()[number].released
            truth += exchange(held, 5)
            ledger.flush()
        assert_balanced(path, below)


# ---- no room, and not released


def end_with_a_socket(
    parent: Cgroup, netns: Netns, name: str, stack: ExitStack, number: int = 10
) -> tuple[socket.socket, int]:
    """A cgroup that is gone, but for a socket; return it, and the bytes sent."""
    with new_cgroup(parent.path, name) as cgroup, new_socket(netns, cgroup) as made:
        held = stack.enter_context(made.dup())
        held.settimeout(20)
        return held, exchange(made, number)


def datagrams(ledger: Ledger) -> dict[str, int]:
    return {
        account.workload.cgroup: traffic.transmit_bytes
        for account, traffic in ledger.books.accounts.items()
        if account.protocol == "udp"
    }


def test_the_oldest_make_room(
    parent: Cgroup, below: CgroupRoot, server: Cgroup, netns: Netns, clock: Clock
) -> None:
    """There is always room for new names and sums. What they count at last counts as unknown."""
    room, held = 16, []
    with attached(below, cgroups=room) as path, ExitStack() as stack:
        ledger = ledger_of(path, below, clock)
        with new_cgroup(parent.path, "connected") as cgroup:
            connected = cgroup.id
            [pair] = stack.enter_context(new_ends(cgroup, server, netns)).pairs(1)
            pair.exchange(100, 100)
        for number in range(3 * room):
            made, truth = end_with_a_socket(parent, netns, f"job-{number}", stack)
            held.append(made)
            ledger.flush()
            assert datagrams(ledger)[f"/job-{number}"] == truth
            fold(ledger, clock)
            fold(ledger, clock)
        lost = path.lost_updates()
        assert not lost["name_full"]
        assert not lost["totals_full"]
        noted = path.cgroups.all()
        names = [noted[number].path for number in sorted(noted, key=lambda number: noted[number].removed)]
        stay = room - room // 8 - 2
        assert names[:2] == ["/server", "/connected"]
        assert names[2:] == [f"/job-{number}" for number in range(3 * room - stay, 3 * room)]
        for name in path.kept:
            cgroups = {key[0] for key, _ in rows_of(path, name) if 0 < key[0] < RETIRED}
            assert cgroups <= noted.keys()
        again = {"/job-47": truth + exchange(held[-1], 3), "unknown": exchange(held[0], 4)}
        ledger.flush()
        assert {name: datagrams(ledger)[name] for name in again} == again
        assert noted[connected].released == 0
        reset(pair.client)
        ledger.flush()
        names_of = path.sums["tcp_totals"].fields
        record = ledger.books.sums["tcp_totals"][Workload(cgroup="/connected"), ()]
        assert dict(zip(names_of, record, strict=True))[f"sockets[{ESTABLISHED}]"] == 0
        assert_balanced(path, below)


def test_a_restart_takes_no_room_twice(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """Where room is short, a daemon shows what came and went before it until all scrapers must have come."""
    room = 16
    with attached(below, cgroups=room) as path:
        truth: dict[str, int] = {}
        for made, is_short in ((room // 2, False), (room - 1, True)):
            for number in range(len(truth), made):  # no daemon runs
                with new_cgroup(parent.path, f"job-{number}") as cgroup:
                    truth[f"/job-{number}"] = send(netns, cgroup)
            released(path, made)
            clock.ahead += LONG_ENOUGH
            ledger = ledger_of(path, below, clock)
            for wait in (0, RECENT - SECOND):
                clock.ahead += wait
                ledger.flush()
                assert sent(ledger) == truth
            clock.ahead += 2 * SECOND
            for _ in range(3):
                ledger.flush()
            assert sent(ledger) == ({} if is_short else truth)
            assert len(path.cgroups.all()) == (0 if is_short else made)
        assert not path.lost_updates()["name_full"]
        assert_balanced(path, below)


class Interrupted(DataPath):
    """A packet finds rows just before they are closed."""

    send: Callable[[], object]
    closing = False

    @contextmanager
    def closed(self, cgroups: Sequence[int]) -> Iterator[None]:
        before = self.control(self._root.id)
        thread = Thread(target=self.send)
        thread.start()
        eventually(lambda: self.control(self._root.id) != before)
        time.sleep(0.01)
        self.closing = True
        with super().closed(cgroups):
            self.closing = False
            yield
        thread.join()


class Hasty(Interrupted):
    def grace_period(self) -> None:
        if not self.closing:
            super().grace_period()


def test_counted_while_its_rows_are_deleted(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, tmp_path: Path
) -> None:
    """A slow packet adds to the row that it has found: it is deleted only after a grace period."""
    found = "	if (!t)\n		return;\n	if (direction == RECEIVE)\n"
    pause = PAUSE.replace("20000", "4000000")
    image = build(tmp_path, (*SLOW_MOTION[:1], Change("traffic.h", found, f"	{pause}{found}")))

    def is_lost(kind: type[Interrupted]) -> bool:
        with ExitStack() as stack:
            path = stack.enter_context(attached(below, image, cgroups=2, sockets=1, kind=kind))
            assert isinstance(path, Interrupted)
            ledger = ledger_of(path, below, clock)
            busy = stack.enter_context(new_cgroup(parent.path, "busy"))
            seated = stack.enter_context(new_socket(netns, busy))
            exchange(seated, 1)  # it has the only seat
            made, truth = end_with_a_socket(parent, netns, "a", stack, 1)
            path.send = partial(exchange, made, 1)
            for _ in range(3):
                exchange(seated, 1)
                ledger.flush()
                clock.ahead += LONG_ENOUGH
            difference = final_difference(path, below)
            assert difference in (NOTHING, (0, 0, -truth, -1))
            return difference != NOTHING

    assert not is_lost(Interrupted)
    # beside other work it takes luck
    assert any(is_lost(Hasty) for _ in range(10))


# ---- ends


def test_sockets_that_outlive_their_cgroup(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """They count for it as long as they live; it is hidden while they are silent."""
    with attached(below) as path, ExitStack() as stack:
        ledger = ledger_of(path, below, clock)
        with new_cgroup(parent.path, "a") as a, new_socket(netns, a) as made:
            number = a.id
            truth = exchange(made, 3)
            held = stack.enter_context(made.dup())
        held.settimeout(20)
        for _ in range(3):
            ledger.flush()
            assert sent(ledger) == {"/a": truth}
            fold(ledger, clock)
            assert sent(ledger) == {}
            removed, released_at, name = path.cgroups.all()[number]
            assert (removed > 0, released_at, name) == (True, 0, "/a")
            truth += exchange(held, 7)
        # while it counts it is shown
        for _ in range(5):
            clock.ahead += LONG_ENOUGH
            truth += exchange(held, 1)
            for _ in range(3):
                ledger.flush()
                assert sent(ledger) == {"/a": truth}
        held.close()
        released(path, 1)
        fold(ledger, clock)
        assert sent(ledger) == {}
        assert entries(path)["cgroups"] == 0
        assert_balanced(path, below)


def test_shown_until_its_time_has_come(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    with attached(below) as path:
        births = Births({}, clock=clock)
        ledger = Ledger(path, below, Meters((), below, path), gone=GONE, births=births, clock=clock)
        with new_cgroup(parent.path, "a") as a:
            truth = {"/a": send(netns, a)}
        released(path, 1)
        clock.ahead += int(GONE - 60) * SECOND
        for _ in range(3):
            ledger.flush()
            assert sent(ledger) == truth
            assert path.label_sets.all() == {}
        # a scraper that has not seen it yet, in a page at least where it was not new
        for pages in range(3):
            clock.ahead += 61 * SECOND
            births.note_page("one", 0, 0 if pages == 0 else ledger.books.began)
            ledger.flush()
            assert sent(ledger) == truth
            assert bool(path.label_sets.all()) == (pages == 2)
        for _ in range(2):
            ledger.flush()
        assert sent(ledger) == {}


def test_one_that_counted_nothing(parent: Cgroup, below: CgroupRoot, clock: Clock) -> None:
    with attached(below) as path:
        ledger = ledger_of(path, below, clock)
        with new_cgroup(parent.path, "a"):
            ledger.flush()
            assert len(path.cgroups.all()) == 1
        released(path, 1)
        ledger.flush()
        assert path.cgroups.all() == {}


def test_folded_under_the_traffic_of_another_with_the_same_path(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """A unit that is started again, and again: one series, which never falls."""
    truth, seen = 0, [0]
    with attached(below) as path:
        ledger = ledger_of(path, below, clock)
        for _ in range(10):
            with new_cgroup(parent.path, "a") as a, new_socket(netns, a) as made:
                bytes_sent = [exchange(made, 20)]

                def send_one(made: socket.socket = made, bytes_sent: list[int] = bytes_sent) -> None:
                    bytes_sent.append(made.sendto(bytes(100), made.getsockname()) + HEADERS[made.family])

                with repeating(send_one, 0.0005):
                    for _ in range(3):
                        clock.ahead += LONG_ENOUGH
                        ledger.flush()
                        seen.append(sent_so_far(ledger))
                truth += sum(bytes_sent)
            eventually(lambda: any(each.released for each in path.cgroups.all().values()))
        ledger.flush()
        assert seen == sorted(seen)
        assert sent(ledger) == {"/a": truth}
        assert entries(path)["cgroups"] <= 2
        assert_balanced(path, below)


def sent_so_far(ledger: Ledger) -> int:
    (traffic,) = ledger.books.accounts.values()
    return traffic.transmit_bytes


def test_all_sums_are_kept(parent: Cgroup, below: CgroupRoot, clock: Clock) -> None:
    """Each map's rows, word by word; a listener's port stays, too, until the label set ends."""
    with attached(below) as path:
        ledger = ledger_of(path, below, clock)
        retired = {name: dict(rows_of(path, name)) for name in path.kept}
        with new_cgroup(parent.path, "a") as a:
            number = a.id
        released(path, 1)
        members = {"protocol": 2, "family": 1, "peer": 3, "unused": 4, "port": 80}
        wanted = {}
        for name in path.kept:
            table = path.maps[name]
            key = tuple(members.get(field.name, number) for field in table.key.fields)
            sums = tuple(range(1000, 1000 + len(table.value.fields)))
            table.update(table.key.struct.pack(*key), table.value.struct.pack(*sums))
            wanted[name] = key[1:], sums
        clock.ahead += LONG_ENOUGH
        label_set = label_set_id(Workload(cgroup="/a"))
        for _ in range(3):
            ledger.flush()
        for name, (rest, sums) in wanted.items():
            assert dict(rows_of(path, name)) == {**retired[name], (label_set, *rest): sums}
        clock.ahead += DAY
        for _ in range(2):
            ledger.flush()
        for name, (rest, sums) in wanted.items():
            key = (RETIRED, 2, 1, 0, 0) if name == "totals" else (RETIRED, *(0 for _ in rest))
            assert dict(rows_of(path, name)) == {**retired[name], key: sums}


def rows_of(path: DataPath, name: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    table = path.maps[name]
    for keys, values in table.batches():
        yield from zip(table.key.unpack_all(keys), table.value.unpack_all(values), strict=True)


def test_connections_that_outlive_their_cgroup(
    parent: Cgroup, below: CgroupRoot, server: Cgroup, netns: Netns, clock: Clock
) -> None:
    """What is open is counted across the cgroup's rows and its label set's, beside one with the same path."""
    with attached(below) as path, ExitStack() as stack:
        ledger = ledger_of(path, below, clock)

        def open_now() -> tuple[int, int, int]:
            ledger.flush()
            names = path.sums["tcp_totals"].fields
            record = ledger.books.sums["tcp_totals"][Workload(cgroup="/a"), ()]
            found = dict(zip(names, record, strict=True))
            return found["opened[0]"], found["closed[0]"], found[f"sockets[{ESTABLISHED}]"]

        with new_cgroup(parent.path, "a") as a:
            gone = a.id
            older = stack.enter_context(new_ends(a, server, netns)).pairs(3)
            assert open_now() == (3, 0, 3)
        a = stack.enter_context(new_cgroup(parent.path, "a"))
        with new_ends(a, server, netns) as ends:
            newer = ends.pairs(2)
            for _ in range(3):
                assert open_now() == (5, 0, 5)
                clock.ahead += LONG_ENOUGH
            for ended, pair in enumerate(older, 1):
                reset(pair.client)
                for _ in range(3):
                    assert open_now() == (5, ended, 5 - ended)
                    clock.ahead += LONG_ENOUGH
            eventually(lambda: open_now() == (5, 3, 2) and gone not in path.cgroups.all())
            reset(newer[0].client)
            assert open_now() == (5, 4, 1)


def test_comes_back_within_a_day(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    with attached(below) as path:
        ledger = ledger_of(path, below, clock)
        truth = 0
        for _ in range(3):
            with new_cgroup(parent.path, "a") as a:
                ledger.flush()
                assert sent(ledger) == ({"/a": truth} if truth else {}), "as it was, before any traffic"
                truth += send(netns, a)
                ledger.flush()
                assert sent(ledger) == {"/a": truth}
            released(path, 1)
            fold(ledger, clock)
            assert sent(ledger) == {}
            clock.ahead += DAY - 2 * LONG_ENOUGH
            ledger.flush()
        assert entries(path)["label_sets"] == 1
        clock.ahead += 3 * LONG_ENOUGH
        for _ in range(2):
            ledger.flush()
        assert entries(path)["label_sets"] == 0
        with new_cgroup(parent.path, "a") as a:
            again = send(netns, a)
            ledger.flush()
            assert sent(ledger) == {"/a": again}
        assert_balanced(path, below)


def test_no_room_for_label_sets(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """The oldest end, and their sums stay in the sum of all."""
    with attached(below, label_sets=2) as path:
        ledger = ledger_of(path, below, clock)
        for name in "abcde":
            with new_cgroup(parent.path, name) as cgroup:
                truth = {f"/{name}": send(netns, cgroup)}
                ledger.flush()
                assert sent(ledger) == truth
            released(path, 1)
            fold(ledger, clock)
            fold(ledger, clock)
            assert sent(ledger) == {}
        assert kept(path).keys() == {"/d", "/e"}
        with ExitStack() as lives:
            for name in "de":
                lives.enter_context(new_cgroup(parent.path, name))
            ledger.flush()
            before = sent(ledger)
            assert before.keys() == {"/d", "/e"}
            # with both label sets in use there is none for a third: it is never shown again
            with new_cgroup(parent.path, "f") as cgroup:
                send(netns, cgroup)
                ledger.flush()
                assert sent(ledger).keys() == {"/d", "/e", "/f"}
            at_last = sent(ledger)
            released(path, 1)
            clock.ahead += LONG_ENOUGH
            for _ in range(3):
                ledger.flush()
                assert sent(ledger) in (at_last, before)
            assert sent(ledger) == before
            assert entries(path)["cgroups"] == 2
        assert_balanced(path, below)


def test_a_full_map_ends_nobody_in_vain(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """Ports of a cgroup that lives leave no room for another's: its sums end, and nobody else's."""
    with attached(below, cgroups=500, label_sets=500) as path:
        ledger = ledger_of(path, below, clock)
        truth = {}
        for name in "abc":
            with new_cgroup(parent.path, name) as cgroup:
                truth[f"/{name}"] = send(netns, cgroup)
            released(path, 1)
            fold(ledger, clock)
        ports = path.kept["listen_totals"]
        with new_cgroup(parent.path, "lives") as lives:
            with new_cgroup(parent.path, "d") as cgroup:
                truth["/d"] = send(netns, cgroup)
                assert ports.make((cgroup.id, 80))
                path.maps["listen_totals"].update(
                    path.maps["listen_totals"].key.struct.pack(cgroup.id, 80), (7).to_bytes(8, sys.byteorder)
                )
                assert sum(ports.make((lives.id, port)) for port in range(1, 2000)) < 1500, "full"
                gone = cgroup.id
            released(path, 1)
            for _ in range(3):
                fold(ledger, clock)
            assert gone not in path.cgroups.all()
            assert dict(rows_of(path, "listen_totals"))[RETIRED, 0] == (7,)
            assert sent(ledger) == {}
            del truth["/d"]
            with ExitStack() as again:
                for name in "abcd":
                    again.enter_context(new_cgroup(parent.path, name))
                ledger.flush()
                assert sent(ledger) == truth
        assert_balanced(path, below)


def test_the_oldest_in_the_way_ends(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """Not one that is older, but has no row in the map that is full."""
    with attached(below, cgroups=500, label_sets=500) as path:
        ledger = ledger_of(path, below, clock)
        ports = path.kept["listen_totals"]
        table = path.maps["listen_totals"]
        truth = {}
        for name, port in (("a", 0), ("b", 80), ("c", 80)):
            with new_cgroup(parent.path, name) as cgroup:
                truth[f"/{name}"] = send(netns, cgroup)
                if port:
                    table.update(table.key.struct.pack(cgroup.id, port), (7).to_bytes(8, sys.byteorder))
            released(path, 1)
            fold(ledger, clock)
        with new_cgroup(parent.path, "lives") as lives:
            with new_cgroup(parent.path, "d") as cgroup:
                truth["/d"] = send(netns, cgroup)
                table.update(table.key.struct.pack(cgroup.id, 81), (8).to_bytes(8, sys.byteorder))
                assert sum(ports.make((lives.id, port)) for port in range(1, 2000)) < 1500, "full"
            released(path, 1)
            for _ in range(3):
                fold(ledger, clock)
            label_sets = kept(path)
            assert label_sets.keys() == {"/a", "/c", "/d"}
            rows = dict(rows_of(path, "listen_totals"))
            assert (rows[label_sets["/c"], 80], rows[label_sets["/d"], 81], rows[RETIRED, 0]) == (
                (7,),
                (8,),
                (7,),
            )
        assert_balanced(path, below)


def test_memory_is_back_at_the_start(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    with attached(below, cgroups=1024, label_sets=2000) as path:
        births = Births(ShownMap(path.maps["shown"]), clock=clock)
        meters = Meters((), below, path)
        ledger = Ledger(path, below, meters, gone=GONE, births=births, clock=clock)
        registry = Registry(COLLECTORS, ledger, births)

        def collect() -> None:
            births.let_go(ledger.books.workloads)
            registry.collect()
            births.note_page("one", births.newest, ledger.books.began)

        def series() -> int:
            """How many there are of our cgroups."""
            collect()
            gc.collect()
            found = [each for each in gc.get_objects() if isinstance(each, Series)]
            return sum("/job-" in value for each in found for _, value in each.labels)

        def assert_back() -> None:
            now = entries(path)
            # the kernel's own packets may begin to count for the root at any time, in one series or two
            assert now.pop("shown") - shown in range(3)
            assert now == start

        def round_of(count: int, first: int) -> None:
            with ExitStack() as stack:
                for number in range(first, first + count):
                    cgroup = stack.enter_context(new_cgroup(parent.path, f"job-{number}"))
                    send(netns, cgroup, 1)
                ledger.flush()
                assert series() == count
            released(path, count)
            for _ in range(2):  # first the oldest label sets end
                fold(ledger, clock)
            assert entries(path)["cgroups"] == series() == 0

        ledger.flush()
        collect()  # what is of no workload
        start = entries(path)
        shown = start.pop("shown")
        round_of(10, 0)
        clock.ahead += DAY
        for _ in range(3):
            ledger.flush()
        assert_back()
        for first in range(0, scaled(5000), 500):
            round_of(min(500, scaled(5000)), first)
        assert entries(path)["label_sets"] <= 2000
        clock.ahead += DAY
        for _ in range(3):
            ledger.flush()
        assert_back()
        assert_balanced(path, below)


# ---- back before its sums have ended


class Daemon:
    """A ledger with all that shows it, to a scraper called one."""

    def __init__(
        self,
        path: DataPath,
        below: CgroupRoot,
        clock: Clock,
        naming: Naming | None = None,
        most_workloads: int = sys.maxsize,
        hidden: Collection[str] = (),
    ) -> None:
        self._births = Births(ShownMap(path.maps["shown"]), clock=clock)
        meters = Meters((), below, path)
        self.ledger = Ledger(
            path,
            below,
            meters,
            gone=GONE,
            names=Names(below, path.cgroups, naming or Naming()),
            hidden=hidden,
            most_workloads=most_workloads,
            births=self._births,
            clock=clock,
        )
        self._registry = Registry(COLLECTORS, self.ledger, self._births)

    def page(self) -> str:
        """Return a page of a flush of its own, as the scraper gets it."""
        self.ledger.flush()
        self._births.let_go(self.ledger.books.workloads)
        families = self._registry.collect()
        page = text.render(families, seen=self._births.scrapers.seen_by("one"), openmetrics=False)
        self._births.note_page("one", self._births.newest, self.ledger.books.began)
        return page.decode()


class Daemons:
    """One after the other over the same maps, and a scraper that adds up as PromQL's increase() does."""

    def __init__(
        self,
        path: DataPath,
        below: CgroupRoot,
        clock: Clock,
        counter: str = "transmit_bytes",
        family: str = "",
        naming: Naming | None = None,
    ) -> None:
        self._path, self._below, self._clock, self._naming = path, below, clock, naming
        self._samples = re.compile(
            rf'^sockledger_{counter}_total{{cgroup="([^"]*)".*{family}.* (\S+)$', re.MULTILINE
        )
        self._last: dict[str, float] = {}
        self.increases: Counter[str] = Counter()  # of the counter, by cgroup
        self.begin()

    def begin(self) -> None:
        """All that is gone is due at once from then on."""
        self.daemon = Daemon(self._path, self._below, self._clock, self._naming)
        self._clock.ahead += LONG_ENOUGH

    def scrape(self, pages: int) -> None:
        """Each page is of a flush of its own."""
        for _ in range(pages):
            self._take(self.daemon.page())

    def killed(self, monkeypatch: pytest.MonkeyPatch, call: int, pages: int) -> bool:
        """The same, killed at one of its calls; returns whether it makes so many. Another begins then."""
        try:
            with killed_at(monkeypatch, call):
                self.scrape(pages)
        except Killed:
            self.daemon = Daemon(self._path, self._below, self._clock)
            self.scrape(3)  # nothing is due yet
            self._clock.ahead += LONG_ENOUGH
            return True
        return False

    def _take(self, page: str) -> None:
        for cgroup, value in self._samples.findall(page):
            last, now = self._last.get(cgroup, 0), float(value)
            self.increases[cgroup] += int(now - last if now >= last else now)
            self._last[cgroup] = now


def end_of(daemons: Daemons, parent: Cgroup, path: DataPath, netns: Netns, number: int) -> Counter[str]:
    """Let a cgroup's sums be kept, which have to end as another cgroup is due: there is no room for both."""
    truth: Counter[str] = Counter()
    for name in (f"/a{number}", f"/b{number}"):
        with new_cgroup(parent.path, name[1:]) as cgroup:
            truth[name] += send(netns, cgroup)
            daemons.scrape(2)
        released(path, 1)
        if "a" in name:
            daemons.scrape(6)
            assert kept(path).keys() == {name}
    return truth


def come_back(daemons: Daemons, parent: Cgroup, path: DataPath, netns: Netns, number: int) -> Counter[str]:
    with new_cgroup(parent.path, f"a{number}") as cgroup:
        truth = Counter({f"/a{number}": send(netns, cgroup, 11)})  # more: else it would seem to fall
        daemons.scrape(2)
    released(path, 2 if f"/b{number}" in {each.path for each in path.cgroups.all().values()} else 1)
    daemons.scrape(6)
    return truth


def twice(netns: Netns, parent: Cgroup, path: DataPath, stack: ExitStack, *, drops: int = 0) -> int:
    """Let a service be started twice, and end; a socket that is left keeps the second from being released.

    Each time it drops as many connections. Return the bytes sent.
    """
    table, truth = path.maps["listen_totals"], 0
    for turn in (1, 2):
        with new_cgroup(parent.path, "a") as cgroup, new_socket(netns, cgroup) as made:
            truth += exchange(made, turn)
            if drops:
                table.update(table.key.struct.pack(cgroup.id, 80), drops.to_bytes(8, sys.byteorder))
            if turn == 2:
                stack.enter_context(made.dup())
    eventually(lambda: sum(each.released > 0 for each in path.cgroups.all().values()) == 1)
    return truth


def test_no_room_for_a_label_set_of_two(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """A workload ends as a whole: with one of its cgroups a counter that is shown would fall."""
    with attached(below, label_sets=1) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock)
        truth = Counter({"/only": occupy(daemons, parent, path, netns, stack)})
        truth["/a"] = twice(netns, parent, path, stack)
        daemons.scrape(2)
        for _ in range(6):
            clock.ahead += LONG_ENOUGH
            daemons.scrape(2)
            assert daemons.increases == truth
        stack.close()
        released(path, 2)
        clock.ahead += LONG_ENOUGH
        daemons.scrape(3)
        assert daemons.increases == truth
        assert_balanced(path, below)


def test_no_room_for_rows_of_two(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """As long as there is none both are shown; then both are kept."""
    with attached(below, cgroups=500, label_sets=500) as path, ExitStack() as stack:
        ledger, ports = ledger_of(path, below, clock), path.kept["listen_totals"]
        lives = stack.enter_context(new_cgroup(parent.path, "lives"))
        truth = twice(netns, parent, path, stack, drops=7)
        assert sum(ports.make((lives.id, port)) for port in range(1, 2000)) < 1500, "full"
        seen = []
        while not kept(path):
            ledger.flush()
            sums = ledger.books.sums["listen_totals"].items()
            drops = {workload.cgroup: record for (workload, _), record in sums if any(record)}
            seen.append((sent(ledger), drops))
            clock.ahead += LONG_ENOUGH // 4
            assert len(seen) < 20
        assert len(seen) > 4
        assert all(each == ({"/a": truth}, {"/a": (14,)}) for each in seen)
        ledger.flush()
        assert sent(ledger) == {}
        assert dict(rows_of(path, "listen_totals"))[kept(path)["/a"], 80] == (14,)


def test_no_room_for_all_rows_of_one(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """What has ended is another counter when it is back, and begins at 0 for who scrapes."""
    with attached(below, cgroups=50, label_sets=50) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock, family="ipv6")
        lives = stack.enter_context(new_cgroup(parent.path, "lives"))
        truth = 0
        for datagrams in (0, 10, 25):
            with new_cgroup(parent.path, "d") as cgroup:
                send(netns, cgroup)
                truth += send(netns, cgroup, datagrams, family=socket.AF_INET6) if datagrams else 0
                daemons.scrape(3)
            released(path, 1)
            clock.ahead += LONG_ENOUGH
            if datagrams == 10:
                fill_totals(path, lives)
                daemons.scrape(2)
                assert "/d" not in sent(daemons.daemon.ledger)
            daemons.scrape(4)
        assert daemons.increases["/d"] == truth


def fill_totals(path: DataPath, lives: Cgroup) -> None:
    """Leave no room in the totals: all is a cgroup's that lives."""
    rows = sum(path.kept["totals"].make((lives.id, 0, 0, peer, 1)) for peer in range(1, 3000))
    assert rows < 1000, "full"


def occupy(daemons: Daemons, parent: Cgroup, path: DataPath, netns: Netns, stack: ExitStack) -> int:
    """Let the only label set be in use for as long as *stack* is; return the bytes sent."""
    with new_cgroup(parent.path, "only") as only:
        sent_first = send(netns, only)
        daemons.scrape(2)
    released(path, 1)
    daemons.scrape(6)
    stack.enter_context(new_cgroup(parent.path, "only"))
    return sent_first


def test_killed_while_two_of_a_workload_end(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attached(below, label_sets=1) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock)
        truth = Counter({"/only": occupy(daemons, parent, path, netns, stack)})
        killed = True
        for call in count():
            if not killed:
                break
            with ExitStack() as held:  # or the first would be released, and join the second
                for turn in (1, 2):
                    with new_cgroup(parent.path, f"a{call}") as cgroup, new_socket(netns, cgroup) as made:
                        truth[f"/a{call}"] += exchange(made, turn)
                        held.enter_context(made.dup())
                daemons.scrape(2)
            released(path, 2)
            killed = daemons.killed(monkeypatch, call, 5)
            for _ in range(4):
                clock.ahead += LONG_ENOUGH
                daemons.scrape(3)
            assert daemons.increases == truth, f"killed at call {call}"
        assert call > 10


def test_killed_while_a_label_set_and_its_cgroup_end(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = True
    for call in count():
        if not killed:
            break
        with attached(below, cgroups=50, label_sets=50) as path, ExitStack() as stack:
            daemons = Daemons(path, below, clock, family="ipv6")
            lives = stack.enter_context(new_cgroup(parent.path, "lives"))
            truth = 0
            for datagrams in (0, 10):
                with new_cgroup(parent.path, "d") as cgroup:
                    send(netns, cgroup)
                    truth += send(netns, cgroup, datagrams, family=socket.AF_INET6) if datagrams else 0
                    daemons.scrape(3)
                released(path, 1)
                clock.ahead += LONG_ENOUGH
                if not datagrams:
                    daemons.scrape(4)
            fill_totals(path, lives)
            killed = daemons.killed(monkeypatch, call, 2)
            for _ in range(4):
                clock.ahead += LONG_ENOUGH
                daemons.scrape(3)
            assert daemons.increases["/d"] == truth, f"killed at call {call}"
    assert call > 10


def test_other_stays_where_there_is_no_room(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """It has sums that cannot end, those that found the totals full."""
    with attached(below, cgroups=50, label_sets=1) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock, naming=Naming(exclude=("/x",)))
        occupy(daemons, parent, path, netns, stack)
        lives = stack.enter_context(new_cgroup(parent.path, "lives"))
        with new_cgroup(parent.path, "x") as x:
            truth = send(netns, x, 5)
            daemons.scrape(2)
            fill_totals(path, lives)
            truth += send(netns, stack.enter_context(new_cgroup(parent.path, "late")), 50)
            daemons.scrape(3)
            assert path.lost_updates()["totals_full"]
        released(path, 1)
        for _ in range(6):
            clock.ahead += LONG_ENOUGH
            daemons.scrape(1)
            assert daemons.increases["other"] == truth


def test_a_service_that_is_started_again_and_again(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """Where there is no room for its label set, its sums go on in the cgroup that lives."""
    with attached(below, cgroups=24, label_sets=1) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock)
        truth = Counter({"/only": occupy(daemons, parent, path, netns, stack)})
        for turn in range(40):
            with new_cgroup(parent.path, "a") as cgroup:
                truth["/a"] += send(netns, cgroup, turn % 3 + 1)
                daemons.scrape(2)
                clock.ahead += LONG_ENOUGH
            daemons.scrape(1)
        assert daemons.increases == truth
        assert path.lost_updates()["name_full"] == 0
        assert_balanced(path, below)


def test_unknown_that_has_ended_begins_anew(parent: Cgroup, netns: Netns, clock: Clock) -> None:
    """Of cgroups whose paths are too long, and which were gone before a flush; a socket keeps one."""
    first = "a" * 200
    second = "b" * (425 - len(f"/{parent.path.name}/{first}/"))
    with ExitStack() as stack:
        root = CgroupRoot(parent.path)
        stack.callback(os.close, root.fd)
        path = stack.enter_context(attached(root, label_sets=1))
        daemons = Daemons(path, root, clock)
        occupy(daemons, parent, path, netns, stack)
        outer = stack.enter_context(new_cgroup(parent.path, first))
        truth = 0
        for datagrams in (10, 25):
            with new_cgroup(outer.path, second) as cgroup, new_socket(netns, cgroup) as made:
                held = made.dup()
                truth += exchange(made, datagrams)
            daemons.scrape(3)
            held.close()
            released(path, 1)
            while datagrams == 10 and ENDED not in [each.removed for each in path.cgroups.all().values()]:
                clock.ahead += LONG_ENOUGH
                daemons.scrape(1)
        assert daemons.increases["unknown"] == truth


@pytest.mark.parametrize("ahead", [0, DAY], ids=["no room", "a day later"])
def test_a_name_that_is_back_before_its_sums_have_ended(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, ahead: int
) -> None:
    with attached(below, label_sets=1) as path:
        daemons = Daemons(path, below, clock)
        truth: Counter[str] = Counter()
        for flushes in range(5):
            truth += end_of(daemons, parent, path, netns, flushes)
            clock.ahead += ahead
            daemons.scrape(flushes)
            truth += come_back(daemons, parent, path, netns, flushes)
            assert daemons.increases == truth
        assert_balanced(path, below)


def test_a_name_that_is_back_and_found_no_label_set(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a kill at any call of the flushes in which its sums end."""
    with attached(below, label_sets=1) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock)
        truth: Counter[str] = Counter()
        for _ in range(2):  # the only label set is in use from then on
            with new_cgroup(parent.path, "only") as only:
                truth["/only"] += send(netns, only)
                daemons.scrape(2)
            released(path, 1)
            daemons.scrape(6)
        stack.enter_context(new_cgroup(parent.path, "only"))
        for flushes, killing in ((1, False), (2, False), (3, True)):
            killed = True
            for call in count():
                if not killed:
                    break
                name = f"a{flushes}-{call}"
                with new_cgroup(parent.path, name) as cgroup:
                    truth[f"/{name}"] += send(netns, cgroup)
                    daemons.scrape(2)
                released(path, 1)
                killed = daemons.killed(monkeypatch, call if killing else -1, flushes)
                with new_cgroup(parent.path, name) as cgroup:
                    truth[f"/{name}"] += send(netns, cgroup, 11)
                    daemons.scrape(2)
                eventually(lambda: all(each.released for each in _removed(path)), "released")
                daemons.scrape(6)
                assert daemons.increases == truth
        assert_balanced(path, below)


def _removed(path: DataPath) -> list[NotedCgroup]:
    return [each for each in path.cgroups.all().values() if each.removed]


def test_killed_before_a_name_is_back(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attached(below, label_sets=1) as path:
        daemons = Daemons(path, below, clock)
        truth: Counter[str] = Counter()
        killed = True
        for call in count():
            if not killed:
                break
            truth += end_of(daemons, parent, path, netns, call)
            killed = daemons.killed(monkeypatch, call, 3)
            truth += come_back(daemons, parent, path, netns, call)
            assert daemons.increases == truth
        assert_balanced(path, below)


# ---- no memory


@contextmanager
def no_memory(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """What a map at its memory cgroup's limit answers."""
    update = Table.update

    def refuse(table: Table, key: bytes, value: bytes) -> None:
        if table.name == name:
            raise OSError(errno.ENOMEM, "no memory")
        update(table, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(Table, "update", refuse)
        yield


def test_no_memory_for_what_begins_anew(
    parent: Cgroup,
    below: CgroupRoot,
    netns: Netns,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not shown until what was before is forgotten; all else is."""
    with attached(below, label_sets=1) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock)
        with new_cgroup(parent.path, "only") as only:
            truth = Counter({"/only": send(netns, only)})
            daemons.scrape(2)
        released(path, 1)
        daemons.scrape(6)
        only = stack.enter_context(new_cgroup(parent.path, "only"))
        with new_cgroup(parent.path, "a") as cgroup:
            truth["/a"] = send(netns, cgroup)
            daemons.scrape(2)
        released(path, 1)
        clock.ahead += LONG_ENOUGH
        daemons.scrape(1)  # no label set has room for it: its sums have ended
        again = stack.enter_context(new_cgroup(parent.path, "a"))
        with no_memory(monkeypatch, "cgroups"):
            truth["/only"] += send(netns, only)
            later = send(netns, again, 11)
            daemons.scrape(1)
            assert daemons.increases == truth
            truth["/a"] += later
            daemons.scrape(4)
            assert daemons.increases == truth
        assert [each.message for each in caplog.records] == ["what begins anew is not shown yet"]
        assert_balanced(path, below)


def test_no_memory_for_a_label_set_that_is_back(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends, and then the cgroup is shown."""
    with attached(below) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock)
        with new_cgroup(parent.path, "a") as cgroup:
            truth = Counter({"/a": send(netns, cgroup)})
            daemons.scrape(2)
        released(path, 1)
        daemons.scrape(6)
        clock.ahead += DAY
        daemons.scrape(1)
        assert [each.seen for each in path.label_sets.all().values()] == [0]
        cgroup = stack.enter_context(new_cgroup(parent.path, "a"))
        with no_memory(monkeypatch, "label_sets"):
            truth["/a"] += send(netns, cgroup, 11)
            daemons.scrape(4)
            assert daemons.increases == truth
            assert path.label_sets.all() == {}
        assert_balanced(path, below)


# ---- killed


# The kernel's programs, and grace periods.
EACH_FLUSH = {"run": 3, "update": 2}


def test_killed_while_a_port_ends(
    parent: Cgroup, below: CgroupRoot, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drops of a cgroup and of one like it that is gone: none counts twice, and what is new is born at 0."""
    with attached(below) as path, new_cgroup(parent.path, "a") as a:
        workload = Workload(cgroup="/a")
        path.label_sets.make(label_set_id(workload), KeptLabelSet(clock(), 0, workload))
        table = path.maps["listen_totals"]
        daemons = Daemons(path, below, clock, "tcp_listen_drops")
        daemons.scrape(2)
        shown = entries(path)["shown"]
        retired = truth = 0
        killed = True
        for call in count():
            if not killed:
                break
            for number, drops in ((a.id, 5), (label_set_id(workload), 7 + call)):
                key = table.key.struct.pack(number, 80)
                before = table.value.struct.unpack(table.lookup(key) or bytes(8))[0]
                table.update(key, table.value.struct.pack(before + drops))
                truth += drops
            daemons.scrape(3)
            assert daemons.increases == {"/a": truth}
            clock.ahead += LONG_ENOUGH
            with killed_at(monkeypatch, call):
                try:
                    daemons.scrape(1)
                    killed = False
                except Killed:
                    daemons.begin()
            daemons.scrape(1)
            rows = {key: sums for key, (sums,) in path.sums["listen_totals"].rows()}
            assert sum(rows.values()) == truth
            assert rows[RETIRED, 0] >= retired
            retired = rows[RETIRED, 0]
        assert daemons.increases == {"/a": truth}
        assert retired == truth
        assert rows.keys() == {(0, 0), (RETIRED, 0)}
        assert entries(path)["shown"] == shown
        assert call > 4


class Killed(BaseException):
    """Like kill -9: nothing but the kernel's maps is left."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[list[str]]:
    """Let user space end at its *call*-th call that may change a map; yields the calls that were made."""
    made: list[str] = []
    with monkeypatch.context() as patched:
        for kind, name in ((Table, "make"), (Table, "update"), (Table, "delete"), (Program, "run")):
            patched.setattr(kind, name, _counted(getattr(kind, name), made, call))
        yield made


def _counted(function: Callable[..., object], made: list[str], call: int) -> Callable[..., object]:
    def counted(*arguments: object) -> object:
        if len(made) == call:
            raise Killed
        made.append(function.__name__)
        return function(*arguments)

    return counted


class Lives:
    """One ledger after another over the same maps."""

    def __init__(
        self, path: DataPath, below: CgroupRoot, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.calls: list[str] = []  # of the last one that was not killed, beside those of each flush
        self._new = partial(ledger_of, path, below, clock)
        self._clock = clock
        self._monkeypatch = monkeypatch

    def live(self, ahead: int, flushes: int, truth: list[dict[str, int]]) -> dict[str, int]:
        """Let time go by, and flush; each time one of *truth* is shown. Returns the last."""
        ledger = self._new()
        self._clock.ahead += ahead
        for _ in range(flushes):
            ledger.flush()
            assert sent(ledger) in truth
        return sent(ledger)

    def killed(self, call: int, ahead: int, flushes: int, truth: list[dict[str, int]]) -> bool:
        """The same, killed at one of its calls; returns whether it makes so many."""
        try:
            with killed_at(self._monkeypatch, call) as calls:
                self.live(ahead, flushes, truth)
        except Killed:
            return True
        steps = Counter(calls) - Counter({name: flushes * count for name, count in EACH_FLUSH.items()})
        self.calls = sorted(steps.elements())
        return False


def test_killed_while_folding(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon goes on, and what is shown never falls."""
    with attached(below) as path:
        lives = Lives(path, below, clock, monkeypatch)
        killed = True
        for number in count():
            if not killed:
                break
            name = f"/{number}"
            with new_cgroup(parent.path, name[1:]) as cgroup:
                truth = {name: send(netns, cgroup) + send(netns, cgroup, family=socket.AF_INET6)}
            released(path, 1)
            killed = lives.killed(number, LONG_ENOUGH, 3, [truth, {}])
            assert lives.live(LONG_ENOUGH, 3, [truth, {}]) == {}
            assert entries(path)["cgroups"] == 0
            with new_cgroup(parent.path, name[1:]):
                assert lives.live(0, 1, [truth]) == truth
            released(path, 1)
            lives.live(0, 1, [{}])
        # two rows, one label set, one cgroup, what it and the one before were shown as
        assert lives.calls == [*["delete"] * 5, *["make"] * 3, *["run"] * 2, "update"]
        assert_balanced(path, below)


def test_killed_while_a_label_set_ends(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attached(below) as path:
        lives = Lives(path, below, clock, monkeypatch)
        lives.live(0, 1, [{}])
        before = entries(path)
        killed = True
        for number in count():
            if not killed:
                break
            with new_cgroup(parent.path, "a") as a:
                truth = {"/a": send(netns, a) + send(netns, a, family=socket.AF_INET6)}
            released(path, 1)
            assert lives.live(LONG_ENOUGH, 3, [truth, {}]) == {}
            killed = lives.killed(number, DAY, 2, [{}])
            lives.live(0, 2, [{}])
            assert entries(path) == before
        # two rows, one label set, which is noted to end
        assert lives.calls == [*["delete"] * 3, *["run"] * 2, "update"]
        assert_balanced(path, below)


def test_killed_while_sums_end_that_find_no_label_set(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attached(below, label_sets=1) as path:
        lives = Lives(path, below, clock, monkeypatch)
        with new_cgroup(parent.path, "first") as first:
            only = {"/first": send(netns, first)}
        released(path, 1)
        lives.live(LONG_ENOUGH, 3, [only, {}])
        with new_cgroup(parent.path, "first"):
            lives.live(0, 1, [only])
            before = entries(path)
            killed = True
            for number in count():
                if not killed:
                    break
                with new_cgroup(parent.path, "a") as a:
                    sums = send(netns, a) + send(netns, a, family=socket.AF_INET6)
                    truth = {"/a": sums, **only}
                released(path, 1)
                killed = lives.killed(number, LONG_ENOUGH, 3, [truth, only])
                assert lives.live(LONG_ENOUGH, 3, [truth, only]) == only
                lives.live(0, 1, [only])
                assert entries(path) == before
        assert_balanced(path, below)


def test_killed_while_the_oldest_make_room(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attached(below, cgroups=4) as path, ExitStack() as stack:
        lives = Lives(path, below, clock, monkeypatch)
        killed = True
        for number in count(-3):
            if not killed:
                break
            _, truth = end_with_a_socket(parent, netns, f"{number}", stack)
            if number >= 0:
                killed = lives.killed(number, 0, 2, [{f"/{number}": truth}])
                path._close(())  # a successor has programs of its own
            ledger = ledger_of(path, below, clock)
            for _ in range(2):
                ledger.flush()
                assert sent(ledger) == {f"/{number}": truth}
                clock.ahead += LONG_ENOUGH
            ledger.flush()
            assert len(path.cgroups.all()) == min(number + 4, 3)
        # twice what is closed, and a grace period between; a row, a cgroup, what one is and one was shown as
        assert lives.calls == [*["delete"] * 3, *["update"] * 4]
        assert not path.lost_updates()["name_full"]
        assert {key.cgroup_id for key, _ in path.totals()} == {
            RETIRED,
            *path.label_sets.all(),
            *path.cgroups.all(),
        }
        assert_balanced(path, below)
