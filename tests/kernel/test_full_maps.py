"""How full each map is, and what is said when one is."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.kernel.ledger import ALL_PARTS, CGROUPS, attached
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.kernel.objects import Change, build
from tests.kernel.tcp import Ends, meminfo_drops, reset

from sockledger.collectors.programs import MAP_ENTRIES, MAP_MAX_ENTRIES, ProgramsCollector
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.features import tells_calls
from sockledger.kernel.meters import Meters
from sockledger.kernel.shown import ShownMap
from sockledger.kernel.sums import Traffic
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import WARNINGS, Account, Ledger
from sockledger.workloads.naming import OVERFLOW

BPF_MAP_TYPE_HASH = 1
PAIRS, LISTENERS, DROWNED = 3, 2, 4


def in_use(path: DataPath, name: str) -> int:
    notes = 1 if name == "udp_sockets" else 0  # of no socket
    return -notes + sum(len(keys) // path.maps[name].key_size for keys, _ in path.maps[name].batches())


@contextmanager
def busy(ends: Ends) -> Iterator[None]:
    """Something for each map."""
    listeners = [ends.listener() for _ in range(LISTENERS)]
    pairs = ends.pairs(PAIRS, listeners[0])
    for _ in range(DROWNED):
        receiver = ends.new_socket(ends.server, kind=socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        receiver.bind(("127.0.0.1", 0))
        sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
        while not meminfo_drops(receiver):
            sender.sendto(bytes(100), receiver.getsockname())
    yield
    for pair in pairs:
        reset(pair.client)


@pytest.mark.parametrize(
    ("parts", "absent"),
    [
        (ALL_PARTS, set()),
        (Parts(), {"tcp_histograms"}),
        (Parts(udp=False), {"tcp_histograms", "udp_totals", "udp_sockets"}),
        (
            Parts(tcp=False),
            {"tcp_sockets", "tcp_totals", "tcp_histograms", "listen_totals", "listen_queues"},
        ),
    ],
    ids=["all", "by default", "without UDP", "without TCP"],
)
def test_entries_are_those_in_use(below: CgroupRoot, ends: Ends, parts: Parts, absent: set[str]) -> None:
    with attached(below, parts=parts, label_sets=CGROUPS) as path, busy(ends):
        births = Births(ShownMap(path.maps["shown"]))
        ledger = Ledger(path, below, Meters((), below, path), births=births)
        programs = ProgramsCollector(ledger, births)
        ledger.flush()
        for number in range(5):
            births.series("m", [("a", str(number))])
        births.note_page("one", births.newest, 0)
        families = {family.metric: family.samples for family in programs.collect()}
        found, most = (
            {dict(series.labels)["map"]: value for series, value in families[metric]}
            for metric in (MAP_ENTRIES, MAP_MAX_ENTRIES)
        )
        hashes = {name for name, each in path.maps.items() if each.type == BPF_MAP_TYPE_HASH}
        hashes -= set() if tells_calls() else {"task_totals"}
        assert found.keys() == most.keys() == {"sockets", *hashes} - absent
        assert most == {name: path.maps[name].max_entries for name in most}
        assert {name: found[name] for name in hashes - absent} == {
            name: in_use(path, name) for name in hashes - absent
        }
        assert found["cgroups"] == 2
        if parts.tcp:
            assert found["tcp_sockets"] == 2 * PAIRS + LISTENERS
            assert found["listen_queues"] == LISTENERS
        if parts.udp:
            assert found["udp_sockets"] == DROWNED


def test_what_is_no_cgroups_and_what_found_no_room(below: CgroupRoot) -> None:
    with attached(below) as path:
        totals = path.maps["totals"]
        traffic = Traffic(1, 2, 3, 4)
        udp, ipv4 = (
            next(number for number, label in labels.items() if label == name)
            for labels, name in ((path.labels.protocol, "udp"), (path.labels.family, "ipv4"))
        )
        totals.update(
            totals.key.pack(cgroup_id=0, protocol=udp, family=ipv4), totals.value.pack(**traffic._asdict())
        )
        index = [key for key, _ in path.overflow()].index((udp, ipv4))
        path.maps["overflow"].update(index.to_bytes(4, sys.byteorder), totals.value.pack(**traffic._asdict()))
        ledger = Ledger(path, below, Meters((), below, path))
        ledger.flush()
        assert ledger.books.accounts == {Account(OVERFLOW, "udp", "ipv4"): traffic.plus(traffic)}


@pytest.mark.parametrize("name", ["totals", "tcp_totals", "tcp_histograms", "udp_totals"])
def test_each_map_of_sums_is_told_of(
    below: CgroupRoot, ends: Ends, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is new finds no room, when the others have some."""
    with attached(below, cgroups=8) as path:
        ledger = Ledger(path, below, Meters((), below, path))
        number = 1 << 62  # no cgroup's
        while path.kept[name].make((number, *[0] * (len(path.maps[name].key.fields) - 1))):
            number += 1
        with busy(ends):
            for _ in range(2):
                ledger.flush()
                assert ledger.books.entries[name] == path.maps[name].max_entries
                assert {reason for reason, lost in ledger.books.lost_updates.items() if lost} == {
                    "totals_full"
                }
        assert [record.message for record in caplog.records].count(WARNINGS["totals_full"]) == 1


def test_other_full_maps_are_told_of(
    below: CgroupRoot,
    parent: Cgroup,
    ends: Ends,
    netns: Netns,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = "	__uint(max_entries, 65536);\n	__type(key, __u64); /* cookie */\n"
    image = build(tmp_path, (Change("udp.h", room, room.replace("65536", "2")),))
    with attached(below, image, cgroups=2, connections=1) as path, ExitStack() as stack:
        ledger = Ledger(path, below, Meters((), below, path))
        stack.enter_context(new_cgroup(parent.path, "third"))
        with busy(ends):
            for _ in range(2):
                ledger.flush()
        full = {"connections_full": "tcp_sockets", "udp_sockets_full": "udp_sockets", "name_full": "cgroups"}
        assert {reason for reason, lost in ledger.books.lost_updates.items() if lost} == full.keys()
        said = [record.message for record in caplog.records]
        for reason, name in full.items():
            assert ledger.books.entries[name] == in_use(path, name)
            assert said.count(WARNINGS[reason]) == 1
