"""Bytes per tag: exactly those that sockets moved while they had it, and no others."""

import ctypes
import errno
import itertools
import os
import random
import re
import socket
import stat
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from tests.kernel.ledger import (
    NOTHING,
    attached,
    final_difference,
    flush,
    flushing,
    repeating,
    seats,
    totals_of,
)
from tests.kernel.machine import Cgroup, Netns, new_cgroup, run, sysctl_set
from tests.kernel.objects import HURRIED, RESTLESS, SLOW_MOTION, Change, build
from tests.kernel.tcp import Ends
from tests.kernel.test_pins import pins, start
from tests.kernel.traffic import scaled
from tests.patience import SCALE, eventually

from sockledger import tags
from sockledger.errors import UserError
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.libbpf import Map, OpenMap, open_pin, pin
from sockledger.kernel.meters import Meters
from sockledger.kernel.pins import Pins
from sockledger.kernel.sums import TAGGED_TOTALS
from sockledger.kernel.tag_pin import TagPin
from sockledger.ledger.ledger import WARNINGS, Ledger
from sockledger.ledger.splits import TAGS

__all__ = ["pins"]  # a fixture

IPV4_UDP = 28
IPPROTO_MPTCP = 262
NOBODY = 65534
LEFT = 1 << 63 | 2  # bpf/ledger.h

Moved = tuple[int, int]  # bytes received and sent


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    path = tmp_path / "bpffs"
    path.mkdir()
    run("mount", "-t", "bpf", "bpf", str(path))
    yield path
    TagPin(path).remove()
    run("umount", str(path))


@pytest.fixture
def tag_pin(bpffs: Path) -> TagPin:
    return TagPin(bpffs)


def by_tag(path: DataPath, cgroup: Cgroup) -> dict[str, Moved]:
    flush(path)
    return {
        TAGS.text(TAGS.name_of(key)): (received, sent)
        for key, (received, sent) in path.sums[TAGGED_TOTALS].rows()
        if key[0] == cgroup.id and (received or sent)
    }


def moved(path: DataPath, cgroup: Cgroup) -> Moved:
    """All that a cgroup's sockets have moved, tagged or not."""
    found = totals_of(path, cgroup.id).values()
    return sum(each.receive_bytes for each in found), sum(each.transmit_bytes for each in found)


# ---- the split


def counting(netns: Netns, ports: Mapping[str, int]) -> None:
    """Have the packet filter count what passes each local port."""
    counters = rules_in = rules_out = ""
    for name, port in ports.items():
        counters += f"counter in_{name} {{}}\ncounter out_{name} {{}}\n"
        rules_in += f"th dport {port} counter name in_{name}\n"
        rules_out += f"th sport {port} counter name out_{name}\n"
    netns.run(
        *("nft", "-f", "-"),
        stdin=f"table inet tags {{ {counters}"
        f"chain input {{ type filter hook input priority 10\n{rules_in} }}\n"
        f"chain output {{ type filter hook output priority 10\n{rules_out} }}\n}}",
    )


def counted(netns: Netns, name: str) -> Moved:
    listed = netns.run("nft", "list", "counters")
    found = {
        way: re.search(rf"counter {way}_{name} {{\s+packets \d+ bytes (\d+)", listed) for way in ("in", "out")
    }
    assert found["in"]
    assert found["out"]
    return int(found["in"][1]), int(found["out"][1])


def test_one_process_with_three_tags_and_without(
    below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path
) -> None:
    """TCP and UDP of one process, against the packet filter; the same bytes stay in its totals."""
    names = ["checkout-api", "db", "x" * 31, ""]
    with attached(below, tag_pin=tag_pin) as path:
        kept = ends.pairs(len(names))
        datagrams = [ends.new_socket(ends.client, kind=socket.SOCK_DGRAM) for _ in names]
        for each in datagrams:
            each.bind(("127.0.0.1", 0))
        ports = {f"tcp{n}": pair.client.getsockname()[1] for n, pair in enumerate(kept)}
        ports |= {f"udp{n}": each.getsockname()[1] for n, each in enumerate(datagrams)}
        before = moved_after_flush(path, ends.client)
        counting(ends.netns, ports)
        for name, pair, each in zip(names, kept, datagrams, strict=True):
            for sock in (pair.client, each) if name else ():
                tags.tag(sock, name, bpffs=bpffs)
        with flushing(path, 0.01):
            for turn in range(scaled(400)):
                for number, pair in enumerate(kept):
                    pair.client.sendall(bytes(100 * (number + 1)))
                    assert len(pair.server.recv(4096)) == 100 * (number + 1)
                    pair.server.sendall(bytes(10 * (number + 1)))
                    assert len(pair.client.recv(4096)) == 10 * (number + 1)
                    # to the next one, so each receives what another tag has sent
                    datagrams[number].sendto(bytes(turn % 50), datagrams[number - 1].getsockname())
                    datagrams[number - 1].recv(100)
        for pair in kept:
            pair.settle()
        truth = {
            name: plus(counted(ends.netns, f"tcp{number}"), counted(ends.netns, f"udp{number}"))
            for number, name in enumerate(names)
        }
        assert by_tag(path, ends.client) == {name: each for name, each in truth.items() if name}
        assert by_tag(path, ends.server) == {}
        everything = NOTHING_MOVED
        for figures in truth.values():
            everything = plus(everything, figures)
        assert plus(before, everything) == moved(path, ends.client)
        assert final_difference(path, below) == NOTHING


NOTHING_MOVED: Moved = (0, 0)


def plus(one: Moved, other: Moved) -> Moved:
    return one[0] + other[0], one[1] + other[1]


def moved_after_flush(path: DataPath, cgroup: Cgroup) -> Moved:
    flush(path)
    return moved(path, cgroup)


class Chatter(threading.Thread):
    """Two sockets that talk to each other while they are tagged and untagged, and what they have moved so."""

    def __init__(self, ends: Ends, bpffs: Path, seed: int, turns: int) -> None:
        super().__init__()
        self.truth: defaultdict[str, Moved] = defaultdict(lambda: NOTHING_MOVED)
        self._random = random.Random(seed)
        self._bpffs = bpffs
        self._turns = turns
        self._pair = [ends.new_socket(ends.client, kind=socket.SOCK_DGRAM) for _ in range(2)]
        for each in self._pair:
            each.bind(("127.0.0.1", 0))
        for each, other in zip(self._pair, reversed(self._pair), strict=True):
            each.connect(other.getsockname())
        self._names = ["", ""]

    def run(self) -> None:
        for _ in range(self._turns):
            if self._random.random() < 0.2:
                self._rename(self._random.randrange(2))
            sender, size = self._random.randrange(2), self._random.randrange(1000)
            self._pair[sender].send(bytes(size))
            self._pair[1 - sender].recv(1000)  # counted by then, too
            octets = size + IPV4_UDP
            for name, more in ((self._names[sender], (0, octets)), (self._names[1 - sender], (octets, 0))):
                self.truth[name] = plus(self.truth[name], more)

    def _rename(self, index: int) -> None:
        name = self._random.choice(("", "a", "b", "c"))
        if name:
            tags.tag(self._pair[index], name, bpffs=self._bpffs)
        elif self._names[index]:
            tags.untag(self._pair[index], bpffs=self._bpffs)
        self._names[index] = name


def chatter(ends: Ends, bpffs: Path, *, threads: int, turns: int) -> dict[str, Moved]:
    """Let some talk, and return what they have moved, by tag."""
    talking = [Chatter(ends, bpffs, seed, turns) for seed in range(threads)]
    for each in talking:
        each.start()
    for each in talking:
        each.join()
    truth: defaultdict[str, Moved] = defaultdict(lambda: NOTHING_MOVED)
    for each in talking:
        for name, more in each.truth.items():
            truth[name] = plus(truth[name], more)
    return dict(truth)


@pytest.mark.parametrize("sockets", [65536, 1], ids=["seated", "written through"])
@pytest.mark.parametrize("period", [None, 0.001])
def test_changed_under_traffic(
    below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path, period: float | None, sockets: int
) -> None:
    """What is pending stays with the tag of before; each packet counts for the one of its time."""
    with attached(below, tag_pin=tag_pin, sockets=sockets) as path:
        with flushing(path, period):
            truth = chatter(ends, bpffs, threads=4, turns=scaled(8000))
        untagged = truth.pop("")
        assert by_tag(path, ends.client) == truth
        everything = untagged
        for each in truth.values():
            everything = plus(everything, each)
        assert moved(path, ends.client) == everything
        assert final_difference(path, below) == NOTHING


@pytest.mark.parametrize("changes", [SLOW_MOTION, HURRIED, RESTLESS], ids=["slow", "hurried", "restless"])
def test_tagged_anew_by_others(
    below: CgroupRoot,
    ends: Ends,
    tag_pin: TagPin,
    bpffs: Path,
    tmp_path: Path,
    changes: tuple[Change, ...],
) -> None:
    """By one process while others send: whichever tags they find, together they have all, once."""
    emulated = SCALE > 1  # where races take hours
    image = build(tmp_path, () if emulated else changes)
    with attached(below, image, tag_pin=tag_pin) as path:
        sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
        sink = ends.new_socket(ends.server, kind=socket.SOCK_DGRAM)
        sink.bind(("127.0.0.1", 0))
        sender.connect(sink.getsockname())
        tags.tag(sender, "a", bpffs=bpffs)
        names = itertools.cycle("abc")
        sizes = range(scaled(3000))

        def send() -> None:
            for size in sizes:
                sender.send(bytes(size % 100))

        with repeating(lambda: tags.tag(sender, next(names), bpffs=bpffs), 0.0005), flushing(path, 0.002):
            threads = [threading.Thread(target=send) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        found = by_tag(path, ends.client)
        assert found.keys() <= {"a", "b", "c"}
        truth = len(threads) * sum(size % 100 + IPV4_UDP for size in sizes)
        assert sum(sent for _, sent in found.values()) == moved(path, ends.client)[1] == truth
        assert final_difference(path, below) == NOTHING


def test_tags_take_no_room_among_the_totals(below: CgroupRoot, ends: Ends, tag_pin: TagPin) -> None:
    """Or who may tag could have other workloads' traffic count as other."""
    with attached(below, cgroups=20, tags=64, tag_pin=tag_pin) as path:
        for number in range(70):
            sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
            sender.bind(("127.0.0.1", 0))
            tag_raw(path, sender, f"tag{number}".encode())
            sender.sendto(b"x", sender.getsockname())
            sender.recv(10)
        flush(path)
        assert len([key for key, _ in path.totals() if key.cgroup_id == ends.client.id]) == 1
        assert sum(sent for _, sent in by_tag(path, ends.client).values()) == 70 * (IPV4_UDP + 1)
        assert not any(path.lost_updates().values())


def test_no_room_for_tags(
    below: CgroupRoot, ends: Ends, tag_pin: TagPin, caplog: pytest.LogCaptureFixture
) -> None:
    """What finds none counts as cgroup other's tag other; when there is room again, it has its own."""
    with attached(below, cgroups=1, tag_pin=tag_pin) as path:
        ledger = Ledger(path, below, Meters((), below, path))
        full = [(1 << 62, number, 0, 0, 0) for number in range(100)]
        while path.kept[TAGGED_TOTALS].make(full[-1]):
            full.append((1 << 62, full[-1][1] + 1, 0, 0, 0))
        (sender,) = (ends.new_socket(ends.client, kind=socket.SOCK_DGRAM) for _ in range(1))
        sender.bind(("127.0.0.1", 0))
        for _ in range(2):
            tag_raw(path, sender, b"a")
            sender.sendto(b"x", sender.getsockname())
            sender.recv(10)
            ledger.flush()
        assert by_tag(path, ends.client) == {}
        assert (0, 0, 0, 0, 0) in dict(path.sums[TAGGED_TOTALS].rows())
        assert dict(path.sums[TAGGED_TOTALS].rows())[0, 0, 0, 0, 0] == (2 * (IPV4_UDP + 1),) * 2
        lost = {reason for reason, number in path.lost_updates().items() if number}
        assert lost == {"tag_full"}
        assert [record.message for record in caplog.records].count(WARNINGS["tag_full"]) == 1
        path.kept[TAGGED_TOTALS].delete(full[-2])
        sender.sendto(b"x", sender.getsockname())
        sender.recv(10)
        assert by_tag(path, ends.client) == {"a": (IPV4_UDP + 1, IPV4_UDP + 1)}


def test_a_name_that_finds_no_room_for_a_while(below: CgroupRoot, ends: Ends, tag_pin: TagPin) -> None:
    with attached(below, tag_pin=tag_pin) as path:
        sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
        sender.bind(("127.0.0.1", 0))
        tag_raw(path, sender, b"a")

        def talk() -> None:
            sender.sendto(b"x", sender.getsockname())
            sender.recv(10)

        with path.closed([ends.client.id]):
            talk()
        talk()
        flush(path)
        assert path.places()["tag_names"] == {(ends.client.id, 1)}
        octets = IPV4_UDP + 1
        assert by_tag(path, ends.client) == {"other": (octets, octets), "a": (octets, octets)}


def test_a_socket_that_changes_too_often_is_written_through(
    below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path
) -> None:
    """Its seats are not free before the next flush: without one it finds none, and nothing is missing."""
    with attached(below, tag_pin=tag_pin) as path:
        sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
        sender.bind(("127.0.0.1", 0))
        sender.connect(sender.getsockname())
        truth: defaultdict[str, Moved] = defaultdict(lambda: NOTHING_MOVED)
        for turn in range(100):
            name = "ab"[turn % 2]
            tags.tag(sender, name, bpffs=bpffs)
            sender.send(b"x")
            sender.recv(10)
            truth[name] = plus(truth[name], (IPV4_UDP + 1, IPV4_UDP + 1))
        assert sum(each["owner"] == LEFT for each in seats(path)) == 8, "all ways"
        assert by_tag(path, ends.client) == truth


def test_connections_inherit_their_listeners_tag(
    below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path
) -> None:
    """Those that it accepts from then on; what they make of it is their own."""
    with attached(below, tag_pin=tag_pin) as path:
        listener, other = ends.listener(), ends.listener()
        (older,) = ends.pairs(1, listener)
        tags.tag(listener, "service", bpffs=bpffs)
        pairs = ends.pairs(5, listener)
        (untagged,) = ends.pairs(1, other)
        tags.tag(pairs[1].server, "special", bpffs=bpffs)
        tags.untag(pairs[2].server, bpffs=bpffs)
        before = by_tag(path, ends.server)
        assert before.keys() == {"service"}, "the listener's own SYN-ACKs, and the clients' last ACKs"
        for pair in (older, *pairs, untagged):
            pair.client.sendall(bytes(1000))
            pair.server.recv(1000)
        for pair in (older, *pairs, untagged):
            pair.settle()
        ports = {pair.client.getsockname()[1] for pair in pairs}
        assert len(ports) == 5
        found = by_tag(path, ends.server)
        received = {name: found[name][0] - before.get(name, NOTHING_MOVED)[0] for name in found}
        assert received == {"service": 3 * 1052, "special": 1052}
        tags.untag(listener, bpffs=bpffs)
        (late,) = ends.pairs(1, listener)
        with pytest.raises(FileNotFoundError, match="has no tag"):
            tags.untag(late.server, bpffs=bpffs)


def test_more_than_are_told_apart_and_what_is_no_name(
    below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path
) -> None:
    with attached(below, tags=3, tag_pin=tag_pin) as path:
        sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
        sender.bind(("127.0.0.1", 0))
        sender.connect(sender.getsockname())
        no_names = (
            b"",
            b"a b",
            b"a\0b",
            b"caf\xc3\xa9",
            b"\x7f",
            b"a\n",
            b"x" * 32,
            b"a".ljust(31, b"\0") + b"b",
        )
        for value in (b"one", *no_names, b"~" * 31, b"two", b"three", b"one"):
            tag_raw(path, sender, value)
            sender.send(b"x")
            sender.recv(10)
            flush(path)
        octets = IPV4_UDP + 1
        assert by_tag(path, ends.client) == {
            "one": (2 * octets, 2 * octets),
            "~" * 31: (octets, octets),
            "two": (octets, octets),
            "other": ((1 + len(no_names)) * octets,) * 2,
        }
        assert len(path.places()["tag_names"]) == 3


def test_places_of_a_cgroup_that_is_not_noted(below: CgroupRoot, ends: Ends, tag_pin: TagPin) -> None:
    """As where there is no room for its name: as long as it lives, its tags keep their numbers."""
    with attached(below, tag_pin=tag_pin) as path, new_cgroup(below.path, "gone") as gone:
        ledger = Ledger(path, below, Meters((), below, path))
        table = path.maps["tag_names"]
        for number in (ends.client.id, gone.id):
            path.cgroups.forget(number)
            table.update(table.key.struct.pack(number, 1), b"db".ljust(32, b"\0"))
        ledger.flush()
        assert path.places()["tag_names"] == {(ends.client.id, 1), (gone.id, 1)}
        number = gone.id
        gone.path.rmdir()
        gone.path.mkdir()
        eventually(lambda: path.cgroups.all()[number].released > 0, "released, or it is noted once more")
        path.cgroups.forget(number)
        ledger.flush()
        assert path.places()["tag_names"] == {(ends.client.id, 1)}


def test_numbers_that_a_tagger_makes_up(below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path) -> None:
    """What the first packet notes with a tag is bound to his own cgroup's tags."""
    with attached(below, tag_pin=tag_pin) as path:
        sender, other = (ends.new_socket(ends.client, kind=socket.SOCK_DGRAM) for _ in range(2))
        for each in (sender, other):
            each.bind(("127.0.0.1", 0))
            each.connect(each.getsockname())
            tags.tag(each, "mine", bpffs=bpffs)
            each.send(b"x")
            each.recv(10)
        for number in (1, 2, 64, 65, 0xFFFF, 0x10000, 0x10001, 0xFFFFFFFF):
            tag_raw(path, sender, b"yours".ljust(32, b"\0") + number.to_bytes(4, sys.byteorder))
            sender.send(b"x")
            sender.recv(10)
            flush(path)
        found = by_tag(path, ends.client)
        assert found.keys() == {"mine", "yours", "other"}
        assert sum(sent for _, sent in found.values()) == 10 * (IPV4_UDP + 1)
        assert final_difference(path, below) == NOTHING


def tag_raw(path: DataPath, sock: socket.socket, value: bytes) -> None:
    table = path.maps["tags"]
    table.update(struct.pack("=i", sock.fileno()), value.ljust(table.value_size, b"\0"))


# ---- who may, and what goes wrong


def test_what_is_refused(below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path) -> None:
    sock = ends.new_socket(ends.client)
    with pytest.raises(FileNotFoundError, match="no sockledger counts tags here") as raised:
        tags.tag(sock, "a", bpffs=bpffs)
    assert raised.value.filename == str(bpffs / "sockledger-tags/tags")
    with attached(below, tag_pin=tag_pin):
        with pytest.raises(FileNotFoundError, match="the socket has no tag"):
            tags.tag(sock, "a", replace=True, bpffs=bpffs)
        with pytest.raises(FileNotFoundError, match="the socket has no tag"):
            tags.untag(sock, bpffs=bpffs)
        tags.tag(sock, "a", create=True, bpffs=bpffs)
        with pytest.raises(FileExistsError, match="the socket has a tag already"):
            tags.tag(sock, "b", create=True, bpffs=bpffs)
        tags.tag(sock.fileno(), "b", replace=True, bpffs=bpffs)
        tags.tag(sock, "c", bpffs=bpffs)
        tags.untag(sock.fileno(), bpffs=bpffs)
        for name in ("", "a b", "é", "x" * 32, "other", "a\0", "a\n"):
            with pytest.raises(ValueError, match="is no tag"):
                tags.tag(sock, name, bpffs=bpffs)
        with pytest.raises(ValueError, match="exclude"):
            tags.tag(sock, "a", create=True, replace=True, bpffs=bpffs)
        for family in (socket.AF_UNIX, socket.AF_NETLINK):
            with (
                socket.socket(family, socket.SOCK_DGRAM) as other,
                pytest.raises(OSError, match=f"is of {family.name}, and tags are for IPv4 and IPv6 sockets"),
            ):
                tags.tag(other, "a", bpffs=bpffs)
        with (
            Path("/dev/null").open() as null,
            pytest.raises(OSError, match="is no socket") as no,
        ):
            tags.tag(null.fileno(), "a", bpffs=bpffs)
        assert no.value.errno == errno.ENOTSOCK
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as several,
            pytest.raises(OSError, match="is an MPTCP socket"),
        ):
            tags.tag(several, "a", bpffs=bpffs)
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            tags.tag(sock, "a", bpffs=bpffs)


def test_the_socket_stays_as_it_is(below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path) -> None:
    """Blocking, where Python makes others that are not; and nothing is left open when it is refused."""
    socket.setdefaulttimeout(5)
    try:
        with attached(below, tag_pin=tag_pin), Path("/dev/null").open() as null:
            sock = ends.new_socket(ends.client)
            sock.settimeout(None)
            before = len(list(Path("/proc/self/fd").iterdir()))
            tags.tag(sock, "a", bpffs=bpffs)
            assert os.get_blocking(sock.fileno())
            for _ in range(10):
                with pytest.raises(OSError, match="is no socket"):
                    tags.tag(null.fileno(), "a", bpffs=bpffs)
            assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        socket.setdefaulttimeout(None)


def test_without_memory_for_a_tag(below: CgroupRoot, client: Cgroup, tag_pin: TagPin, bpffs: Path) -> None:
    """Only who is tagged needs any: the kernel drops a connection that cannot have its listener's tag."""
    with attached(below, tag_pin=tag_pin), ExitStack() as stack:
        with client.joined():  # on this host's own loopback, whose limit it is
            tagged, untagged = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        tags.tag(tagged, "service", bpffs=bpffs)
        for each in (tagged, untagged):
            each.settimeout(1)
        with sysctl_set("net.core.optmem_max", "100"):
            with pytest.raises(OSError, match="sysctl net"):
                tags.tag(untagged, "a", bpffs=bpffs)
            for _ in range(20):
                with socket.create_connection(untagged.getsockname()), closing(untagged.accept()[0]):
                    pass
            with socket.create_connection(tagged.getsockname()), pytest.raises(TimeoutError):
                tagged.accept()
            tags.untag(tagged, bpffs=bpffs)
            with socket.create_connection(tagged.getsockname()), closing(tagged.accept()[0]):
                pass


def as_user(group: int, action: Callable[[], object]) -> int:
    """Return what an action of somebody without privileges fails with, 0 if it does not."""
    child = os.fork()
    if child == 0:
        number = 255
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(group)
            os.setuid(NOBODY)
            try:
                action()
                number = 0
            except OSError as error:
                number = error.errno or 254
        os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_who_may_tag_and_nothing_more(
    below: CgroupRoot, ends: Ends, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = 4242
    monkeypatch.chdir(bpffs)  # from where on anybody may go
    here = Path()
    bpffs.chmod(0o755)
    sock = ends.new_socket(ends.client)
    with attached(below, tag_pin=TagPin(bpffs, 0, group)) as path:
        folder, pinned = bpffs / "sockledger-tags", bpffs / "sockledger-tags/tags"
        assert list(bpffs.joinpath("sockledger-tags").iterdir()) == [pinned]
        assert [stat.filemode(each.stat().st_mode) for each in (folder, pinned)] == [
            "drwxr-x---",
            "-rw-rw----",
        ]
        assert {(each.stat().st_uid, each.stat().st_gid) for each in (folder, pinned)} == {(0, group)}
        assert as_user(NOBODY, lambda: tags.tag(sock, "a", bpffs=here)) == errno.EACCES
        assert as_user(group, lambda: tags.tag(sock, "a", bpffs=here)) == 0
        with pytest.raises(FileExistsError):
            tags.tag(sock, "b", create=True, bpffs=bpffs)
        relative = here / "sockledger-tags"
        assert as_user(group, (relative / "tags").unlink) == errno.EACCES
        assert as_user(group, lambda: (relative / "mine").mkdir()) == errno.EACCES
        assert as_user(group, lambda: freeze(relative / "tags")) in (errno.EPERM, 524 & 0xFF), "ENOTSUPP"
        assert as_user(group, lambda: tags.untag(sock, bpffs=here)) == 0
        assert OpenMap(path.maps["tags"].fd).type == path.maps["tags"].type


def freeze(pinned: Path) -> None:
    fd = open_pin(pinned)
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(struct.pack("=I", fd), 4)
    if libc.syscall(tags._SYSCALLS[os.uname().machine], 22, attributes, 4):
        raise OSError(ctypes.get_errno(), "BPF_MAP_FREEZE")


# ---- what outlives the daemon


def test_tags_outlive_the_daemon(
    below: CgroupRoot, ends: Ends, pins: Pins, tag_pin: TagPin, bpffs: Path
) -> None:
    """And other limits; without one it is counted by tag, too, and anybody may tag."""
    sender = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
    sender.bind(("127.0.0.1", 0))
    sender.connect(sender.getsockname())
    expected: defaultdict[str, Moved] = defaultdict(lambda: NOTHING_MOVED)

    def talk(name: str) -> None:
        sender.send(b"xy")
        sender.recv(10)
        expected[name] = plus(expected[name], (IPV4_UDP + 2, IPV4_UDP + 2))

    for cgroups in (100, 100, 200, 50):
        with closing(start(below, pins, tag_pin=tag_pin, cgroups=cgroups)) as path:
            if not expected:
                tags.tag(sender, "a", bpffs=bpffs)
            talk("a")
            assert by_tag(path, ends.client) == expected
        talk("a")
        tags.tag(sender, "b", bpffs=bpffs)
        talk("b")
        tags.tag(sender, "a", bpffs=bpffs)
    without = Parts(tcp=False, udp=False, tags=False)
    with closing(start(below, pins, tag_pin=tag_pin, parts=without)) as path:
        talk("none")
        assert not (bpffs / "sockledger-tags").exists()
        flush(path)
        assert moved(path, ends.client)[1] == sum(sent for _, sent in expected.values())
    with closing(start(below, pins, tag_pin=tag_pin)) as path:
        talk("none")
        assert by_tag(path, ends.client) == {}, "begun anew, and the socket has no tag any more"


def test_names_that_are_not_pinned_any_more(
    below: CgroupRoot, ends: Ends, pins: Pins, tag_pin: TagPin, bpffs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers of before would be other names': sockets lose their tags, and a line says so."""
    one, other = (ends.new_socket(ends.client, kind=socket.SOCK_DGRAM) for _ in range(2))
    for each in (one, other):
        each.bind(("127.0.0.1", 0))
        each.connect(each.getsockname())
    with closing(start(below, pins, tag_pin=tag_pin)):
        tags.tag(one, "db", bpffs=bpffs)
        one.send(b"x")
    (names,) = (pins.folder / "maps").glob("tag_names-*")
    names.unlink()
    assert "lose" not in caplog.text
    with closing(start(below, pins, tag_pin=tag_pin)) as path:
        assert caplog.text.count("sockets lose their tags") == 1
        tags.tag(other, "cache", create=True, bpffs=bpffs)
        for each in (other, one):
            each.send(b"x")
        found = by_tag(path, ends.client)
        assert found["cache"] == (IPV4_UDP + 1, IPV4_UDP + 1)
        tags.tag(one, "db", create=True, bpffs=bpffs)


def test_a_pin_that_somebody_has_taken_away(
    below: CgroupRoot, ends: Ends, pins: Pins, tag_pin: TagPin, bpffs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = bpffs / "sockledger-tags"
    sock = ends.new_socket(ends.client)
    with closing(start(below, pins, tag_pin=tag_pin)) as path:
        tags.tag(sock, "a", bpffs=bpffs)
        (folder / "tags").unlink()
        folder.rmdir()
        path.pin_again()
        assert "pinned again" in caplog.text
        with pytest.raises(FileExistsError):
            tags.tag(sock, "a", create=True, bpffs=bpffs)
        (folder / "tags").unlink()
        (folder / "tags").symlink_to("/etc/passwd")
        path.pin_again()
        assert (folder / "tags").is_file()
        folder.chmod(0o777)
        path.pin_again()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750
        (folder / "tags").unlink()
        (folder / "tags").mkdir()
        with pytest.raises(UserError, match="tags/tags: is no pin: remove it"):
            path.pin_again()
        assert tag_pin.remove() == 0
        (folder / "tags").rmdir()
        pin(path.maps["lost"].fd, folder / "tags")
    with pytest.raises(UserError, match="is no map of tags: remove it"):
        start(below, pins, tag_pin=tag_pin)


def test_who_has_the_folder_swaps_the_pin_for_a_link(
    below: CgroupRoot, bpffs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it points to keeps its mode: root would change any file's."""
    tag_pin, victim = TagPin(bpffs, NOBODY), tmp_path / "victim"
    victim.touch(mode=0o600)
    pinned = bpffs / "sockledger-tags/tags"
    with attached(below, tag_pin=tag_pin) as path:

        def swap(self: TagPin, table: Map) -> bool:
            pinned.unlink()
            pinned.symlink_to(victim)
            return True

        monkeypatch.setattr(TagPin, "_is_ours", swap)
        with pytest.raises(UserError, match="is no pin: remove it"):
            tag_pin.keep(path.maps["tags"])
        assert (stat.S_IMODE(victim.stat().st_mode), victim.stat().st_uid) == (0o600, 0)


# ---- broken on purpose

MUTANTS = {
    "a tag is seen only by who takes a seat": Change(
        "traffic.h", "if (s->tag != noted_tag_of(skb, s))", "if (noted_tag_of(skb, s) && !cookie)"
    ),
    "nobody leaves": Change(
        "traffic.h", "	if (s->tag != tag || !settings.peers", "	if (settings.peers"
    ),
    "what is written through has none": Change(
        "traffic.h", "	if (tag)\n		add_tagged", "	if (false)\n		add_tagged"
    ),
    "what was pending has none": Change("drain.h", "		if (s->tag)\n", "		if (false)\n"),
    "what begins alike is the same": Change("tags.h", "one->words[0] == other->words[0] && ", ""),
    "any name will do": Change("tags.h", "if (!is_name(&name))", "if (!tag)"),
}


LABELS = ("", "a", "ab", "b", "a b")


@pytest.mark.parametrize("name", ["", *MUTANTS])
def test_mutants(
    below: CgroupRoot, ends: Ends, tag_pin: TagPin, bpffs: Path, tmp_path: Path, name: str
) -> None:
    image = build(tmp_path, (MUTANTS[name],)) if name else None
    with attached(below, image, tag_pin=tag_pin) as path:
        pair = [ends.new_socket(ends.client, kind=socket.SOCK_DGRAM) for _ in range(2)]
        for each in pair:
            each.bind(("127.0.0.1", 0))
        truth: defaultdict[str, Moved] = defaultdict(lambda: NOTHING_MOVED)
        for turn in range(40):
            for each, label in zip(pair, (LABELS[turn % len(LABELS)], "a"), strict=True):
                tag_raw(path, each, label.encode())
                each.sendto(b"x", each.getsockname())
                each.recv(10)
                key = label if label in ("a", "ab", "b") else "other"
                truth[key] = plus(truth[key], (IPV4_UDP + 1, IPV4_UDP + 1))
            if turn == 20:
                left = sum(each["owner"] == LEFT for each in seats(path))
                flush(path)
        assert (by_tag(path, ends.client) == truth and left > 0) is not bool(name)
