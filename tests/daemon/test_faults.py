"""What goes wrong on a machine, and what it must not do to the figures."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from tests.daemon.support import Page, Surroundings
from tests.daemon.test_signals import crowd
from tests.daemon.traffic import HOSTS, converse, send_datagrams
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.patience import PATIENCE

from sockledger.kernel.sums import RETIRED_TOTALS

ONLY_AT_SCRAPES = "flush: {interval: 1h}\n"


def assert_balanced(page: Page) -> None:
    assert page.sum("unattributed_bytes_total") == page.sum("overcounted_bytes_total") == 0
    for direction in ("receive", "transmit"):
        for unit in ("bytes", "packets"):
            root = page.sum(f"attach_point_{direction}_{unit}_total", attach_point="/")
            assert page.sum(f"{direction}_{unit}_total") == root


def test_vanished_cgroups(place: Surroundings, netns: Netns) -> None:
    """One that was seen alive keeps its name, and so has one that came and went between two looks."""
    daemon = place.run()
    with new_cgroup(place.cgroup.path, "seen") as seen:
        first = send_datagrams(netns, seen, seen)
        daemon.settled()
    with new_cgroup(place.cgroup.path, "unseen") as unseen:
        second = send_datagrams(netns, unseen, unseen, number=3)
    page = daemon.settled()
    assert page.sum("transmit_bytes_total", cgroup="/seen") == first
    assert page.sum("transmit_bytes_total", cgroup="/unseen") == second
    assert_balanced(page)


def test_open_sockets(place: Surroundings, netns: Netns) -> None:
    """What a socket has done is shown while it is open, not only when it is closed."""
    with new_cgroup(place.cgroup.path, "a") as a, closing(datagram_socket(netns, a)) as alive:
        daemon = place.run(place.configure(ONLY_AT_SCRAPES))
        for more in (1, 2, 3):
            talk_to_itself(alive)
            page = daemon.settled()
            assert page.sum("transmit_bytes_total", cgroup="/a") == 100 * more
            assert page.sum("map_entries", map="sockets") == 1
            assert_balanced(page)


def datagram_socket(netns: Netns, cgroup: Cgroup, *, family: str = "ipv4") -> socket.socket:
    kind, host = HOSTS[family]
    with netns.entered(), cgroup.joined():
        made = socket.socket(kind, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind((host, 0))
    return made


def talk_to_itself(talker: socket.socket) -> None:
    """Send and receive one datagram, 100 bytes over IPv4."""
    talker.sendto(bytes(72), talker.getsockname())
    assert len(talker.recv(100)) == 72


def test_sockets_are_full(place: Surroundings, netns: Netns) -> None:
    """The first socket has the only seat; the packets of all others are counted one by one."""
    each, rounds = 5, 4
    with ExitStack() as stack:
        cgroups = [stack.enter_context(new_cgroup(place.cgroup.path, f"c{n}")) for n in range(4)]
        daemon = place.run(place.configure(f"limits: {{sockets: 1}}\n{ONLY_AT_SCRAPES}"))
        talkers = [
            stack.enter_context(closing(datagram_socket(netns, cgroup, family=family)))
            for cgroup in cgroups
            for family in HOSTS
            for _ in range(each)
        ]
        for _ in range(rounds):
            for talker in talkers:
                talk_to_itself(talker)
        page = daemon.settled()
        assert page.sum("map_entries", map="sockets") == page.sum("map_max_entries", map="sockets") == 1
        assert page.sum("lost_updates_total", reason="sockets_full") == 2 * rounds * (len(talkers) - 1)
        for cgroup in cgroups:
            for family, size in (("ipv4", 100), ("ipv6", 120)):
                labels = {"cgroup": f"/{cgroup.path.name}", "protocol": "udp", "family": family}
                for direction in ("receive", "transmit"):
                    assert page.sum(f"{direction}_packets_total", **labels) == each * rounds
                    assert page.sum(f"{direction}_bytes_total", **labels) == each * rounds * size
        assert_balanced(page)

        sent: Counter[str] = Counter()
        for _ in range(20):
            sent.update(converse(netns, cgroups[0], cgroups[1], size=5000))
        page = daemon.settled()
        for path, side, other in (("/c0", "client", "server"), ("/c1", "server", "client")):
            assert page.sum("transmit_bytes_total", cgroup=path, protocol="tcp") == sent[side]
            assert page.sum("receive_bytes_total", cgroup=path, protocol="tcp") == sent[other]
        assert page.sum("lost_updates_total", reason="totals_full") == 0
        assert_balanced(page)


def test_seats_are_taken_back(place: Surroundings, netns: Netns) -> None:
    """From sockets that have ended, and from idle ones, which take another seat when they go on."""
    short, idle = 500, 10

    def seats() -> list[int]:
        """How many are taken at the next flushes: in use, idle, retired, free."""
        return [daemon.settled().sum("map_entries", map="sockets") for _ in range(4)]

    with new_cgroup(place.cgroup.path, "a") as a, ExitStack() as stack:
        daemon = place.run(place.configure(ONLY_AT_SCRAPES))
        alive = [stack.enter_context(closing(datagram_socket(netns, a))) for _ in range(idle)]
        for talker in alive:
            talk_to_itself(talker)
        for _ in range(short):
            with closing(datagram_socket(netns, a)) as ended:
                talk_to_itself(ended)
        assert seats() == [short + idle, short + idle, short + idle, 0]
        for talker in alive:
            talk_to_itself(talker)
        assert seats() == [idle, idle, idle, 0]
        page = daemon.page()
        for direction in ("receive", "transmit"):
            assert page.sum(f"{direction}_packets_total", cgroup="/a") == short + 2 * idle
            assert page.sum(f"{direction}_bytes_total", cgroup="/a") == 100 * (short + 2 * idle)
        assert page.sum("lost_updates_total") == 0
        assert_balanced(page)


def test_totals_are_full(place: Surroundings, netns: Netns) -> None:
    """A cgroup and a label set have four entries each; the rest is counted all the same, as cgroup other."""
    with ExitStack() as stack:
        cgroups = [stack.enter_context(new_cgroup(place.cgroup.path, f"c{n}")) for n in range(6)]
        daemon = place.run(place.configure("limits: {cgroups: 1, label_sets: 1}"))
        sent = {
            family: sum(send_datagrams(netns, cgroup, cgroup, family=family) for cgroup in cgroups)
            for family in ("ipv4", "ipv6")
        }
        page = daemon.settled()
        named = page.labels("transmit_bytes_total", "cgroup")
        assert "other" in named
        assert (
            page.sum("map_entries", map="totals")
            == page.sum("map_max_entries", map="totals")
            == 2 * 4 + RETIRED_TOTALS
        )
        assert page.sum("transmit_bytes_total", cgroup="other") > 0
        assert page.sum("lost_updates_total", reason="totals_full") > 0
        daemon.settled()
        assert daemon.lines("level=WARN", "the totals are full") == 1
        assert page.sum("lost_updates_total", reason="sockets_full") == 0
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
        assert page.sum("scrape_collector_success") == 7
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
