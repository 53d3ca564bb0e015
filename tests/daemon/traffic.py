"""Traffic over a namespace's loopback of which every byte is known.

Bytes are those of the metrics, from the IP header on.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from tests.kernel.machine import Cgroup, Netns

PATIENCE = 20.0
HOSTS = {"ipv4": (socket.AF_INET, "127.0.0.1"), "ipv6": (socket.AF_INET6, "::1")}
IP_HEADER = {"ipv4": 20, "ipv6": 40}
UDP_HEADER = ICMP_HEADER = 8


def send_datagrams(
    netns: Netns, sender: Cgroup, receiver: Cgroup, *, number: int = 10, size: int = 100, family: str = "ipv4"
) -> int:
    """Send datagrams and return the bytes that *sender* has sent and *receiver* received."""
    kind, host = HOSTS[family]
    with netns.entered(), ExitStack() as stack:
        with receiver.joined():
            inward = stack.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
        with sender.joined():
            outward = stack.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
        inward.bind((host, 0))
        inward.settimeout(PATIENCE)
        for _ in range(number):
            outward.sendto(bytes(size), inward.getsockname())
            assert len(inward.recv(65536)) == size
    return number * (size + IP_HEADER[family] + UDP_HEADER)


def ping(netns: Netns, cgroup: Cgroup, *, number: int = 5, size: int = 56, family: str = "ipv4") -> int:
    """Send echo requests and return the bytes sent, and received as replies."""
    kind, host = HOSTS[family]
    protocol, request = (
        (socket.IPPROTO_ICMP, 8) if family == "ipv4" else (socket.getprotobyname("ipv6-icmp"), 128)
    )
    with netns.entered(), cgroup.joined(), socket.socket(kind, socket.SOCK_DGRAM, protocol) as pinger:
        pinger.settimeout(PATIENCE)
        for sequence in range(number):
            message = struct.pack("!BBHHH", request, 0, 0, 0, sequence) + os.urandom(size)
            pinger.sendto(message, (host, 0))
            assert len(pinger.recv(65536)) == len(message)
    return number * (size + IP_HEADER[family] + ICMP_HEADER)


def converse(
    netns: Netns, client: Cgroup, server: Cgroup, *, size: int, family: str = "ipv4"
) -> dict[str, int]:
    """Send *size* bytes over TCP, close, and return the bytes that "client" and "server" have sent.

    Whatever one has sent the other received.
    """
    kind, host = HOSTS[family]
    with netns.entered(), capture() as captured, ExitStack() as stack:
        with server.joined():
            listener = stack.enter_context(socket.create_server((host, 0), family=kind))
        with client.joined():
            near = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
        near.connect(listener.getsockname())
        far = stack.enter_context(listener.accept()[0])
        ports = {"client": near.getsockname()[1], "server": listener.getsockname()[1]}
        rest = size
        while rest:
            sent = near.send(bytes(min(rest, 16384)))
            rest -= sent
            while sent:
                sent -= len(far.recv(sent))
        # the one that closes first reads the other's end before: else the last packet has no socket
        near.shutdown(socket.SHUT_WR)
        assert not far.recv(1)
        far.close()
        assert not near.recv(1)
        seen = sent_between(captured)
    near_port, far_port = ports["client"], ports["server"]
    return {"client": seen[near_port, far_port], "server": seen[far_port, near_port]}


ETH_P_ALL = 3
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h


@contextmanager
def capture() -> Iterator[socket.socket]:
    """A packet socket on the loopback: it sees super-packets whole, as the cgroup programs do."""
    protocol = socket.htons(ETH_P_ALL)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol) as made:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        made.bind(("lo", ETH_P_ALL))
        made.setblocking(False)
        yield made


def sent_between(captured: socket.socket) -> dict[tuple[int, int], int]:
    """Return the bytes of TCP that left each source port for each destination port."""
    sent: dict[tuple[int, int], int] = {}
    header = bytearray(128)
    with suppress(BlockingIOError):
        while True:
            length, (_, protocol, direction, *_rest) = captured.recvfrom_into(header, 0, socket.MSG_TRUNC)
            start = (header[0] & 15) * 4 if protocol == 0x0800 else 40
            if direction == socket.PACKET_OUTGOING and header[9 if start < 40 else 6] == socket.IPPROTO_TCP:
                source, destination = struct.unpack_from("!HH", header, start)
                sent[source, destination] = sent.get((source, destination), 0) + length
    return sent
