"""UDP sockets older than the programs."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.kernel.ledger import NOTHING, attached, final_difference
from tests.kernel.machine import Cgroup, Netns

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath

WRITE_THROUGH, FAST, HOOKED = 0, 1, 3  # enum state in bpf/ledger.h
SOCKETS = 100


class WithoutAdoption(DataPath):
    def _adopt(self) -> None:
        pass


@pytest.fixture
def sockets(client: Cgroup, netns: Netns) -> Iterator[list[socket.socket]]:
    """Sockets that have sent before anything is attached."""
    with ExitStack() as stack:
        with client.joined(), netns.entered():
            made = [stack.enter_context(new_socket()) for _ in range(SOCKETS)]
        send_one_each(made)
        yield made


def new_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::", 0))
    return made


def send_one_each(sockets: list[socket.socket]) -> None:
    for each in sockets:
        for address in ("::1", "::ffff:127.0.0.1"):
            each.sendto(b"x", (address, each.getsockname()[1]))
            assert each.recv(10) == b"x"


def states(path: DataPath, sockets: list[socket.socket]) -> set[int | None]:
    """Return the states of the sockets' storages, None for no storage."""
    storages = path.maps["sockets"]
    found = [storages.lookup(struct.pack("=i", each.fileno())) for each in sockets]
    return {None if value is None else storages.value.unpack(value)["state"] for value in found}


def test_adopted_sockets_are_fast(root: CgroupRoot, sockets: list[socket.socket]) -> None:
    with attached(root) as path:
        assert states(path, sockets) == {HOOKED}
        send_one_each(sockets)
        assert states(path, sockets) == {FAST}
        for each in sockets:
            each.close()
        assert final_difference(path, root) == NOTHING


def test_without_adoption_they_are_slow(root: CgroupRoot, sockets: list[socket.socket]) -> None:
    """Nothing is lost then either; only, each packet is written through."""
    with attached(root, kind=WithoutAdoption) as path:
        assert states(path, sockets) == {None}
        send_one_each(sockets)
        assert states(path, sockets) == {WRITE_THROUGH}
        for each in sockets:
            each.close()
        assert final_difference(path, root) == NOTHING


def test_new_sockets_are_fast(root: CgroupRoot, netns: Netns) -> None:
    with attached(root) as path, ExitStack() as stack, netns.entered():
        made = [stack.enter_context(new_socket()) for _ in range(SOCKETS)]
        assert states(path, made) == {HOOKED}
        send_one_each(made)
        assert states(path, made) == {FAST}
