"""What is pinned outlives its daemon: the kernel counts on, and the next one goes on where it is."""

import errno
import os
import random
import re
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count, product, takewhile
from pathlib import Path

import pytest
from tests.daemon.support import existing_links
from tests.kernel.foreign import EGRESS, EXCLUSIVE, foreign_program
from tests.kernel.ledger import (
    ALL_PARTS,
    NOTHING,
    all_totals,
    control,
    final_difference,
    flush,
    minus,
    record_of,
    repeating,
    totals_of,
)
from tests.kernel.machine import Cgroup, Netns, new_cgroup, new_netns, run, sysctl_set
from tests.kernel.objects import Change, build
from tests.kernel.tcp import (
    ESTABLISHED,
    Ends,
    Pair,
    books_of,
    busy_cpus,
    cookie_of,
    counts_of,
    deaf_socket,
    drop_all,
    find_older,
    infos,
    meminfo_drops,
    tcp_losses,
)
from tests.kernel.test_gone import Clock, assert_balanced, fold, kept, ledger_of, released, send, sent
from tests.kernel.test_tcp import assert_over, wait_until_over
from tests.kernel.traffic import Generator, Result, scaled
from tests.patience import SCALE, eventually
from tests.scrapes import counters

from sockledger.collectors.registry import Registry
from sockledger.errors import UserError
from sockledger.exposition import text
from sockledger.kernel import datapath, upgrade
from sockledger.kernel import pins as pins_module
from sockledger.kernel.attachments import hot_paths
from sockledger.kernel.cgroups import CgroupRoot, find_root
from sockledger.kernel.datapath import ATTACHED, DataPath, Parts, ticks_per_second
from sockledger.kernel.features import tells_calls
from sockledger.kernel.libbpf import Link, Map, OpenMap, Program, pin, program_stats
from sockledger.kernel.links import HOT_PATH
from sockledger.kernel.maps import FIXED
from sockledger.kernel.meters import Meters
from sockledger.kernel.pins import KINDS, VERSION, Pins, opened, pin_name, shape
from sockledger.kernel.shown import ShownMap
from sockledger.kernel.sums import RETIRED_TOTALS, Traffic
from sockledger.kernel.tag_pin import TagPin
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import WARNINGS, Ledger
from sockledger.ledger.reconciliation import Reconciliation
from sockledger.ledger.retirement import HOUR

DAY = 86400.0
NAMING = ("sl_cgroup_mkdir", "sl_cgroup_rmdir", "sl_cgroup_release")


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Pins]:
    bpffs = tmp_path / "bpf"
    bpffs.mkdir()
    run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(bpffs))
    made = Pins(bpffs)
    yield made
    made.remove()
    run("umount", str(bpffs))


def start(
    root: CgroupRoot,
    pins: Pins,
    *,
    cgroups: int = 1000,
    sockets: int = 65536,
    label_sets: int = 0,
    parts: Parts = ALL_PARTS,
    tag_pin: TagPin | None = None,
    lease: float = DAY,
    image: bytes | None = None,
) -> DataPath:
    """Attach, or take over what is pinned, as a daemon that starts."""
    path = DataPath(
        root,
        cgroups=cgroups,
        sockets=sockets,
        connections=100_000,
        label_sets=label_sets,
        parts=parts,
        pins=pins,
        tag_pin=tag_pin,
        lease=lease,
        image=image,
    )
    path.attach()
    return path


def summed(results: list[Result], side: str) -> dict[tuple[str, str], Traffic]:
    found: dict[tuple[str, str], Traffic] = {}
    for result in results:
        for name, traffic in result.side(side).items():
            found[name] = traffic.plus(found.get(name, NOTHING))
    return found


def test_the_kernel_counts_on(root: CgroupRoot, pins: Pins, generator: Generator) -> None:
    """With a daemon, without, and with the next."""
    with closing(start(root, pins)):
        results = [generator.run("udp", scaled(1000))]
    results.append(generator.run("udp", scaled(1000)))
    with closing(start(root, pins)) as path:
        results.append(generator.run("udp", scaled(1000)))
        flush(path)
        for side, cgroup in (("client", generator.client), ("server", generator.server)):
            assert totals_of(path, cgroup.id) == summed(results, side)
        assert final_difference(path, root) == NOTHING


def test_nothing_new_is_pinned_by_the_next(root: CgroupRoot, pins: Pins) -> None:
    def pinned() -> dict[str, set[Path]]:
        return {kind: pins.all(kind) for kind in ("maps", "links", "programs")}

    with closing(start(root, pins)) as path:
        links = {name: link.id for name, link in path.links.held.items()}
        first = pinned()
    with closing(start(root, pins)) as path:
        assert {name: link.id for name, link in path.links.held.items()} == links
        assert pinned() == first
        assert {each.name for each in first["links"]} == links.keys()


def test_modes(root: CgroupRoot, pins: Pins) -> None:
    start(root, pins).close()
    folders = [pins.folder.parent, pins.folder, *(pins.folder / kind for kind in KINDS)]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_replaced_again_and_again(below: CgroupRoot, pins: Pins, generator: Generator) -> None:
    """Daemons follow each other while connections of every kind come and go: none is missed or twice.

    SOCKLEDGER_TEST_FULL: 100 daemons, 50,000 connections.
    """
    times = 1.0 if os.environ.get("SOCKLEDGER_TEST_FULL") else 0.2
    start(below, pins).close()
    with busy_cpus(), new_netns("other") as other, ThreadPoolExecutor(2) as pool:
        elsewhere = replace(generator, client_netns=other, server_netns=other)
        running = [
            pool.submit(generator.run, "connections", scaled(int(30_000 * times))),
            pool.submit(elsewhere.run, "crossing", scaled(int(20_000 * times))),
        ]
        replaced = 0
        while replaced < max(100 * times // SCALE, 5) or not all(each.done() for each in running):
            with closing(start(below, pins)) as path:
                path.flush_tcp()
                path.flush_udp()
            replaced += 1
        results = [each.result() for each in running]
    with closing(start(below, pins)) as path:
        assert_over(path, generator, results)
        assert final_difference(path, below) == NOTHING


def test_what_is_known_is_not_older(below: CgroupRoot, pins: Pins, ends: Ends) -> None:
    """Each start looks for older sockets."""
    start(below, pins).close()
    ends.pairs(8)
    for _ in range(3):
        with closing(start(below, pins)) as path:
            find_older(path)
            for cgroup, role in ((ends.client, "active"), (ends.server, "passive")):
                assert books_of(path, cgroup.id).opened == {role: 8}


# ---- other versions, other limits

# Members are added, moved and taken out, and there is a map more.
ANOTHER = (
    Change("tcp.h", "	__u64 opened[ROLES];\n", "	__u64 added;\n	__u64 opened[ROLES];\n"),
    Change(
        "tcp.h",
        "	__u64 acked_bytes;\n	__u64 received_bytes;\n	__u64 busy",
        "	__u64 received_bytes;\n	__u64 acked_bytes;\n	__u64 busy",
    ),
    Change("tcp.h", "struct node_totals {\n", "struct node_totals {\n	__u64 added[3];\n"),
    Change("udp.h", "	__u64 receive_drops;\n", "	__u64 added;\n	__u64 receive_drops;\n"),
    Change("ledger.h", "	__u64 sockets_full;", "	__u64 added;\n	__u64 sockets_full;"),
    Change("ledger.h", "	__u64 pending[FAMILIES]", "	__u64 added;\n	__u64 pending[FAMILIES]"),
    Change("flushes.h", "struct flushes {\n", "struct flushes {\n	__u64 added;\n"),
    Change(
        "ledger.h",
        "struct cgroup_key {\n",
        """struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct count);
} added SEC(".maps");

struct cgroup_key {
""",
    ),
)


def names(pins: Pins) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in pins.all("maps"))


def test_other_limits(root: CgroupRoot, pins: Pins, generator: Generator) -> None:
    """More and fewer cgroups and sockets, in mid-traffic: all goes on."""
    udp = []
    start(root, pins).close()
    kept = names(pins)
    limits = [(1000, 65536), (2000, 100), (500, 70000), (2000, 70000), (1000, 64)]
    with ThreadPoolExecutor(2) as pool:
        for cgroups, sockets in limits:
            running = pool.submit(generator.run, "udp", scaled(1000))
            beside = pool.submit(generator.run, "killed", scaled(500))
            with closing(start(root, pins, cgroups=cgroups, sockets=sockets)) as path:
                flush(path)
                assert path.maps["totals"].max_entries == 4 * cgroups + RETIRED_TOTALS
                assert path.maps["sockets"].max_entries == sockets
            udp.append(running.result())
            beside.result()
            assert names(pins) == kept
    with closing(start(root, pins)) as path:
        flush(path)
        for side, cgroup in (("client", generator.client), ("server", generator.server)):
            found = totals_of(path, cgroup.id)
            assert {key: value for key, value in found.items() if key[0] == "udp"} == summed(udp, side)
        assert final_difference(path, root) == NOTHING


# By where they are called.
Steps = dict[object, tuple[str, ...]]
# What changes pins, attaches, and moves counts; and between what in a start something may be half done.
STEPS: Steps = {
    pins_module: ("pin",),
    Path: ("symlink_to", "unlink", "rename"),
    upgrade: ("run_program", "_carry_over"),
    Program: ("attach", "attach_cgroup"),
    Link: ("update",),
}
STAGES: Steps = {Pins: ("replace", "complete", "remove_maps"), upgrade: ("run_program",)}
# Of cgroups, and of sockets. Between two all maps differ, or only what is pending, or only sums.
LIMITS = tuple(product((1000, 2000), (100, 5000, 70000)))


def killed(live: Callable[[], object], at: int, stages: Steps = STEPS) -> bool:
    """Let a process live that is killed before it takes a step; return whether it takes so many."""
    process = os.fork()
    if process:
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status in (0, -signal.SIGKILL)
        return status != 0
    steps = count()

    def deadly(step: Callable[..., object]) -> Callable[..., object]:
        def taken(*arguments: object, **more: object) -> object:
            if next(steps) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **more)

        return taken

    for owner, names in stages.items():
        for name in names:
            setattr(owner, name, deadly(getattr(owner, name)))
    try:
        live()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def test_killed_again_and_again(below: CgroupRoot, pins: Pins, ends: Ends) -> None:
    """Daemons with limits of their own; some are killed, up to three in a row: the next one has all, once."""
    choice = random.Random(time.gmtime().tm_yday)
    pairs: list[Pair] = []
    deaf, talker = (ends.new_socket(cgroup, kind=socket.SOCK_DGRAM) for cgroup in (ends.server, ends.client))
    deaf.bind(("127.0.0.1", 0))
    drop_all(deaf)
    talker.connect(deaf.getsockname())

    def start_with(limits: tuple[int, int]) -> DataPath:
        return start(below, pins, cgroups=limits[0], sockets=limits[1])

    def go_on() -> None:
        for _ in range(3):
            talker.send(bytes(100))
        for pair in pairs:
            pair.exchange(1000, 3000)

    def assert_all(limits: tuple[int, int]) -> None:
        go_on()
        with closing(start_with(limits)) as path:
            path.flush()
            for side, cgroup in ends.sides:
                datagrams = totals_of(path, cgroup.id)["udp", "ipv4"]
                assert max(datagrams.transmit_packets, datagrams.receive_packets) == meminfo_drops(deaf)
                assert books_of(path, cgroup.id).counts == counts_of(infos(pairs, side))
            assert record_of(path, "udp_totals", ends.server.id)["receive_drops"] == meminfo_drops(deaf)
            assert minus(all_totals(path), control(path, below)) == NOTHING
            go_on()

    start_with(LIMITS[-1]).close()
    pairs += ends.pairs(2)
    for at in count():
        first, second, third = choice.sample(LIMITS[:3], 3)
        assert_all(first)
        was_killed = killed(partial(start_with, second), at, STAGES)
        assert_all(third)
        if not was_killed:
            break
    for _ in range(max(10 // SCALE, 1)):
        for _ in range(choice.randrange(1, 4)):
            killed(partial(start_with, choice.choice(LIMITS)), choice.randrange(150))
            go_on()
        assert_all(choice.choice(LIMITS))


def test_fewer_cgroups_than_have_sums(root: CgroupRoot, pins: Pins, generator: Generator) -> None:
    """No counter falls: what has sums keeps them."""
    ids = generator.client.id, generator.server.id

    def sums(path: DataPath) -> tuple[list[object], list[object]]:
        path.flush()
        tcp = dict(path.sums["tcp_totals"].rows())
        return [totals_of(path, each) for each in ids], [tcp[each,] for each in ids]

    with closing(start(root, pins)) as path:
        generator.run_together({"tcp": 500, "udp": 500, "others": 50})
        before = sums(path)
    with closing(start(root, pins, cgroups=1)) as path:
        assert sums(path) == before
        assert not any(any(traffic) for _, traffic in path.overflow())
        assert final_difference(path, root) == NOTHING


def test_fewer_label_sets(below: CgroupRoot, pins: Pins, parent: Cgroup, netns: Netns) -> None:
    """Those in use stay, however many, with their sums; as others end there come to be as few as wanted."""
    clock, truth = Clock(), dict.fromkeys(("/a", "/b", "/c"), 0)

    with closing(start(below, pins, label_sets=10)) as path:
        ledger = ledger_of(path, below, clock)
        for name in truth:
            with new_cgroup(parent.path, name[1:]) as cgroup:
                truth[name] += send(netns, cgroup)
            released(path, 1)
            fold(ledger, clock)
    with ExitStack() as lives:
        for name in truth:
            cgroup = lives.enter_context(new_cgroup(parent.path, name[1:]))
            truth[name] += send(netns, cgroup)
        for _ in range(2):
            with closing(start(below, pins, label_sets=1)) as path:
                ledger = ledger_of(path, below, clock)
                for _ in range(2):
                    ledger.flush()
                    assert sent(ledger) == truth
                assert kept(path).keys() == truth.keys()
                assert path.maps["label_sets"].max_entries == 10
    with closing(start(below, pins, label_sets=1)) as path:
        released(path, 3)
        ledger = ledger_of(path, below, clock)
        for _ in range(3):
            fold(ledger, clock)
        assert len(kept(path)) == 1
        [name] = kept(path)
    with new_cgroup(parent.path, name[1:]), closing(start(below, pins, label_sets=1)) as path:
        ledger = ledger_of(path, below, clock)
        ledger.flush()
        assert sent(ledger) == {name: truth[name]}
        assert path.maps["label_sets"].max_entries == 1
        assert_balanced(path, below)


def test_fewer_cgroups_than_have_names(below: CgroupRoot, pins: Pins, parent: Cgroup, netns: Netns) -> None:
    """Of those that are gone only the map knows it."""
    clock, truth = Clock(), {}
    with closing(start(below, pins, cgroups=10, label_sets=10)) as path:
        for name in "abcde":
            with new_cgroup(parent.path, name) as cgroup:
                truth[f"/{name}"] = send(netns, cgroup)
        released(path, 5)
    for entries in (10, 2):
        with closing(start(below, pins, cgroups=2, label_sets=10)) as path:
            assert path.maps["cgroups"].max_entries == entries
            ledger = ledger_of(path, below, clock)
            ledger.flush()
            assert sent(ledger) == truth
            fold(ledger, clock)
            truth = {}


def test_more_cgroups_than_have_names(below: CgroupRoot, pins: Pins, parent: Cgroup) -> None:
    """Of those that are there none takes the place of one that is gone."""
    with closing(start(below, pins, cgroups=1)) as path, new_cgroup(parent.path, "gone") as gone:
        gone_id = gone.id
    with new_cgroup(parent.path, "a"), new_cgroup(parent.path, "b"):
        with closing(start(below, pins, cgroups=2)) as path:
            noted = path.cgroups.all()
        assert noted[gone_id].removed
        assert len(noted) == 2


def test_room_for_what_several_maps_hold(
    below: CgroupRoot, pins: Pins, parent: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was killed before it brought home what it had taken over; many cgroups have come since."""
    with ExitStack() as stack:

        def come(number: int) -> None:
            for _ in range(number):
                stack.enter_context(new_cgroup(parent.path, f"more-{next(numbers)}"))

        numbers = count()
        come(25)
        start(below, pins, cgroups=64).close()
        with monkeypatch.context() as patched:
            patched.setattr(datapath, "bring_home", interrupt)
            with pytest.raises(KeyboardInterrupt):
                start(below, pins, cgroups=32)
        come(31)
        with closing(start(below, pins, cgroups=32)) as path:
            assert len(path.cgroups.all()) == 25 + 31


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_version_and_back(
    below: CgroupRoot, pins: Pins, generator: Generator, tmp_path: Path
) -> None:
    """In mid-traffic, again and again; TCP's figures go on, too."""
    images = [None, build(tmp_path / "another", ANOTHER)]
    start(below, pins).close()
    kept = names(pins)
    with new_netns("other") as other, ThreadPoolExecutor(2) as pool:
        elsewhere = replace(generator, client_netns=other, server_netns=other)
        running = [
            pool.submit(generator.run, "connections", scaled(10_000)),
            pool.submit(elsewhere.run, "crossing", scaled(10_000)),
        ]
        rounds = 0
        while rounds < max(10 // SCALE, 2) or rounds % 2 or not all(each.done() for each in running):
            rounds += 1
            with closing(start(below, pins, image=images[rounds % 2])) as path:
                path.flush_sockets()
                path.flush_tcp()
            assert names(pins) == (sorted([*kept, "added"]) if rounds % 2 else kept)
        results = [each.result() for each in running]
    with closing(start(below, pins)) as path:
        assert_over(path, generator, results)
        assert final_difference(path, below) == NOTHING


def test_what_tcp_counts_by_itself_goes_on(below: CgroupRoot, pins: Pins, ends: Ends, tmp_path: Path) -> None:
    """A connection that lives over several versions and daemons: equal to its own figures."""
    images = [None, build(tmp_path / "another", ANOTHER)]
    start(below, pins).close()
    pairs = ends.pairs(8)
    for number in range(6):
        for each, pair in enumerate(pairs):
            pair.exchange(1000 * each, 70 + number)
        with closing(start(below, pins, image=images[number % 2])) as path:
            if number % 3:
                path.flush_tcp()
            for pair in pairs:
                pair.exchange(500, 5000)
    for pair in pairs:
        pair.settle()
    with closing(start(below, pins)) as path:
        path.flush_tcp()
        for side, cgroup in (("client", ends.client), ("server", ends.server)):
            assert books_of(path, cgroup.id).counts == counts_of(infos(pairs, side))
        assert tcp_losses(path) == {}


def test_drops_of_a_time_without_seats(below: CgroupRoot, pins: Pins, ends: Ends) -> None:
    """No tracepoint tells of them: they are counted as the socket is closed, or the next daemon begins."""
    start(below, pins, sockets=1).close()
    lives, closed, older = deaf_socket(ends), deaf_socket(ends), deaf_socket(ends)
    closed.close()
    with closing(start(below, pins, sockets=1)) as path:
        assert record_of(path, "udp_totals", ends.server.id)["receive_drops"] == 15
    older.close()
    with closing(start(below, pins, sockets=1)) as path:
        assert record_of(path, "udp_totals", ends.server.id)["receive_drops"] == 15
    lives.close()


def drops_at(ends: Ends, path: DataPath) -> int:
    path.flush()
    return record_of(path, "udp_totals", ends.server.id)["receive_drops"]


def test_drops_of_a_time_without_their_collector(below: CgroupRoot, pins: Pins, ends: Ends) -> None:
    """Of sockets that have their seats still."""
    with closing(start(below, pins)) as path:
        deaf_socket(ends)
        assert drops_at(ends, path) == 5
    with closing(start(below, pins, parts=Parts(udp=False))) as path:
        deaf_socket(ends)
        path.flush()
    with closing(start(below, pins)) as path:
        assert drops_at(ends, path) == 0
        deaf_socket(ends)
        assert drops_at(ends, path) == 5


def test_drops_with_their_cursors_unpinned_by_hand(below: CgroupRoot, pins: Pins, ends: Ends) -> None:
    with closing(start(below, pins)) as path:
        deaf_socket(ends)
        assert drops_at(ends, path) == 5
    [pinned] = [each for each in pins.all("maps") if pin_name(each) == "udp_sockets"]
    pinned.unlink()
    deaf_socket(ends)
    with closing(start(below, pins)) as path:
        assert drops_at(ends, path) == 5, "not twice, and of those since nothing is known"


@pytest.mark.parametrize("step", [HOT_PATH, "sl_udp_released"])
def test_drops_before_a_start_that_came_to_its_end(
    below: CgroupRoot,
    pins: Pins,
    ends: Ends,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    """One was killed before packets were counted. Nor is anything said of what it had not attached."""
    deaf_socket(ends)
    attach_root = DataPath._attach_root

    def until(path: DataPath, name: str) -> None:
        if name == step:
            raise KeyboardInterrupt
        attach_root(path, name)

    with monkeypatch.context() as patched:
        patched.setattr(DataPath, "_attach_root", until)
        with pytest.raises(KeyboardInterrupt):
            start(below, pins)
    deaf_socket(ends)
    with closing(start(below, pins)) as path:
        assert drops_at(ends, path) == 0
        deaf_socket(ends)
        assert drops_at(ends, path) == 5
    assert not caplog.records


def test_drops_before_a_daemon_that_saw_few(
    below: CgroupRoot, pins: Pins, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is in a pid namespace of its own, its successor is not."""
    made = deaf_socket(ends)
    cookie = cookie_of(made).to_bytes(8, sys.byteorder)
    with monkeypatch.context() as patched:
        patched.setattr(datapath, "sees_all_processes", lambda: False)
        with closing(start(below, pins)) as path:
            path.maps["udp_sockets"].delete(cookie)
    with closing(start(below, pins)) as path:
        assert drops_at(ends, path) == 0
        path.maps["udp_sockets"].delete(cookie)
    with closing(start(below, pins)) as path:
        assert drops_at(ends, path) == 5, "known, by its word"


def test_what_never_changes(root: CgroupRoot) -> None:
    """Whoever changes the layout of these moves VERSION on: no daemon goes on with entries of the other."""
    path = DataPath(root, cgroups=1, sockets=1, connections=1)
    assert (VERSION, {name: shape(path.maps[name]) for name in FIXED | {"tags"}}) == (
        "v1",
        {
            "tag_names": "8097bbd5",
            "tags": "106d9437",
            "tcp_sockets": "5357cbc0",
            "udp_sockets": "24c173ba",
            "tasks": "8260042d",
            "task_comms": "b3c96d9e",
            "control": "72a3b33f",
            "lease": "4060aa57",
        },
    )
    path.close()


def test_what_was_lost_before_is_not_told_of_anew(
    below: CgroupRoot, pins: Pins, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by a version with one reason more, either, which moves what is counted."""
    added = Change("ledger.h", "	__u64 sockets_full;", "	__u64 added;\n	__u64 sockets_full;")
    image = build(tmp_path / "another", (added,))
    with closing(start(below, pins)) as path:
        table = path.maps["lost"]
        table.update(bytes(4), table.value.pack(connections_full=7))
    for each in (None, image, None):
        with closing(start(below, pins, image=each)) as path:
            ledger = Ledger(path, below, Meters((), below, path))
            ledger.flush()
            assert ledger.books.lost_updates["connections_full"] == 7
    assert WARNINGS["connections_full"] not in caplog.text


def test_a_protocol_that_a_later_version_told_apart(
    below: CgroupRoot, pins: Pins, parent: Cgroup, netns: Netns, tmp_path: Path
) -> None:
    """After a downgrade it is another one, for good."""
    later = (
        Change("ledger.h", "OTHER, TCP, UDP, ICMP }", "OTHER, TCP, UDP, ICMP, LATER }"),
        Change("ledger.h", "(ICMP + 1)", "(LATER + 1)"),
        Change("traffic.h", "		return UDP;", "		return LATER;"),
    )
    image = build(tmp_path / "later", later)
    sent: Counter[str] = Counter()
    with new_cgroup(parent.path, "a") as a:
        for each, protocol in ((image, "later"), (None, "udp"), (image, "later")):
            with closing(start(below, pins, image=each)) as path:
                sent[protocol] += send(netns, a)
                ledger = ledger_of(path, below, Clock())
                ledger.flush()
                books = ledger.books.accounts.items()
                assert {account.protocol: traffic.transmit_bytes for account, traffic in books} == sent
                if protocol == "later":
                    sent["other"] += sent.pop(protocol)
    with closing(start(below, pins)) as path:
        assert_balanced(path, below)


def test_what_must_never_change_has(below: CgroupRoot, pins: Pins, tmp_path: Path) -> None:
    start(below, pins).close()
    image = build(tmp_path / "another", (Change("tcp.h", "	bool in_other;", "	bool in_other, added;"),))
    with pytest.raises(UserError, match=r"does not understand: run that one, or sockledger uninstall"):
        start(below, pins, image=image)
    start(below, pins).close()


# ---- no memory


def lost(pins: Pins) -> dict[str, int]:
    """Return the updates that were lost, without a daemon."""
    [path] = [path for path in pins.all("maps") if path.name.startswith("lost-")]
    layout = pins.layouts(path)[1]
    assert layout is not None
    with opened(path) as fd:
        return layout.unpack(OpenMap(fd).lookup_index(0))


@contextmanager
def memory_cgroup() -> Iterator[tuple[Path, Callable[[], None]]]:
    """A memory cgroup's file for processes, and what sets its limit to what is in use there."""
    v1 = Path("/sys/fs/cgroup/memory")
    if v1.exists():
        home, usage, limit = v1, "memory.usage_in_bytes", "memory.limit_in_bytes"
    else:
        home, usage, limit = find_root(None).path, "memory.current", "memory.max"
        (home / "cgroup.subtree_control").write_text("+memory")
    with new_cgroup(home, f"sockledger-memory-{os.getpid()}") as cgroup:

        def close() -> None:
            """Below what is in use: v1 refuses what it cannot reclaim."""
            size = int((cgroup.path / usage).read_text())
            with suppress(OSError):
                while size:
                    (cgroup.path / limit).write_text(str(size))
                    size -= os.sysconf("SC_PAGE_SIZE")

        yield cgroup.path / "cgroup.procs", close


def start_in(processes: Path, below: CgroupRoot, pins: Pins, label_sets: int = 0) -> None:
    """Let a process of a memory cgroup make the maps."""
    process = os.fork()
    if not process:
        processes.write_text(str(os.getpid()))
        start(below, pins, label_sets=label_sets).close()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    time.sleep(1)  # what is freed late would be room


@contextmanager
def filled(table: Map, close: Callable[[], None]) -> Iterator[None]:
    """Take all entries of *table* that the kernel has set aside, on each CPU, or finds memory for later."""
    cpus, keys = os.sched_getaffinity(0), (key.to_bytes(8, sys.byteorder) for key in count(1))
    made: list[bytes] = []

    def take() -> None:
        close()
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            made.extend(takewhile(table.make, keys))

    rounds = [1]
    while any(rounds[-5:]):
        before = len(made)
        take()
        rounds.append(len(made) - before)
        time.sleep(0.1)
    os.sched_setaffinity(0, cpus)
    assert table.entries() < table.max_entries
    with repeating(take, 0.005):  # others may give some back
        yield
    for key in made:
        table.delete(key)


def shown_by(ledger: Ledger) -> dict[str, int]:
    ledger.flush()
    return sent(ledger)


def test_no_memory_for_what_is_gone(
    below: CgroupRoot, pins: Pins, parent: Cgroup, netns: Netns, caplog: pytest.LogCaptureFixture
) -> None:
    """It is shown on, and folded when there is some."""
    clock, truth = Clock(), {}
    with memory_cgroup() as (processes, close):
        start_in(processes, below, pins, label_sets=4096)
        with closing(start(below, pins, label_sets=4096)) as path:
            ledger = ledger_of(path, below, clock)
            with new_cgroup(parent.path, "a") as cgroup:
                truth["/a"] = send(netns, cgroup)
            released(path, 1)
            fold(ledger, clock)
            with new_cgroup(parent.path, "a"):
                with new_cgroup(parent.path, "b") as cgroup:
                    truth["/b"] = send(netns, cgroup)
                released(path, 1)
                clock.ahead += HOUR
                with filled(path.maps["label_sets"], close):
                    for _ in range(2):
                        fold(ledger, clock)
                        assert sent(ledger) == truth
                # there may be none for the newest names, either
                said = {each.message for each in caplog.records if "shown as" not in each.message}
                assert said == {"what is gone is shown longer"}
                assert len(caplog.records) <= 2
                del truth["/b"]
                eventually(lambda: shown_by(ledger) == truth, "folded")
                assert kept(path).keys() == {"/a", "/b"}
            assert_balanced(path, below)


def test_no_memory_is_left(below: CgroupRoot, pins: Pins, generator: Generator, ends: Ends) -> None:
    """All maps are charged to the daemon's memory cgroup. At its limit packets are counted as ever."""
    with memory_cgroup() as (processes, close):
        start_in(processes, below, pins)
        pairs: list[Pair] = []
        while not lost(pins)["connections_busy"]:  # the kernel has set some entries aside
            close()
            assert len(pairs) < 5000
            pairs += ends.pairs(50)
        for pair in pairs:
            pair.exchange(100, 1000)
            pair.client.close()
            pair.server.close()
        generator.run_together({"tcp": scaled(1000), "udp": scaled(1000)})
        with closing(start(below, pins)) as path:
            for cgroup in (generator.client, generator.server):
                wait_until_over(path, cgroup)
            assert final_difference(path, below) == NOTHING


# ---- what a hand or another agent does


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextmanager
def read_only(pins: Pins) -> Iterator[None]:
    """As a hand may make a bpffs that is in use."""
    bpffs = str(pins.folder.parents[1])
    run("mount", "-o", "remount,ro", bpffs)
    try:
        yield
    finally:
        run("mount", "-o", "remount,rw", bpffs)


def mend(path: DataPath) -> None:
    path.attach_again()
    path.pin_again()


@pytest.mark.parametrize("name", ["sl_receive", "sl_transmit", "sl_tcp_events", "sl_udp_released"])
def test_detached_by_hand(
    root: CgroupRoot, pins: Pins, generator: Generator, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(start(root, pins)) as path:
        run("bpftool", "link", "detach", "id", str(path.links.held[name].id))
        assert path.detached() == {name}
        mend(path)
        assert path.detached() == set()
        assert "attached again" in caplog.text
        assert pins.open_link(name) is not None
        flush(path)
        before = totals_of(path, generator.client.id)
        result = generator.run("udp", scaled(500))
        flush(path)
        after = totals_of(path, generator.client.id)
        assert {key: value for key, value in after.items() if key[0] == "udp"} == result.side("client")
        assert not before
    caplog.clear()
    start(root, pins).close()
    assert not caplog.records


@pytest.mark.parametrize("emptied", [True, False])
def test_a_slot_changed_by_hand(
    below: CgroupRoot, pins: Pins, parent: Cgroup, emptied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What is attached to a tracepoint stays there, and jumps nowhere, or to somebody else's program."""
    name = "sl_cgroup_mkdir"

    def noted(path: DataPath) -> bool:
        with new_cgroup(parent.path, "a") as cgroup:
            return cgroup.id in path.cgroups.all()

    with (
        closing(start(below, pins)) as path,
        closing(DataPath(below, cgroups=1, sockets=1, connections=1)) as other,
    ):
        assert noted(path)
        [pinned] = (each for each in pins.all("maps") if pin_name(each) == f"{name}_slot")
        with opened(pinned) as fd:
            if emptied:
                OpenMap(fd).delete(bytes(4))
            else:
                program = other.programs[f"{name}_now"].fd
                OpenMap(fd).update(bytes(4), program.to_bytes(4, sys.byteorder))
        assert path.detached() == {name}
        assert not noted(path)
        mend(path)
        mend(path)
        assert path.detached() == set()
        assert [each.message for each in caplog.records] == ["put back in its slot"]
        assert noted(path)


@pytest.mark.parametrize("refused", ["sl_receive", "sl_transmit"])
def test_one_that_cannot_be_attached_again(
    below: CgroupRoot,
    pins: Pins,
    refused: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others are, and what is unpinned is pinned."""

    def fail() -> Link:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with closing(start(below, pins)) as path:
        pinned = pins.all("maps")
        monkeypatch.setitem(path.links._attach, refused, fail)
        for name in ("sl_receive", "sl_transmit"):
            run("bpftool", "link", "detach", "id", str(path.links.held[name].id))
        pins.remove_maps(pinned)
        for _ in range(2):
            mend(path)
        assert path.detached() == {refused}
        assert pins.all("maps") == pinned
        assert caplog.text.count("attaching again failed") == 1


def test_another_daemon_has_pinned_its_own(below: CgroupRoot, pins: Pins, client: Cgroup) -> None:
    """Somebody has removed our pins, and a daemon for another cgroup has come and gone: these are its."""
    other = CgroupRoot(client.path)
    with closing(start(below, pins)) as path:
        pins.remove()
        start(other, pins).close()
        pinned = pins.names()
        with pytest.raises(UserError, match="another daemon's programs are pinned there"):
            mend(path)
        assert pins.names() == pinned
    os.close(other.fd)


@pytest.mark.parametrize("same_root", [False, True])
@pytest.mark.parametrize("at", [0, 10, 20, None])
def test_another_daemon_was_killed_at_its_start(
    below: CgroupRoot, pins: Pins, client: Cgroup, netns: Netns, at: int | None, *, same_root: bool
) -> None:
    """Somebody has removed our pins, and what another one pinned before it attached is there.

    Ours take its place.
    """
    other = below if same_root else CgroupRoot(client.path)

    def pin_all() -> None:
        DataPath(other, cgroups=1000, sockets=65536, connections=100_000, pins=pins).close()

    with closing(start(below, pins)) as path:
        send(netns, client)
        pins.remove()
        if at is None:
            pin_all()
        else:
            assert killed(pin_all, at, {pins_module: ("pin",)})
        mend(path)
    send(netns, client)
    with closing(start(below, pins)) as path:
        assert_balanced(path, below)
        assert all_totals(path).transmit_packets == 20
    if not same_root:
        os.close(other.fd)


def test_bpffs_is_read_only_for_a_while(
    below: CgroupRoot, pins: Pins, client: Cgroup, netns: Netns, caplog: pytest.LogCaptureFixture
) -> None:
    """What is detached then is attached again, and pinned when it can be."""
    with closing(start(below, pins)) as path:
        with read_only(pins):
            mend(path)
            assert not caplog.records
            for name in ("sl_receive", "sl_transmit"):
                run("bpftool", "link", "detach", "id", str(path.links.held[name].id))
            path.attach_again()
            assert caplog.text.count("attached again") == 2
            assert not path.detached()
            with pytest.raises(OSError, match="Read-only file system"):
                path.pin_again()
        mend(path)
        caplog.clear()
        mend(path)
    send(netns, client)
    with closing(start(below, pins)) as path:
        assert not caplog.records
        assert_balanced(path, below)
        assert all_totals(path).transmit_packets == 10


def test_meters_while_bpffs_is_read_only(
    below: CgroupRoot, pins: Pins, parent: Cgroup, netns: Netns, caplog: pytest.LogCaptureFixture
) -> None:
    """They come and go as far as they can; nothing is left, and nothing counted twice."""
    with closing(start(below, pins)) as path, ExitStack() as cgroups:
        ledger = Ledger(path, below, Meters(("/*",), below, path))

        def counted() -> dict[str, int]:
            ledger.flush()
            points = ledger.books.attach_points.items()
            return {point.path: count.transmit_bytes for point, count in points if point.path != "/"}

        gone = cgroups.enter_context(ExitStack())
        gone.enter_context(new_cgroup(parent.path, "gone"))
        assert counted() == {"/gone": 0}
        files = descriptors()
        with read_only(pins):
            late = cgroups.enter_context(new_cgroup(parent.path, "late"))
            gone.close()
            for _ in range(3):
                assert counted() == {}
        assert counted() == {"/late": 0}
        assert descriptors() == files
        bytes_sent = send(netns, late)
        assert counted() == {"/late": bytes_sent}
        assert caplog.text.count("meter not attached") == 1
        assert caplog.text.count("stays pinned") == 2
    with closing(start(below, pins)) as path:
        Meters((), below, path).follow()
        assert not [name for name in pins.names() if "meter" in name]


@pytest.mark.parametrize("name", ["sl_receive", "sl_transmit"])
def test_killed_while_attaching_again(below: CgroupRoot, pins: Pins, name: str) -> None:
    """All that is left attached is pinned under its own name: the next one would wait for the rest."""
    for at in range(5):
        with closing(start(below, pins)) as path:
            run("bpftool", "link", "detach", "id", str(path.links.held[name].id))
            assert killed(partial(mend, path), at)
            names = {*path.links.held}
        assert {each.name for each in pins.all("links")} <= names
        eventually(lambda: set(hot_paths(below.id)) <= pins.link_ids(HOT_PATH), "detached")


def test_unpinned_by_hand(
    root: CgroupRoot, pins: Pins, generator: Generator, caplog: pytest.LogCaptureFixture
) -> None:
    """While the daemon runs nothing is lost: it holds all, and pins it again."""
    with closing(start(root, pins)) as path:
        pinned = pins.names()
        results = [generator.run("udp", scaled(500))]
        pins.remove()
        mend(path)
        assert pins.names() == pinned
        [told] = [record.__dict__["pins"] for record in caplog.records]
        assert {*told.split(", ")} == pinned
        caplog.clear()
        mend(path)
        assert not caplog.records
    results.append(generator.run("udp", scaled(500)))
    with closing(start(root, pins)) as path:
        flush(path)
        assert totals_of(path, generator.client.id) == summed(results, "client")
        assert not caplog.records


@pytest.mark.parametrize("name", ["control", "totals", "overflow", "sockets", "flushes", "shown"])
def test_a_map_unpinned_by_hand_while_no_daemon_runs(
    root: CgroupRoot, pins: Pins, generator: Generator, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left is worth nothing: the books would not balance. It begins at 0, and says so."""
    start(root, pins).close()
    generator.run("udp", scaled(500))
    [path_of_map] = [path for path in pins.all("maps") if path.name.partition("-")[0] == name]
    path_of_map.unlink()
    with closing(start(root, pins)) as path:
        assert f"somebody has removed {name}" in caplog.records[0].__dict__["reason"]
        flush(path)
        assert not totals_of(path, generator.client.id)
        result = generator.run("udp", scaled(500))
        flush(path)
        assert totals_of(path, generator.client.id) == result.side("client")
        assert final_difference(path, root) == NOTHING


@pytest.mark.parametrize("kind", ["programs", "layouts"])
def test_what_an_upgrade_needs_unpinned_by_hand(
    root: CgroupRoot, pins: Pins, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same limits nobody misses it."""
    for limit in (65536, 1000):
        with closing(start(root, pins, sockets=limit)) as path:
            reasons = [record.__dict__["reason"] for record in caplog.records]
            assert [reason.partition(",")[0] for reason in reasons] == (
                [f"somebody has removed {kind}"] if limit == 1000 else []
            )
        for each in pins.all(kind):
            each.unlink()
    with closing(start(root, pins, sockets=1000)) as path:
        assert final_difference(path, root) == NOTHING


def test_generations_unpinned_by_hand_while_no_daemon_runs(
    below: CgroupRoot, pins: Pins, caplog: pytest.LogCaptureFixture
) -> None:
    start(below, pins).close()
    (pins.folder / "generations").rmdir()
    start(below, pins).close()
    assert caplog.text.count("somebody has removed generations") == 1


FOREIGN = ("type", "array", "key", "4", "value", "4", "entries", "1", "name", "foreign")


def test_a_foreign_map_among_the_pins(
    parent: Cgroup, below: CgroupRoot, pins: Pins, netns: Netns, caplog: pytest.LogCaptureFixture
) -> None:
    """It is removed; one that is called like ours may be what is left of our sums, and all begins anew."""
    with new_cgroup(parent.path, "a") as cgroup:
        with closing(start(below, pins)):
            send(netns, cgroup)
        run("bpftool", "map", "create", str(pins.folder / "maps" / "foreign"), *FOREIGN)
        with closing(start(below, pins)) as path:
            assert totals_of(path, cgroup.id)
        queue = ("type", "queue", "value", "4", "entries", "100000", "name", "foreign")  # it cannot be read
        run("bpftool", "map", "create", str(pins.folder / "maps" / "totals-foreign"), *queue)
        with closing(start(below, pins)) as path:
            assert not totals_of(path, cgroup.id)
    ended, removed = caplog.records
    assert (ended.message, ended.__dict__["maps"]) == ("ends, as it is not counted any more", "foreign")
    assert removed.__dict__["reason"] == (
        "somebody has removed layouts, or these maps are none of ours: totals-foreign"
    )


def test_a_program_in_anothers_place(below: CgroupRoot, pins: Pins) -> None:
    """In that of each map, also one that nobody has made, and of a link."""
    with closing(start(below, pins)) as path:
        program = path.programs["sl_flush"].fd
        places = [pins.folder / "maps" / "totals-cafe", *pins.all("maps"), pins.link("sl_cgroup_mkdir")]
        for place in places:
            aside = pins.folder / "aside"
            if place.exists():
                place.rename(aside)
            pin(program, place)
            kind = "link" if place.parent.name == "links" else "map"
            reason = rf"/{place.name}: is no {kind}: remove it, or run sockledger uninstall"
            with pytest.raises(UserError, match=reason):
                start(below, pins)
            place.unlink()
            if aside.exists():
                aside.rename(place)
    start(below, pins).close()


def test_a_program_in_the_place_of_a_map_in_use(
    parent: Cgroup, below: CgroupRoot, pins: Pins, netns: Netns
) -> None:
    """Or a link: the daemon that runs has all in hand, and pins it again."""
    with new_cgroup(parent.path, "a") as cgroup:
        with closing(start(below, pins)) as path:
            send(netns, cgroup)
            for fd in (path.programs["sl_flush"].fd, path.links.held["sl_receive"].fd):
                [control] = (place for place in pins.all("maps") if place.name.startswith("control-"))
                control.unlink()
                pin(fd, control)
                mend(path)
        with closing(start(below, pins)) as path:
            path.flush_sockets()
            assert totals_of(path, cgroup.id) == {("udp", "ipv4"): Traffic(1280, 10, 1280, 10)}


def test_a_link_that_another_version_did_not_have(
    below: CgroupRoot, pins: Pins, caplog: pytest.LogCaptureFixture
) -> None:
    start(below, pins).close()
    pins.begin(below.id, ())
    pins.note_attached(pins.attached - {"sl_udp_released"})
    pins.link("sl_udp_released").unlink()
    for _ in range(2):
        start(below, pins).close()
    assert not caplog.records
    pins.link("sl_udp_released").unlink()
    start(below, pins).close()
    assert caplog.text.count("attached anew, it was not any more") == 1


def test_links_unpinned_by_hand_while_no_daemon_runs(
    root: CgroupRoot, pins: Pins, caplog: pytest.LogCaptureFixture
) -> None:
    start(root, pins).close()
    for link in pins.all("links"):
        link.unlink()
    start(root, pins).close()
    assert caplog.text.count("attached anew, it was not any more") == len(ATTACHED)
    caplog.clear()
    (pins.folder / "attached").unlink()
    for _ in range(2):
        start(root, pins).close()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "it is not known what was attached"
    ]


@pytest.mark.parametrize("name", ["tcp_sockets", "tcp_totals"])
def test_half_of_what_is_known_of_tcp_unpinned_by_hand(
    below: CgroupRoot, pins: Pins, ends: Ends, name: str
) -> None:
    """Either is worth nothing without the other: both begin at 0, with what is open then."""
    with closing(start(below, pins)) as path:
        pairs = ends.pairs(3)
        path.flush()
        assert books_of(path, ends.client.id).opened == {"active": 3}
    [pinned] = [each for each in pins.all("maps") if pin_name(each) == name]
    pinned.unlink()
    with closing(start(below, pins)) as path:
        for pair in pairs:
            pair.client.close()
            pair.server.close()
        for cgroup in (ends.client, ends.server):
            eventually(partial(is_closed, path, cgroup), "closed")


def is_closed(path: DataPath, cgroup: Cgroup) -> bool:
    path.flush()
    books = books_of(path, cgroup.id)
    return sum(books.opened.values()) == sum(books.closed.values()) == 3 and ESTABLISHED not in books.sockets


@pytest.mark.parametrize("slot", ["sl_tcp_states_slot", "sl_udp_drops_slot"])
def test_a_slot_unpinned_by_hand(root: CgroupRoot, pins: Pins, slot: str) -> None:
    """What is attached jumps to a slot that is empty now: it is attached anew."""
    with closing(start(root, pins)) as path:
        before = path.links.held[slot.removesuffix("_slot")].id
    [pinned] = [path for path in pins.all("maps") if path.name.partition("-")[0] == slot]
    pinned.unlink()
    # killed before it attaches anything
    DataPath(root, cgroups=1000, sockets=65536, connections=100_000, parts=ALL_PARTS, pins=pins).close()
    with closing(start(root, pins)) as path:
        assert path.links.held[slot.removesuffix("_slot")].id != before


def test_figures_of_hooks_begin_with_each_daemon(below: CgroupRoot, pins: Pins, parent: Cgroup) -> None:
    """What is attached to a tracepoint is the first daemon's."""
    name = "sl_cgroup_mkdir"
    with sysctl_set("kernel.bpf_stats_enabled", "1"), ExitStack() as stack:
        start(below, pins).close()
        stack.enter_context(new_cgroup(parent.path, "a"))
        fd = stack.enter_context(opened(pins.hook(name)))
        before = program_stats(fd).runs
        assert before >= 1, "other hierarchies may have some, too"
        with closing(start(below, pins)) as path:
            stack.enter_context(new_cgroup(parent.path, "b"))
            runs = path.stats(name).runs
            assert 1 <= runs <= program_stats(fd).runs - before


def test_a_start_that_is_refused_leaves_nothing(pins: Pins, client: Cgroup) -> None:
    root = CgroupRoot(client.path)
    path = DataPath(root, cgroups=1, sockets=1, connections=1, pins=pins)
    with foreign_program(client, EGRESS, EXCLUSIVE), pytest.raises(UserError):
        path.attach()
    path.undo()
    path.close()
    assert not pins.there()
    os.close(root.fd)


def test_a_start_that_is_refused_before_it_pins_leaves_nothing(
    below: CgroupRoot, pins: Pins, caplog: pytest.LogCaptureFixture
) -> None:
    """But empty folders; nor does one of another version."""
    pins.begin(below.id, [])
    (pins.folder.with_name("v9") / "maps").mkdir(parents=True)
    assert not pins.there()
    start(below, pins).close()
    assert not caplog.records
    assert pins.there()
    pins.remove()
    assert not list(pins.folder.parent.iterdir())


def test_cgroups_that_end_while_their_programs_are_replaced(
    below: CgroupRoot, pins: Pins, parent: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By others with another map: whichever sees a cgroup's end last, it is in the one in use then."""
    moments = range(len(NAMING) + 1)
    lives = {
        f"{made}-{removed}": (made, removed) for made in moments for removed in range(made, len(moments))
    }
    numbers: dict[str, int] = {}
    now = iter(moments)

    def pass_a_moment() -> None:
        moment = next(now)
        for name, (made, removed) in lives.items():
            if made == moment:
                cgroup = Cgroup(parent.path / name)
                cgroup.path.mkdir()
                numbers[name] = cgroup.id
            if removed == moment:
                (parent.path / name).rmdir()
        time.sleep(0.5)  # those that were removed are released

    hook = DataPath._hook

    def slowly(path: DataPath, name: str) -> None:
        hook(path, name)
        if name in NAMING:
            pass_a_moment()

    start(below, pins, cgroups=1000).close()
    monkeypatch.setattr(DataPath, "_hook", slowly)
    pass_a_moment()
    with closing(start(below, pins, cgroups=2000)) as path:
        noted = path.cgroups.all()
        released = {name for name, number in numbers.items() if number in noted and noted[number].released}
        assert released == lives.keys()


@pytest.mark.parametrize("capable", [True, False], ids=["with CAP_DAC_READ_SEARCH", "without"])
def test_cgroups_that_go_unseen(
    below: CgroupRoot, pins: Pins, parent: Cgroup, monkeypatch: pytest.MonkeyPatch, *, capable: bool
) -> None:
    """Somebody has taken the names' programs off while no daemon runs: the next one looks around."""
    if not capable:
        monkeypatch.setattr(below, "_may_open", False)
    with new_cgroup(parent.path, "stays") as stays:
        with new_cgroup(parent.path, "goes") as cgroup:
            goes = cgroup.id
            with closing(start(below, pins)) as path:
                ends = {path.links.held[name].id for name in ("sl_cgroup_rmdir", "sl_cgroup_release")}
            for name in ("sl_cgroup_rmdir", "sl_cgroup_release"):
                pins.link(name).unlink()
            eventually(lambda: not ends & existing_links(), "detached")
        with closing(start(below, pins)) as path:
            noted = path.cgroups.all()
            assert noted[goes].removed
            assert not noted[goes].released, "nobody has seen it"
            assert not noted[stays.id].removed


def test_a_start_that_did_not_come_to_its_end(root: CgroupRoot, pins: Pins) -> None:
    start(root, pins).close()
    (pins.folder / "root").unlink()
    for link in pins.all("links"):
        link.unlink()
    with closing(start(root, pins)) as path:
        assert final_difference(path, root) == NOTHING


# ---- what does not fit


def test_another_root(root: CgroupRoot, pins: Pins, below: CgroupRoot) -> None:
    start(below, pins).close()
    with pytest.raises(UserError, match=rf"another cgroup \(id {below.id}\): .* sockledger uninstall"):
        start(root, pins)
    start(below, pins).close()


def test_a_root_that_is_gone(
    root: CgroupRoot, pins: Pins, parent: Cgroup, caplog: pytest.LogCaptureFixture
) -> None:
    with new_cgroup(parent.path, "root") as cgroup:
        gone = CgroupRoot(cgroup.path)
        start(gone, pins).close()
    eventually(lambda: pins.open_link("sl_receive").cgroup_id == 0, "detached")  # type: ignore[union-attr]
    with closing(start(root, pins)) as path:
        assert caplog.records[0].__dict__["reason"].startswith("the cgroup that was counted in is gone")
        assert final_difference(path, root) == NOTHING


def test_a_start_that_ended_before_its_first_link(root: CgroupRoot, pins: Pins, below: CgroupRoot) -> None:
    """It may have been for another cgroup: nothing has been counted there."""
    start(below, pins).close()
    for each in pins.all("links"):
        link = Link.open(each)
        if link.cgroup_id:
            each.unlink()
        link.destroy()
    with closing(start(root, pins)) as path:
        assert final_difference(path, root) == NOTHING


def test_a_folder_that_is_elsewhere(root: CgroupRoot, pins: Pins, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pins.folder.parent.mkdir()
    pins.folder.symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"v1: is no folder: remove it"):
        start(root, pins)
    assert not list(elsewhere.iterdir())
    pins.folder.unlink()


def test_a_root_that_goes(pins: Pins, parent: Cgroup, caplog: pytest.LogCaptureFixture) -> None:
    with new_cgroup(parent.path, "root") as cgroup:
        gone = CgroupRoot(cgroup.path)
        path = DataPath(gone, cgroups=10, sockets=10, connections=10, pins=pins)
    with closing(path):
        with pytest.raises(UserError, match=r"/root: this cgroup, .* is gone"):
            path.attach()
        path.undo()
    with new_cgroup(parent.path, "root") as cgroup:
        path = start(CgroupRoot(cgroup.path), pins)
    with closing(path):
        eventually(lambda: "sl_receive" in path.detached(), "detached")
        for _ in range(2):
            mend(path)
        refused = [each for each in caplog.records if each.message == "attaching again failed"]
        assert len(refused) == len(path.detached())


def test_what_another_version_has_pinned_stays(below: CgroupRoot, pins: Pins) -> None:
    with closing(start(below, pins)) as path:
        pins.remove()
        later = pins.folder.with_name("v99")
        later.mkdir(parents=True)
        (later / "root").symlink_to("1")
        mend(path)
        assert (later / "root").is_symlink()


def test_another_version(root: CgroupRoot, pins: Pins) -> None:
    (pins.folder.parent / "v99").mkdir(parents=True)
    (pins.folder.parent / "v99" / "root").symlink_to("1")
    with pytest.raises(UserError, match=r"v99 was pinned by a version .* sockledger uninstall"):
        start(root, pins)


def test_parts_that_are_not_counted_any_more(root: CgroupRoot, pins: Pins, generator: Generator) -> None:
    """Their pins go; what is counted goes on."""
    with closing(start(root, pins)):
        results = [generator.run("udp", scaled(500))]
    with closing(start(root, pins, parts=Parts(tcp=False, udp=False, unix=False))) as path:
        assert {each.name for each in pins.all("links")} == {"sl_receive", "sl_transmit", *NAMING}
        ended = ("tcp_", "udp_", "listen_", "task")
        assert not [each for each in pins.all("maps") if each.name.startswith(ended)]
        results.append(generator.run("udp", scaled(500)))
        flush(path)
        assert totals_of(path, generator.client.id) == summed(results, "client")
    with closing(start(root, pins)) as path:
        generator.run("connections", scaled(500))
        path.flush_tcp()
        books = books_of(path, generator.client.id)
        eventually(lambda: books_of(path, generator.client.id).opened == books.opened, "counted")
        assert final_difference(path, root) == NOTHING


UNIX = 1  # enum socket_family

# What is switched off, and the metrics that it feeds.
SWITCHED = {
    "tcp": (Parts(tcp=False), r"sockledger_tcp_"),
    "histograms": (Parts(), r"sockledger_tcp_(rtt|connect_duration|connection_lifetime)_seconds_"),
    "udp": (Parts(tcp_histograms=True, udp=False), r"sockledger_udp_"),
    "unix": (Parts(tcp_histograms=True, unix=False), r"sockledger_unix_"),
    "unpinned by hand": (None, r"sockledger_node_"),
}


@pytest.mark.parametrize("daemons", [1, 2], ids=["one", "another shows it"])
@pytest.mark.parametrize(("without", "fed"), SWITCHED.values(), ids=SWITCHED)
def test_switched_off_and_on_again(
    below: CgroupRoot, pins: Pins, client: Cgroup, without: Parts | None, fed: str, daemons: int
) -> None:
    """What has begun at 0 is born at 0, whichever daemon is first to have any; nothing else is."""
    if "unix" in fed and not tells_calls():
        pytest.skip("this kernel has no sock_send_length (before 6.3)")
    written = 0

    def pages(parts: Parts = ALL_PARTS) -> list[dict[str, float]]:
        """Two pages of a daemon after all sums of a cgroup, and of the node, have gone up."""
        nonlocal written
        with closing(start(below, pins, parts=parts)) as path:
            for name in (*path.kept, *(["node_totals"] if parts.tcp else [])):
                table = path.maps[name]
                fields = table.key.fields if name in path.kept else []
                members = {field.name: UNIX for field in fields if field.name == "socket_family"}
                key = table.key.pack(**members, **{fields[0].name: client.id}) if fields else bytes(4)
                value = table.lookup(key) or bytes(table.value_size)
                more = [word + 1000 for word in table.value.struct.unpack(value)]
                table.update(key, table.value.struct.pack(*more))
            births = Births(ShownMap(path.maps["shown"]), path.generations)
            ledger = Ledger(path, below, Meters((), below, path), births=births)
            switched = {
                "tcp": parts.tcp,
                "listeners": parts.tcp,
                "udp": parts.udp,
                "unix": parts.unix and tells_calls(),
            }
            enabled = {"traffic", *(name for name, on in switched.items() if on)}
            registry = Registry(enabled, ledger, births)
            ledger.flush()
            found = []
            for _ in range(2):
                page = text.render(registry.collect(), seen=births.scrapers.seen_by("one"), openmetrics=False)
                births.note_page("one", births.newest, ledger.books.began)
                found.append(
                    {
                        name: each
                        for name, each in counters(page.decode()).items()
                        if re.search('"/client"|_node_', name)
                    }
                )
            written = births.written
            return found

    first, before = pages()
    assert not any(first.values())
    numbers = set()
    for _ in range(2):
        if without:
            pages(without)
        else:
            [path_of_map] = pins.folder.glob("maps/node_totals-*")
            path_of_map.unlink()
        for _ in range(daemons - 1):
            start(below, pins).close()
        first, after = pages()
        pages()
        numbers.add(written)
    assert len(numbers) == 1, "what was shown of others is forgotten"
    begun = {name for name in after if re.match(fed, name)}
    assert begun
    assert {name for name, value in first.items() if not value} == begun
    assert {name: after[name] for name in begun} == {name: before[name] for name in begun}
    assert all(after[name] > before[name] for name in after.keys() - begun)


# ---- meters


def test_meters_go_on(root: CgroupRoot, pins: Pins, generator: Generator) -> None:
    """And those that nobody asks for any more are taken off."""
    relative = "/" + str(generator.client.path.relative_to(root.path))

    def counted(globs: list[str]) -> dict[str, Traffic]:
        with closing(start(root, pins)) as path:
            ledger = Ledger(path, root, Meters(globs, root, path))
            ledger.flush()
            assert ledger.reconciliation == Reconciliation()
            return {point.path: count for point, count in ledger.books.attach_points.items()}

    assert counted([relative])[relative] == NOTHING
    result = generator.run("udp", scaled(500))
    sent = Traffic(*map(sum, zip(*result.side("client").values(), strict=True)))
    assert counted([relative])[relative] == sent
    assert {each.name for each in pins.all("links")} >= {
        f"sl_meter_receive-{generator.client.id}",
        f"sl_meter_transmit-{generator.client.id}",
    }
    assert relative not in counted([])
    assert not [each for each in pins.all("links") if each.name.startswith("sl_meter")]


def test_a_cgroup_that_comes_while_one_looks_around(
    below: CgroupRoot, pins: Pins, parent: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(below, pins).close()
    walk = below.walk
    with ExitStack() as stack:
        late: list[Cgroup] = []

        def and_one_more() -> Iterator[tuple[int, str]]:
            yield from walk()
            late.append(stack.enter_context(new_cgroup(parent.path, "late")))

        monkeypatch.setattr(below, "walk", and_one_more)
        with closing(start(below, pins)) as path:
            assert not path.cgroups.all()[late[0].id].removed


# ---- the lease


@pytest.mark.parametrize("changes", [(), ANOTHER], ids=["same", "another"])
def test_dormant_when_the_lease_is_over(
    below: CgroupRoot,
    pins: Pins,
    generator: Generator,
    caplog: pytest.LogCaptureFixture,
    changes: tuple[Change, ...],
    tmp_path: Path,
) -> None:
    """Neither side of the books moves on, connections stay balanced, and the next daemon says so."""
    lease = 0.2 if SCALE == 1 else 5.0  # in an emulator a start takes longer
    with closing(start(below, pins, lease=lease)) as path:
        flush(path)
        assert not caplog.records
        time.sleep(lease + 2 / ticks_per_second())
        generator.run("udp", scaled(500))
        generator.run("connections", scaled(500))
        assert control(path, below) == NOTHING
        books = books_of(path, generator.client.id)
        assert (books.opened, books.closed, books.failures) == ({}, {}, {})
    with closing(start(below, pins, image=build(tmp_path / "next", changes))) as path:
        flush(path)
        assert caplog.text.count("nothing was counted for a while") == 1
        result = generator.run("udp", scaled(500))
        flush(path)
        assert totals_of(path, generator.client.id) == result.side("client")
        assert final_difference(path, below) == NOTHING


def test_a_gap_is_told_of_once(
    below: CgroupRoot, pins: Pins, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not by a version that counts gaps elsewhere, either, which moves what was counted."""
    lease = 0.2
    start(below, pins, lease=lease).close()
    time.sleep(lease + 2 / ticks_per_second())
    image = build(tmp_path / "next", ANOTHER)
    for each in (None, None, image, None):
        with closing(start(below, pins, image=each)) as path:
            flush(path)
    assert caplog.text.count("nothing was counted for a while") == 1


def test_without_a_lease_nothing_is_ever_over(
    below: CgroupRoot, pins: Pins, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(start(below, pins, lease=0)) as path:
        for _ in range(3):
            time.sleep(2 / ticks_per_second())
            flush(path)
    assert not caplog.records


def test_what_begins_while_dormant_is_older(below: CgroupRoot, pins: Pins, ends: Ends) -> None:
    lease = 0.2
    start(below, pins, lease=lease).close()
    time.sleep(lease + 2 / ticks_per_second())
    pairs = ends.pairs(8)
    with closing(start(below, pins)) as path:
        find_older(path)
        for pair in pairs:
            pair.client.close()
            pair.server.close()
        for cgroup in (ends.client, ends.server):
            wait_until_over(path, cgroup)
            assert books_of(path, cgroup.id).closed == {"unknown": 8}


def test_connections_end_while_dormant(below: CgroupRoot, pins: Pins, generator: Generator) -> None:
    lease = 0.5
    with closing(start(below, pins, lease=lease)) as path:
        with generator.start("connections", scaled(500), keep=20) as running:
            running.wait_ready()
            time.sleep(lease + 2 / ticks_per_second())
            running.result()
        books = books_of(path, generator.client.id)
        assert books.opened == books.closed


# ---- the end


def test_removed(root: CgroupRoot, pins: Pins) -> None:
    start(root, pins).close()
    assert pins.there()
    assert pins.remove() > 0
    assert not pins.there()
    assert pins.remove() == 0
