"""The table of sockets: who has a seat, and how it is taken back."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.kernel.ledger import NOTHING, attached, final_difference, seats, totals_of
from tests.kernel.machine import Cgroup, Netns
from tests.kernel.tcp import cookie_of
from tests.kernel.truth import single_cpu
from tests.patience import SCALE

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.sums import Traffic

FREE, RETIRED = 0, 1 << 63  # bpf/ledger.h
WAYS, NEIGHBOURS, GOLDEN_RATIO = 8, 64, 0x9E3779B97F4A7C15  # bpf/ledger.h, bpf/seats.h
SOCKETS, SEATS = 100, 1024
DATAGRAM = {"ipv4": 20 + 8 + 1, "ipv6": 40 + 8 + 1}


@contextmanager
def new_sockets(client: Cgroup, netns: Netns) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack, client.joined(), netns.entered():
        yield [stack.enter_context(new_socket()) for _ in range(SOCKETS)]


def new_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::", 0))
    return made


def send_one_each(sockets: list[socket.socket]) -> None:
    for each in sockets:
        for address in ("::1", "::ffff:127.0.0.1"):
            each.sendto(b"x", (address, each.getsockname()[1]))
            assert each.recv(10) == b"x"


def cookies(sockets: list[socket.socket]) -> set[int]:
    return {cookie_of(each) for each in sockets}


def places(cookie: int) -> list[int]:
    """Where a socket may sit, its home first: beside those whose cookies follow each other."""
    found = []
    for way in range(WAYS):
        spread = (cookie // NEIGHBOURS * WAYS + way) * GOLDEN_RATIO % (1 << 64)
        spread = (spread ^ spread >> 32) * GOLDEN_RATIO % (1 << 64)
        found.append(((spread >> 32) * SEATS // (1 << 32) + cookie % NEIGHBOURS) % SEATS)
    return found


def test_everybody_sits_at_a_place_of_his(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    with attached(below, sockets=SEATS) as path, new_sockets(client, netns) as sockets:
        send_one_each(sockets)
        seated = {seat["owner"]: index for index, seat in enumerate(seats(path))}
        for cookie in cookies(sockets):
            at = places(cookie).index(seated[cookie])
            assert all(place in seated.values() for place in places(cookie)[:at]), "the first that was free"


def owners(path: DataPath, cgroup: Cgroup) -> list[int]:
    """Return the owners of the seats that the cgroup's sockets have or had, in ascending order."""
    return sorted(seat["owner"] for seat in seats(path) if seat["cgroup_id"] == cgroup.id)


def counted(path: DataPath, cgroup: Cgroup) -> dict[tuple[str, str], Traffic]:
    path.flush_sockets()
    return totals_of(path, cgroup.id)


def rounds(number: int) -> dict[tuple[str, str], Traffic]:
    """Return the traffic of so many rounds."""
    packets = number * SOCKETS
    return {
        ("udp", family): Traffic(packets * size, packets, packets * size, packets)
        for family, size in DATAGRAM.items()
    }


@pytest.mark.parametrize("older", [False, True], ids=["younger", "older"])
def test_a_seat_each(below: CgroupRoot, client: Cgroup, netns: Netns, *, older: bool) -> None:
    """Whether they are younger or older than the programs, and have sent before, sockets find a seat."""
    with ExitStack() as stack:
        if not older:
            path = stack.enter_context(attached(below, sockets=SEATS))
        sockets = stack.enter_context(new_sockets(client, netns))
        if older:
            send_one_each(sockets)
            path = stack.enter_context(attached(below, sockets=SEATS))
        send_one_each(sockets)
        assert owners(path, client) == sorted(cookies(sockets))
        assert counted(path, client) == rounds(1)


def test_idle_seats_are_taken_back(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    with attached(below, sockets=SEATS) as path, new_sockets(client, netns) as sockets:
        seated = sorted(cookies(sockets))
        send_one_each(sockets)
        for expected in (seated, [RETIRED] * SOCKETS, [FREE] * SOCKETS):
            path.flush_sockets()
            assert owners(path, client) == expected
        send_one_each(sockets)
        assert owners(path, client) == seated
        assert counted(path, client) == rounds(2)


def test_active_sockets_keep_their_seats(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    with attached(below, sockets=SEATS) as path, new_sockets(client, netns) as sockets:
        for number in range(1, 5):
            send_one_each(sockets)
            assert counted(path, client) == rounds(number)
            assert owners(path, client) == sorted(cookies(sockets))


def test_sockets_that_end_leave_what_they_counted(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    """No hook sees their end: what they had pending is in the table, not in them."""
    with attached(below, sockets=SEATS) as path:
        for number in range(1, 4):
            with new_sockets(client, netns) as sockets:
                send_one_each(sockets)
            assert counted(path, client) == rounds(number)
        assert final_difference(path, below) == NOTHING


def test_cookies_of_many_cpus(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    """Each CPU gives out cookies from a batch of its own; sockets of 64 CPUs find seats all the same."""
    cpus, sockets, batch = max(64 // SCALE, 2), 256, 4096
    with (
        many_descriptors(cpus * sockets + 1000),
        attached(below, sockets=4 * cpus * sockets) as path,
        ExitStack() as stack,
        single_cpu(),
        client.joined(),
        netns.entered(),
    ):
        for _ in range(cpus):
            made = [stack.enter_context(new_socket()) for _ in range(sockets)]
            first = cookie_of(made[0])
            for each in made:
                each.sendto(b"x", ("::1", 9))
            while cookie_of_new_socket() // batch == first // batch:
                pass
        assert path.lost_updates()["sockets_full"] <= cpus * sockets // 200
        assert final_difference(path, below) == NOTHING


@contextmanager
def many_descriptors(number: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, max(number, before[1])))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def cookie_of_new_socket() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        return cookie_of(made)


def test_one_seat_is_enough(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    with attached(below, sockets=1) as path, new_sockets(client, netns) as sockets:
        send_one_each(sockets)
        assert counted(path, client) == rounds(1)
        assert final_difference(path, below) == NOTHING
