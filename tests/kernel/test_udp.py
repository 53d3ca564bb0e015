"""Datagrams that UDP sockets dropped: what the sockets themselves say, and /proc/net/udp."""

import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.kernel.ledger import attached, record_of, repeating, seats
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.kernel.objects import Change, build
from tests.kernel.tcp import Ends, cookie_of, deaf_socket, flushing_udp, followed, meminfo_drops, tcp_losses
from tests.kernel.traffic import Generator, scaled
from tests.patience import SCALE

from sockledger.kernel import datapath
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.sums import RETIRED

RHYTHMS = {"flushed in the end": None, "flushed all the time": 0.0}


def drops_of(path: DataPath, cgroup: Cgroup) -> int:
    return record_of(path, "udp_totals", cgroup.id)["receive_drops"]


def flush(path: DataPath) -> None:
    path.flush_sockets()
    path.flush_udp()


def proc_drops(netns: Netns) -> int:
    """The drops column of /proc/net/udp and udp6."""
    return sum(
        int(line.split()[-1])
        for table in ("udp", "udp6")
        for line in netns.run("cat", f"/proc/net/{table}").splitlines()[1:]
    )


@pytest.mark.parametrize("period", RHYTHMS.values(), ids=RHYTHMS.keys())
def test_drops_of_every_kind(
    below: CgroupRoot, generator: Generator, netns: Netns, period: float | None
) -> None:
    """A full buffer, a socket filter, a wrong checksum; sockets that live, and that were closed at once."""
    count = max(scaled(400), 80)
    with attached(below) as path:
        with generator.start("udp_drops", count) as running:
            with flushing_udp(path, period):
                events = running.wait_ready().events
            flush(path)
            assert drops_of(path, generator.server) == events["udp_drops"]
            assert drops_of(path, generator.client) == 0
            assert proc_drops(netns) == events["udp_drops"] - events["udp_drops_short"]
            running.result()
        flush(path)
        assert drops_of(path, generator.server) == events["udp_drops"]
        assert tcp_losses(path) == {}


@contextmanager
def full(ends: Ends, drops: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket without room that has dropped some, and who sends to it."""
    receiver = ends.new_socket(ends.server, kind=socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    receiver.bind(("127.0.0.1", 0))
    sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    while meminfo_drops(receiver) < drops:
        sender.send(bytes(100))
    yield receiver, sender


def test_closed_before_anybody_looks(below: CgroupRoot, ends: Ends) -> None:
    with attached(below) as path:
        for _ in range(20):
            deaf_socket(ends).close()
        flush(path)
        assert drops_of(path, ends.server) == 100


def test_closed_after_a_flush(below: CgroupRoot, ends: Ends) -> None:
    with attached(below) as path:
        made = [deaf_socket(ends) for _ in range(20)]
        for each in made:
            flush(path)
            each.close()
        flush(path)
        assert drops_of(path, ends.server) == 100


def test_closed_unknown(below: CgroupRoot, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may have dropped before it was counted is not ours."""
    monkeypatch.setattr(datapath, "sees_all_processes", lambda: False)
    made = deaf_socket(ends)
    with attached(below) as path:
        table = path.maps["udp_sockets"]
        table.delete(cookie_of(made).to_bytes(8, sys.byteorder))  # it was found as the daemon began
        made.close()
        flush(path)
        assert drops_of(path, ends.server) == 0


def test_closed_without_a_seat(below: CgroupRoot, ends: Ends) -> None:
    with attached(below, sockets=1) as path:
        lives = [deaf_socket(ends) for _ in range(3)]
        for each in lives[1:]:
            each.close()
        assert drops_of(path, ends.server) == 10
        assert path.lost_updates()["sockets_full"] > 0


def test_full_without_a_seat_and_unknown(
    below: CgroupRoot, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracepoint tells of one drop, not of those before."""
    monkeypatch.setattr(datapath, "sees_all_processes", lambda: False)
    with full(ends, 10) as (receiver, sender), attached(below, sockets=1) as path:
        deaf_socket(ends)  # takes the seat, at one end or the other
        path.maps["udp_sockets"].delete(cookie_of(receiver).to_bytes(8, sys.byteorder))
        before = meminfo_drops(receiver)
        sender.send(bytes(100))
        sender.send(bytes(100))
        assert meminfo_drops(receiver) == before + 2
        path.flush_udp()
        assert record_of(path, "udp_totals", ends.server.id)["receive_drops"] in (2, 2 + 5)


def test_no_flush_reads_what_was_released(below: CgroupRoot, ends: Ends) -> None:
    """Free memory may hold anything."""
    with attached(below, sockets=1024) as path:
        closed, lives = deaf_socket(ends), deaf_socket(ends)
        flush(path)
        entries = path.maps["udp_sockets"]

        def addresses(cookie: int) -> list[bool]:
            entry = entries.lookup(cookie.to_bytes(8, sys.byteorder))
            assert entry
            sits = [seat for seat in seats(path) if seat["owner"] == cookie]
            return [each["address"] != 0 for each in (entries.value.unpack(entry), *sits)]

        released, living = cookie_of(closed), cookie_of(lives)
        assert addresses(released) == addresses(living) == [True, True]
        closed.close()
        assert addresses(released) == [False, False]
        assert addresses(living) == [True, True]
        flush(path)
        assert drops_of(path, ends.server) == 10


def test_short_lives_have_dropped_nothing(below: CgroupRoot, ends: Ends) -> None:
    """Their memory is used again before a flush comes: by cgroups, for one."""
    with attached(below) as path:
        for _ in range(10 if SCALE == 1 else 1):
            with ExitStack() as stack:
                for number in range(500):
                    cgroup = stack.enter_context(new_cgroup(ends.server.path, str(number)))
                    with ends.new_socket(cgroup, kind=socket.SOCK_DGRAM) as made:
                        made.bind(("127.0.0.1", 0))
                        made.sendto(b"x", made.getsockname())
                        assert made.recv(1) == b"x"
                flush(path)
        assert all(not any(row) for _, row in path.sums["udp_totals"].rows())


def test_older_sockets_count_from_now_on(below: CgroupRoot, ends: Ends) -> None:
    with full(ends, 10) as (receiver, sender), attached(below) as path:
        flush(path)
        assert drops_of(path, ends.server) == 0
        before = meminfo_drops(receiver)
        sender.send(bytes(100))  # its first packet: what it dropped before is not ours
        flush(path)
        for more in range(5):
            for _ in range(more):
                sender.send(bytes(100))
            flush(path)
            assert drops_of(path, ends.server) == meminfo_drops(receiver) - before
        receiver.close()
        flush(path)
        assert drops_of(path, ends.server) == 1 + sum(range(5))


@pytest.mark.parametrize("sockets", [1, 1000])
def test_attached_in_mid_flood(below: CgroupRoot, ends: Ends, sockets: int) -> None:
    """What was dropped before is not ours, whether the socket finds a seat or not."""
    with full(ends, 10_000) as (receiver, sender):
        for _ in range(5):
            with repeating(lambda: sender.send(bytes(100)), 0.0):
                before = meminfo_drops(receiver)
                with attached(below, sockets=sockets) as path:
                    attached_at = meminfo_drops(receiver)
                    time.sleep(0.05)
                    flush(path)
                    least = meminfo_drops(receiver)
                    flush(path)
                    counted = drops_of(path, ends.server)
                    most = meminfo_drops(receiver)
            assert least - attached_at <= counted <= most - before


def test_drops_beside_the_root_are_not_counted(ends: Ends, client: Cgroup) -> None:
    below = CgroupRoot(client.path)
    with full(ends, 1) as (receiver, sender), attached(below) as path:
        for _ in range(20):
            sender.send(bytes(100))
        assert meminfo_drops(receiver) >= 20
        flush(path)
        assert {key for key, _ in path.sums["udp_totals"].rows()} == {(0,), (RETIRED,)}
        assert followed(path, ends.server.id, "udp_sockets") == 0


def test_sockets_that_find_no_room(below: CgroupRoot, ends: Ends, tmp_path: Path) -> None:
    """Of those that have room all is counted; the others are told of."""
    room = "	__uint(max_entries, 65536);\n	__type(key, __u64); /* cookie */\n"
    image = build(tmp_path, (Change("udp.h", room, room.replace("65536", "2")),))
    with attached(below, image) as path, full(ends, 5) as (first, _), full(ends, 5) as (second, _):
        flush(path)
        assert drops_of(path, ends.server) == meminfo_drops(first)
        assert path.lost_updates()["udp_sockets_full"] >= meminfo_drops(second)


def test_entries_of_dead_sockets_go(below: CgroupRoot, ends: Ends) -> None:
    with attached(below) as path:
        for _ in range(20):
            with full(ends, 3) as (receiver, _sender):
                receiver.close()
        for _ in range(3):  # one more, for as long as their seats are read
            flush(path)
            assert drops_of(path, ends.server) == 20 * 3
        assert followed(path, ends.server.id, "udp_sockets") == 0


@pytest.mark.parametrize("flushes", [1, 3])
@pytest.mark.parametrize("closed", [False, True])
def test_drop_that_comes_late(below: CgroupRoot, ends: Ends, flushes: int, closed: bool) -> None:
    """A wrong checksum may be seen long after the datagram came: when it is read."""
    receiver = ends.new_socket(ends.server, kind=socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    port = receiver.getsockname()[1]
    wrong = struct.pack("!HHHH", 1, port, 108, 1) + bytes(100)
    sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    with ends.client.joined(), ends.netns.entered():
        raw = ends.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP))
    with attached(below) as path:
        raw.sendto(wrong, ("127.0.0.1", 0))
        for _ in range(flushes):  # with three its seat is taken back
            flush(path)
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(200)
        assert meminfo_drops(receiver) == 1
        for _ in range(3):
            flush(path)
        if closed:
            receiver.close()
        else:
            sender.send(b"x")
        flush(path)
        assert drops_of(path, ends.server) == 1
