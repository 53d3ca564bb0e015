"""Sockets and cgroups that come and go, all the while sending: 200 sockets in 20 cgroups.

    python -m tests.daemon.bustle CGROUP NETNS SEED

makes the cgroups below CGROUP and goes on until there is a line on its standard input. Then it prints,
as JSON, what each path has sent, received, opened and closed, and keeps the sockets that are left until it is
killed. Connections' bytes are counted by a packet socket, datagrams' as they are sent.
"""

import json
import random
import select
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemon.traffic import IP_HEADER, UDP_HEADER, capture, sent_between
from tests.kernel.machine import Cgroup, Netns
from tests.kernel.tcp import settle
from tests.patience import PATIENCE

CGROUPS = 20
TALKERS = 6  # of each cgroup, beside the two ends of connections to its neighbours
PAIRS = 2
DATAGRAM_HEADERS = IP_HEADER["ipv4"] + UDP_HEADER


@dataclass
class Connection:
    near: socket.socket
    far: socket.socket


@dataclass
class Home:
    """A cgroup, one after the other of the same path, and the sockets in it."""

    path: str
    cgroup: Cgroup
    talkers: list[socket.socket] = field(default_factory=list)
    listener: socket.socket | None = None


def new_talkers() -> list[socket.socket]:
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(TALKERS)]
    for each in made:
        each.settimeout(PATIENCE)
        each.bind(("127.0.0.1", 0))
    return made


class Bustle:
    def __init__(self, parent: Path, captured: socket.socket, seed: int) -> None:
        self._random = random.Random(seed)
        self._captured = captured
        self._homes = [Home(f"/c{n}", Cgroup(parent / f"c{n}")) for n in range(CGROUPS)]
        self._connections: dict[int, list[Connection]] = {}
        self._path_of: dict[int, str] = {}  # by port of TCP
        self.books: dict[str, Counter[str]] = {home.path: Counter() for home in self._homes}
        for number in range(CGROUPS):
            self._settle(number)
        for number in range(CGROUPS):
            self._connect(number)

    # ---- cgroups

    def _settle(self, number: int) -> None:
        """Make a cgroup and what listens and talks there."""
        home = self._homes[number]
        home.cgroup.path.mkdir()
        with home.cgroup.joined():
            home.talkers = new_talkers()
            home.listener = socket.create_server(("127.0.0.1", 0))
        self._path_of[home.listener.getsockname()[1]] = home.path

    def _connect(self, number: int) -> None:
        """Make the connections from a cgroup to the next one."""
        home, other = self._homes[number], self._homes[(number + 1) % CGROUPS]
        with home.cgroup.joined():
            clients = [socket.socket() for _ in range(PAIRS)]
        made = self._connections[number] = []
        for near in clients:
            assert other.listener is not None
            near.settimeout(PATIENCE)
            near.bind(("127.0.0.1", 0))
            self._path_of[near.getsockname()[1]] = home.path
            near.connect(other.listener.getsockname())
            far = other.listener.accept()[0]
            far.settimeout(PATIENCE)
            made.append(Connection(near, far))
            self.books[home.path]["opened"] += 1
            self.books[other.path]["opened"] += 1

    def _disconnect(self, number: int) -> None:
        for connection in self._connections.pop(number):
            # no packet comes after its socket's end: none is on its way (a delayed ACK, held up on another
            # CPU), and the one that closes first reads the other's end before
            settle(connection.near, connection.far)
            connection.near.shutdown(socket.SHUT_WR)
            assert not connection.far.recv(1)
            connection.far.close()
            assert not connection.near.recv(1)
            connection.near.close()
            self.books[self._homes[number].path]["closed"] += 1
            self.books[self._homes[(number + 1) % CGROUPS].path]["closed"] += 1

    def replace_cgroup(self) -> None:
        """Remove a cgroup with all that is in it, and make another one of that name."""
        number = self._random.randrange(CGROUPS)
        home = self._homes[number]
        before = (number - 1) % CGROUPS
        self._disconnect(number)
        self._disconnect(before)
        self.account()
        assert home.listener is not None
        for each in (*home.talkers, home.listener):
            each.close()
        home.cgroup.path.rmdir()
        self._settle(number)
        self._connect(number)
        self._connect(before)

    # ---- sockets

    def replace_connections(self) -> None:
        number = self._random.randrange(CGROUPS)
        self._disconnect(number)
        self.account()
        self._connect(number)

    def replace_talkers(self) -> None:
        home = self._random.choice(self._homes)
        for talker in home.talkers:
            talker.close()
        with home.cgroup.joined():
            home.talkers = new_talkers()

    # ---- traffic

    def talk(self) -> None:
        """A datagram from one to another, anywhere."""
        home, other = self._random.choices(self._homes, k=2)
        talker, listener = self._random.choice(home.talkers), self._random.choice(other.talkers)
        size = self._random.randrange(1, 5000)
        talker.sendto(bytes(size), listener.getsockname())
        assert len(listener.recv(65536)) == size
        self.books[home.path]["udp_transmit_bytes"] += size + DATAGRAM_HEADERS
        self.books[other.path]["udp_receive_bytes"] += size + DATAGRAM_HEADERS

    def exchange(self) -> None:
        connection = self._random.choice(self._random.choice(list(self._connections.values())))
        for sender, receiver in ((connection.near, connection.far), (connection.far, connection.near)):
            size = self._random.randrange(1, 5000)
            sender.sendall(bytes(size))
            assert len(receiver.recv(size, socket.MSG_WAITALL)) == size

    def account(self) -> None:
        """Take in what the packet socket has seen, before a port is another's."""
        for (source, destination), size in sent_between(self._captured).items():
            self.books[self._path_of[source]]["tcp_transmit_bytes"] += size
            self.books[self._path_of[destination]]["tcp_receive_bytes"] += size

    def run(self) -> None:
        rare = (self.replace_cgroup, self.replace_connections, self.replace_talkers)
        while not select.select([sys.stdin], [], [], 0)[0]:
            for _ in range(20):
                self._random.choice((self.talk, self.exchange))()
            self.account()
            if self._random.random() < 0.2:
                self._random.choice(rare)()

    def rest(self) -> None:
        """Wait until nothing is on its way."""
        for connections in self._connections.values():
            for connection in connections:
                settle(connection.near, connection.far)
        self.account()


def main(parent: Path, netns: Netns, seed: int) -> None:
    # a segment that is sent again on a machine that is held up may come to a connection in TIME_WAIT, which
    # has no socket any more
    route = ("local", "127.0.0.1", "dev", "lo", "table", "local", "src", "127.0.0.1")
    netns.run("ip", "route", "change", *route, "proto", "kernel", "scope", "host", "rto_min", "10s")
    with netns.entered(), capture() as captured:
        bustle = Bustle(parent, captured, seed)
        print("ready", flush=True)
        bustle.run()
        bustle.rest()
    print(json.dumps(bustle.books), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Netns(sys.argv[2]), int(sys.argv[3]))
