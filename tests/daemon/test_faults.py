"""What goes wrong on a machine, and what it must not do to the figures."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from tests.daemon.support import Page, Surroundings
from tests.daemon.test_signals import crowd
from tests.daemon.traffic import send_datagrams
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.patience import PATIENCE


def assert_balanced(page: Page) -> None:
    assert page.sum("unattributed_bytes_total") == page.sum("overcounted_bytes_total") == 0
    for direction in ("receive", "transmit"):
        for unit in ("bytes", "packets"):
            root = page.sum(f"attach_point_{direction}_{unit}_total", attach_point="/")
            assert page.sum(f"{direction}_{unit}_total") == root


def test_vanished_cgroups(place: Surroundings, netns: Netns) -> None:
    """One that was seen alive keeps its name; one that came and went between two looks never had one."""
    daemon = place.run()
    with new_cgroup(place.cgroup.path, "seen") as seen:
        first = send_datagrams(netns, seen, seen)
        daemon.settled()
    with new_cgroup(place.cgroup.path, "unseen") as unseen:
        second = send_datagrams(netns, unseen, unseen, number=3)
    page = daemon.settled()
    assert page.sum("transmit_bytes_total", cgroup="/seen") == first
    assert page.sum("transmit_bytes_total", cgroup="unknown") == second
    assert_balanced(page)


def test_open_sockets(place: Surroundings, netns: Netns) -> None:
    """What a socket has done is shown while it is open, not only when it is closed."""
    with new_cgroup(place.cgroup.path, "a") as a, closing(datagram_socket(netns, a)) as alive:
        daemon = place.run()
        for more in (1, 2, 3):
            alive.sendto(bytes(72), alive.getsockname())
            alive.recv(100)
            page = daemon.settled()
            assert page.sum("transmit_bytes_total", cgroup="/a") == 100 * more
            assert page.sum("map_entries", map="sockets") == 1
            assert_balanced(page)


def datagram_socket(netns: Netns, cgroup: Cgroup) -> socket.socket:
    with netns.entered(), cgroup.joined():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind(("127.0.0.1", 0))
    return made


def test_totals_are_full(place: Surroundings, netns: Netns) -> None:
    """One cgroup has four entries; the rest is counted all the same, as cgroup other."""
    with ExitStack() as stack:
        cgroups = [stack.enter_context(new_cgroup(place.cgroup.path, f"c{n}")) for n in range(6)]
        daemon = place.run(place.configure("limits: {cgroups: 1}"))
        sent = {
            family: sum(send_datagrams(netns, cgroup, cgroup, family=family) for cgroup in cgroups)
            for family in ("ipv4", "ipv6")
        }
        page = daemon.settled()
        named = page.labels("transmit_bytes_total", "cgroup")
        assert "other" in named
        assert page.sum("map_entries", map="totals") == page.sum("map_max_entries", map="totals") == 4
        assert page.sum("transmit_bytes_total", cgroup="other") > 0
        assert page.sum("lost_updates_total", reason="totals_full") > 0
        daemon.settled()
        assert daemon.lines("level=WARN", "the totals are full") == 1
        assert page.sum("lost_updates_total", reason="storage") == 0
        for family, total in sent.items():
            assert page.sum("transmit_bytes_total", family=family, protocol="udp") == total
            assert page.sum("receive_bytes_total", family=family, protocol="udp") == total
        assert_balanced(page)


def test_silent_and_slow_clients(place: Surroundings) -> None:
    """Who does not send, or does not read, holds up nobody: neither a scrape nor the stop."""
    with crowd(place) as flag, ExitStack() as stack:
        daemon = place.run(flag)
        for sent in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
            for _ in range(10):
                slow = stack.enter_context(closing(socket.socket()))
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                slow.settimeout(PATIENCE)
                slow.connect(("127.0.0.1", daemon.port))
                slow.sendall(sent)
        page = daemon.page()
        assert len(page.text) > 500_000
        assert page.sum("scrape_collector_success") == 3
        assert daemon.stop() == 0


WEIRD = (
    b"two words",
    b'"quoted"',
    b"back\\slash\\x2d",
    b"\\n",
    b'{a="b"} 1 # {}',
    "größe\u2028".encode(),
    b".hidden",
    b"tab\tbell\a",
    b"carriage\rreturn",
    b"\xff",
    b"\xfe",
    b"cut \xc3",
)


@contextmanager
def weird_cgroups(place: Surroundings) -> Iterator[list[Cgroup]]:
    with ExitStack() as stack:
        yield [stack.enter_context(new_cgroup(place.cgroup.path, os.fsdecode(name))) for name in WEIRD]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_weird_names(place: Surroundings, netns: Netns, openmetrics: bool) -> None:
    """The page stays valid, each has its own series, with and without a meter."""
    with weird_cgroups(place) as cgroups:
        daemon = place.run(place.configure("attach: {meters: ['/*']}"))
        for number, cgroup in enumerate(cgroups, 1):
            send_datagrams(netns, cgroup, cgroup, number=number)
        daemon.settled()
        page = daemon.page(openmetrics=openmetrics)
        expected = [128 * number for number in range(1, len(WEIRD) + 1)]
        for name, label in (("transmit_bytes", "cgroup"), ("attach_point_transmit_bytes", "attach_point")):
            labels = page.labels(f"{name}_total", label) - {"/"}
            values = sorted(page.sum(f"{name}_total", **{label: value}) for value in labels)
            assert values == expected
            for known in ("/two words", '/"quoted"', "/back\\slash\\x2d", "/größe\u2028", "/.hidden"):
                assert known in labels
        assert_balanced(page)
