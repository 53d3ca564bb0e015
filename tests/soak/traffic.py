"""Cgroups that come and go, each with its own sockets, of which every byte is known.

    python -m tests.soak.traffic CGROUP NETNS FIRST CGROUPS CONNECTIONS SECONDS

makes so many cgroups below CGROUP in so many SECONDS, the FIRST of them with that number, and so many
connections in all of them together. Then it prints, as JSON, what was sent. Each cgroup lives for a tenth
of a second to a second, so that several are there at once.
"""

import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.daemon.traffic import HOSTS, IP_HEADER, UDP_HEADER
from tests.kernel.machine import Cgroup, Netns
from tests.kernel.tcp import meminfo_drops
from tests.patience import PATIENCE

LIVES = 0.1, 1.0  # in seconds
DATAGRAMS = 5
DROWNING = 3  # datagrams to a socket that has room for one
MOST_BYTES = 5000
# Of four cgroups one has a name that another had before, like a service that is started again.
SERVICES = 20
END = object()


def name_of(number: int) -> str:
    return f"job-{number}" if number % 4 else f"service-{number // 4 % SERVICES}"


class Lives:
    def __init__(self, parent: Path, truth: Counter[str]) -> None:
        self._parent = parent
        self._truth = truth
        self._random = random.Random(1)

    def live(self, number: int, connections: int) -> Iterator[None]:
        """One cgroup's life, step by step: a connection each."""
        cgroup = Cgroup(self._parent / name_of(number))
        family = "ipv6" if number % 8 > 3 else "ipv4"
        cgroup.path.mkdir()
        with ExitStack() as stack:
            with cgroup.joined():
                talker, drowning = (self._bound(stack, family, socket.SOCK_DGRAM) for _ in range(2))
                listener = self._bound(stack, family, socket.SOCK_STREAM)
                clients = [self._bound(stack, family, socket.SOCK_STREAM) for _ in range(connections)]
            listener.listen()
            listener.settimeout(PATIENCE)
            self._talk(talker, family)
            self._drown(talker, drowning, family)
            begin, seconds = time.monotonic(), self._random.uniform(*LIVES)
            for index, client in enumerate(clients):
                while time.monotonic() < begin + seconds * index / connections:
                    yield
                self._connect(client, listener)
                yield
        cgroup.path.rmdir()
        self._truth["cgroups"] += 1

    def _bound(self, stack: ExitStack, family: str, kind: socket.SocketKind) -> socket.socket:
        domain, host = HOSTS[family]
        made = stack.enter_context(socket.socket(domain, kind))
        made.settimeout(PATIENCE)
        if kind == socket.SOCK_DGRAM:
            made.bind((host, 0))
        return made

    def _talk(self, talker: socket.socket, family: str) -> None:
        for _ in range(DATAGRAMS):
            size = self._random.randrange(MOST_BYTES)
            talker.sendto(bytes(size), talker.getsockname())
            assert len(talker.recv(MOST_BYTES)) == size
            self._truth["udp_bytes"] += size + IP_HEADER[family] + UDP_HEADER

    def _drown(self, talker: socket.socket, receiver: socket.socket, family: str) -> None:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(DROWNING):
            talker.sendto(bytes(MOST_BYTES), receiver.getsockname())
            self._truth["udp_bytes"] += MOST_BYTES + IP_HEADER[family] + UDP_HEADER
        self._truth["udp_drops"] += meminfo_drops(receiver)

    def _connect(self, client: socket.socket, listener: socket.socket) -> None:
        """Connect, exchange something, and close, the client first."""
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            server.settimeout(PATIENCE)
            for sender, receiver in ((client, server), (server, client)):
                size = self._random.randrange(1, MOST_BYTES)
                sender.sendall(bytes(size))
                assert len(receiver.recv(size, socket.MSG_WAITALL)) == size
                self._truth["tcp_bytes"] += size
            client.shutdown(socket.SHUT_WR)
            assert not server.recv(1)
            server.close()
            assert not client.recv(1)
        self._truth["connections"] += 1


def main(parent: Path, netns: Netns, first: int, cgroups: int, connections: int, seconds: float) -> None:
    truth: Counter[str] = Counter()
    lives = Lives(parent, truth)
    alive: list[Iterator[None]] = []
    begin = time.monotonic()
    begun = 0
    with netns.entered():
        while begun < cgroups or alive:
            if begun < cgroups and time.monotonic() >= begin + seconds * begun / cgroups:
                share = connections * (begun + 1) // cgroups - connections * begun // cgroups
                alive.append(lives.live(first + begun, share))
                begun += 1
            alive = [life for life in alive if next(life, END) is not END]
            time.sleep(0.001)
    print(json.dumps(truth))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Netns(sys.argv[2]), *map(int, sys.argv[3:]))
