"""Super-packets by hand: a TUN device hands them to the kernel with a gso_size, and without gso_segs."""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from tests.kernel.machine import Netns

# include/uapi/linux/if_tun.h, include/uapi/linux/virtio_net.h
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 1, 4, 5

FAR4, NEAR4 = "198.51.100.1", "198.51.100.2"
FAR6, NEAR6 = "2001:db8:1::1", "2001:db8:1::2"
PORT = 4000

SYN, PSH, ACK = 2, 8, 16

_VNET_HEADER = 10
# of a protocol's header: its length, and where its checksum is
_TRANSPORT = {socket.IPPROTO_TCP: (20, 16), socket.IPPROTO_UDP: (8, 6)}


class Family(Enum):
    IPV4 = (socket.AF_INET, FAR4, NEAR4, 20, 9)
    IPV6 = (socket.AF_INET6, FAR6, NEAR6, 40, 6)

    def __init__(self, number: int, far: str, near: str, header: int, protocol_at: int) -> None:
        self.number = socket.AddressFamily(number)
        self.version = int(self._name_[-1])
        self.far, self.near = (socket.inet_pton(number, address) for address in (far, near))
        self.address, self.header, self.protocol_at = near, header, protocol_at


@dataclass(frozen=True)
class Tun:
    """The far end of a point-to-point link; the near end is the kernel."""

    fd: int

    def send(
        self, family: Family, protocol: int, segment: bytes, gso_type: int = 0, gso_size: int = 0
    ) -> int:
        """Send an IP packet, and return its length.

        As from a guest, its checksum covers the pseudo-header only: a device was to complete it.
        """
        transport, checksum_at = _TRANSPORT[protocol]
        partial = _sum(family.far + family.near + struct.pack("!II", len(segment), protocol))
        segment = segment[:checksum_at] + struct.pack("!H", partial) + segment[checksum_at + 2 :]
        header = struct.pack(
            "=BBHHHH",
            *(VIRTIO_NET_HDR_F_NEEDS_CSUM, gso_type, family.header + transport, gso_size),
            *(family.header, checksum_at),
        )
        packet = _ip_header(family, protocol, len(segment)) + segment
        os.write(self.fd, header + packet)
        return len(packet)

    def receive_tcp(self, family: Family) -> tuple[int, int]:
        """Return sequence number and flags of the next TCP packet."""
        while True:
            packet = os.read(self.fd, 65536)[_VNET_HEADER:]
            if packet[0] >> 4 == family.version and packet[family.protocol_at] == socket.IPPROTO_TCP:
                sequence, flags = struct.unpack_from("!I5xB", packet, family.header + 4)
                return int(sequence), int(flags)


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _ip_header(family: Family, protocol: int, length: int) -> bytes:
    if family is Family.IPV6:
        return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + family.far + family.near
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + length, 1, 0, 64, protocol)
    addresses = family.far + family.near
    return start + struct.pack("!H", ~_sum(start + bytes(2) + addresses) & 0xFFFF) + addresses


@contextmanager
def new_tun(netns: Netns) -> Iterator[Tun]:
    with netns.entered():
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tun", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    try:
        netns.run("ip", "link", "set", "tun", "up")
        netns.run("ip", "address", "add", f"{NEAR4}/24", "dev", "tun")
        netns.run("ip", "address", "add", f"{NEAR6}/64", "dev", "tun", "nodad")
        yield Tun(fd)
    finally:
        os.close(fd)


def tcp_segment(sequence: int, acknowledged: int, flags: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", PORT, PORT, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0) + payload


def udp_datagram(payload: bytes) -> bytes:
    return struct.pack("!HHHH", PORT, PORT, 8 + len(payload), 0) + payload


@contextmanager
def tcp_connection(tun: Tun, family: Family) -> Iterator[tuple[socket.socket, int, int]]:
    """A connection from the far end: the near socket, and the next sequence number of each side."""
    with socket.create_server((family.address, PORT), family=family.number) as listener:
        tun.send(family, socket.IPPROTO_TCP, tcp_segment(999, 0, SYN))
        theirs, flags = tun.receive_tcp(family)
        assert flags == SYN | ACK
        tun.send(family, socket.IPPROTO_TCP, tcp_segment(1000, theirs + 1, ACK))
        near, _ = listener.accept()
        with near:
            yield near, 1000, theirs + 1


def send_tcp_superpacket(
    tun: Tun, family: Family, sequence: int, acknowledged: int, payload: bytes, size: int
) -> int:
    segment = tcp_segment(sequence, acknowledged, PSH | ACK, payload)
    gso_type = GSO_TCPV6 if family is Family.IPV6 else GSO_TCPV4
    return tun.send(family, socket.IPPROTO_TCP, segment, gso_type, size)


def send_superpackets(netns: Netns) -> None:
    """One of each family, to a connection."""
    with new_tun(netns) as tun, netns.entered():
        for family in Family:
            with tcp_connection(tun, family) as (near, sequence, acknowledged):
                send_tcp_superpacket(tun, family, sequence, acknowledged, bytes(30000), 1000)
                assert len(near.recv(30000, socket.MSG_WAITALL)) == 30000
