"""What tests know of TCP: what TCP_INFO says of a socket, /proc/net/tcp of a namespace, and our books."""

import ctypes
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

from tests.kernel.ledger import record_of, repeating
from tests.kernel.machine import Cgroup, Netns
from tests.patience import PATIENCE, eventually

from sockledger.kernel.datapath import DataPath, ticks_per_second

# include/net/tcp_states.h
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT = range(1, 7)
CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(7, 12)

NO_LINGERING = struct.pack("ii", 1, 0)
TICK = 1_000_000 // ticks_per_second()  # in microseconds, as TCP_INFO has its times
_libc = ctypes.CDLL(None, use_errno=True)


# ---- a socket's own account

# struct tcp_info in include/uapi/linux/tcp.h: by name, where it is, and what.
_INFO = {
    "state": (0, "B"),
    "options": (5, "B"),
    "rto": (8, "I"),
    "unacked": (24, "I"),
    "rtt": (68, "I"),
    "total_retrans": (100, "I"),
    "bytes_acked": (120, "Q"),
    "bytes_received": (128, "Q"),
    "segs_out": (136, "I"),
    "segs_in": (140, "I"),
    "notsent_bytes": (144, "I"),
    "busy_time": (168, "Q"),
    "rwnd_limited": (176, "Q"),
    "sndbuf_limited": (184, "Q"),
    "rcv_ooopack": (224, "I"),
    "total_rto": (240, "H"),  # since 6.7
}
OPTION_ECN = 8


def tcp_info(sock: socket.socket) -> dict[str, int]:
    """Return what TCP_INFO says, as far as this kernel says it."""
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
    return {
        name: struct.unpack_from(f"={kind}", data, at)[0]
        for name, (at, kind) in _INFO.items()
        if at + struct.calcsize(kind) <= len(data)
    }


# The members of struct tcp_totals that TCP_INFO has too.
COUNTS = {
    "acked_bytes": "bytes_acked",
    "received_bytes": "bytes_received",
    "transmit_segments": "segs_out",
    "receive_segments": "segs_in",
    "retransmitted_segments": "total_retrans",
    "out_of_order_segments": "rcv_ooopack",
}


def counts_of(info: dict[str, int]) -> Counter[str]:
    """TCP_INFO, or sums of it, by the names of our members."""
    return Counter({ours: info[theirs] for ours, theirs in COUNTS.items()})


def times_of(info: dict[str, int]) -> list[int]:
    """Busy, and limited by the receiver's window and by the send buffer, in microseconds."""
    return [info[name] for name in ("busy_time", "rwnd_limited", "sndbuf_limited")]


def settle(*pair: socket.socket) -> None:
    """Wait until all that either end of a connection has sent is acknowledged, and nothing is on its way."""
    deadline = time.monotonic() + PATIENCE
    before: list[int] = []
    still = time.monotonic()
    while True:
        for each in pair:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        one, other = (tcp_info(each) for each in pair)
        quiet = not any(info["unacked"] or info["notsent_bytes"] for info in (one, other))
        # the SYN-ACK was the listener's
        if quiet and (one["segs_out"] == other["segs_in"] and other["segs_out"] + 1 == one["segs_in"]):
            return
        now = [info[name] for info in (one, other) for name in ("segs_in", "segs_out")]
        if now != before or not quiet:
            before, still = now, time.monotonic()
        if time.monotonic() - still > 0.5:  # longer than an ACK may wait: some were lost
            return
        assert time.monotonic() < deadline, "a connection that does not come to rest"


SO_MEMINFO, SK_MEMINFO_DROPS = 55, 8  # include/uapi/linux/sock_diag.h


def meminfo_drops(sock: socket.socket) -> int:
    drops: int = struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[SK_MEMINFO_DROPS]
    return drops


_SO_COOKIE = 57  # include/uapi/asm-generic/socket.h


def cookie_of(sock: socket.socket) -> int:
    """The kernel's number for a socket, used once."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)


_SO_ATTACH_FILTER, _RETURN_NOTHING = 26, struct.pack("=HBBI", 6, 0, 0, 0)


def drop_all(sock: socket.socket) -> None:
    """Let a socket filter drop what comes: no tracepoint tells of that."""
    program = ctypes.create_string_buffer(_RETURN_NOTHING)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def queued(listener: socket.socket) -> int:
    """How many connections wait to be accepted."""
    return tcp_info(listener)["unacked"]


def wait_for_state(sock: socket.socket, state: int) -> None:
    eventually(lambda: tcp_info(sock)["state"] == state, f"state {state}")


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGERING)
    sock.close()


def disconnect(sock: socket.socket) -> None:
    """End the connection, but not the socket: connect() to AF_UNSPEC."""
    if _libc.connect(sock.fileno(), bytes(16), 16):
        raise OSError(ctypes.get_errno(), "connect")


# ---- connections of a test's own


@dataclass
class Pair:
    """The two ends of a connection."""

    client: socket.socket
    server: socket.socket

    def exchange(self, there: int, back: int) -> None:
        """Send so many bytes, each way at most what fits the buffers, and come to rest."""
        for sender, receiver, size in (
            (self.client, self.server, there),
            (self.server, self.client, back),
        ):
            if size:
                sender.sendall(bytes(size))
                assert len(receiver.recv(size, socket.MSG_WAITALL)) == size
        settle(self.client, self.server)

    def settle(self) -> None:
        settle(self.client, self.server)


@dataclass
class Ends:
    """Makes connections between two cgroups in one namespace."""

    client: Cgroup
    server: Cgroup
    netns: Netns
    stack: ExitStack

    @property
    def sides(self) -> tuple[tuple[str, Cgroup], tuple[str, Cgroup]]:
        return ("client", self.client), ("server", self.server)

    def new_socket(
        self, cgroup: Cgroup, *, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        with cgroup.joined(), self.netns.entered():
            made = self.stack.enter_context(socket.socket(family, kind))
        made.settimeout(PATIENCE)
        return made

    def listener(self, backlog: int = 128, *, port: int = 0, reuse: bool = False) -> socket.socket:
        made = self.new_socket(self.server)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
        made.bind(("127.0.0.1", port))
        made.listen(backlog)
        return made

    def accept(self, listener: socket.socket) -> socket.socket:
        made, _ = listener.accept()
        made.settimeout(PATIENCE)
        return self.stack.enter_context(made)

    def connect(self, listener: socket.socket, client: socket.socket | None = None) -> Pair:
        """Connect a socket, a new one if none is given; both ends are established."""
        client = client or self.new_socket(self.client)
        client.connect(listener.getsockname())
        server = self.accept(listener)
        wait_for_state(server, ESTABLISHED)
        return Pair(client, server)

    def pairs(self, number: int, listener: socket.socket | None = None) -> list[Pair]:
        """So many connections; joining a cgroup takes long, so all clients are made at once."""
        listener = listener or self.listener()
        with self.client.joined(), self.netns.entered():
            clients = [self.stack.enter_context(socket.socket()) for _ in range(number)]
        for client in clients:
            client.settimeout(PATIENCE)
        return [self.connect(listener, client) for client in clients]


@contextmanager
def new_ends(client: Cgroup, server: Cgroup, netns: Netns) -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(client, server, netns, stack)


SIDES = ("client", "server")


def infos(pairs: list[Pair], side: str) -> Counter[str]:
    """The sum of what TCP_INFO says of one side's sockets."""
    return sum((Counter(tcp_info(getattr(pair, side))) for pair in pairs), Counter())


@contextmanager
def lossy(netns: Netns, rules: str, hook: str = "input") -> Iterator[None]:
    """nftables rules, in a chain of their own, for what comes to the loopback."""
    netns.run("nft", f"table inet loss {{ chain loss {{ type filter hook {hook} priority 0; {rules}; }}; }}")
    try:
        yield
    finally:
        netns.run("nft", "delete", "table", "inet", "loss")


@contextmanager
def unreachable(netns: Netns, ports: set[int]) -> Iterator[Callable[[str], None]]:
    """Nothing comes from or to these TCP ports; yields how to let some of it through, by a match of nft."""
    each = ", ".join(map(str, ports))
    drop = f"tcp sport {{ {each} }} drop; tcp dport {{ {each} }} drop"

    def let(match: str) -> None:
        netns.run("nft", f"insert rule inet wall wall {match} accept")

    netns.run("nft", f"table inet wall {{ chain wall {{ type filter hook input priority 1; {drop}; }}; }}")
    try:
        yield let
    finally:
        netns.run("nft", "delete", "table", "inet", "wall")


def proc_states(netns: Netns) -> dict[int, Counter[int]]:
    """Return the states that /proc/net/tcp and tcp6 show, by local port."""
    found: dict[int, Counter[int]] = {}
    for table in ("tcp", "tcp6"):
        for line in netns.run("cat", f"/proc/net/{table}").splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            found.setdefault(int(local.rpartition(":")[2], 16), Counter())[int(state, 16)] += 1
    return found


# ---- our books


@dataclass(frozen=True)
class Books:
    """What is counted for one cgroup."""

    opened: dict[str, int]  # by role, as all that follow only what is not 0
    closed: dict[str, int]
    failures: dict[str, int]  # by reason
    sockets: dict[int, int]  # by state
    counts: Counter[str]  # as TCP_INFO has them, too
    times: list[int]  # as in `times_of`
    timeouts: int
    measured: list[tuple[int, int]]  # number and sum, in microseconds: RTT, connect duration, lifetime


def books_of(path: DataPath, cgroup_id: int) -> Books:
    record = record_of(path, "tcp_totals", cgroup_id)

    def array(name: str) -> dict[int, int]:
        found = {
            int(match[1]): value
            for key, value in record.items()
            if (match := re.fullmatch(rf"{name}\[(\d+)\]", key))
        }
        return {
            number: value - (1 << 64) if value >> 63 else value for number, value in found.items() if value
        }

    busy = array("busy")
    return Books(
        opened={path.labels.role[role]: n for role, n in array("opened").items()},
        closed={path.labels.role[role]: n for role, n in array("closed").items()},
        failures={path.labels.failure[reason]: n for reason, n in array("connect_failures").items()},
        sockets=array("sockets"),
        counts=Counter({name: record[name] for name in COUNTS}),
        times=[sum(busy.values()) * TICK, busy.get(1, 0) * TICK, busy.get(2, 0) * TICK],
        timeouts=record["retransmission_timeouts"],
        measured=[(record[f"measured[{n}].count"], record[f"measured[{n}].sum"]) for n in range(3)],
    )


def followed(path: DataPath, cgroup_id: int, sockets: str = "tcp_sockets") -> int:
    """Return how many sockets of a cgroup have an entry in a map."""
    table = path.maps[sockets]
    at = [field.name for field in table.value.fields].index("cgroup_id")
    return sum(
        entry[at] == cgroup_id for _, values in table.batches() for entry in table.value.unpack_all(values)
    )


def find_older(path: DataPath) -> None:
    """Flush: older connections count when they are found a second time, a millisecond later."""
    time.sleep(0.002)
    path.flush_tcp()


def tcp_losses(path: DataPath) -> dict[str, int]:
    """Return the updates of TCP's and UDP's books that were lost; packets' have other tests."""
    lost = path.lost_updates()
    names = ("totals_full", "connections_full", "connections_busy", "udp_sockets_full", "end_unseen")
    return {name: lost[name] for name in names if lost[name]}


def flushing_tcp(path: DataPath, period: float | None) -> AbstractContextManager[None]:
    """Flush TCP all the while, *period* seconds apart, and the table of sockets every now and then."""
    rounds = count()

    def flush() -> None:
        if next(rounds) % 16 == 0:
            path.flush_sockets()
        path.flush_tcp()

    return repeating(flush, period)


def flushing_udp(path: DataPath, period: float | None) -> AbstractContextManager[None]:
    def flush() -> None:
        path.flush_sockets()
        path.flush_udp()

    return repeating(flush, period)


@contextmanager
def busy_cpus() -> Iterator[None]:
    """Somebody else computes on each CPU."""
    with ExitStack() as stack:
        for cpu in os.sched_getaffinity(0):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {cpu})
        yield


def has_netem(netns: Netns) -> bool:
    try:
        netns.run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except RuntimeError:
        return False
    netns.run("tc", "qdisc", "delete", "dev", "lo", "root")
    return True


def set_sysctl(netns: Netns, name: str, value: str) -> None:
    netns.run("sysctl", "-qw", f"{name}={value}")


def deaf_socket(ends: Ends) -> socket.socket:
    """A socket that has dropped five datagrams by a filter: no tracepoint tells of these."""
    made = ends.new_socket(ends.server, kind=socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    drop_all(made)
    talker = ends.new_socket(ends.client, kind=socket.SOCK_DGRAM)
    talker.connect(made.getsockname())
    for _ in range(5):
        talker.send(bytes(100))
    eventually(lambda: meminfo_drops(made) == 5, "dropped: a softirq may come late")
    return made
