"""Packets are wire segments, also where the kernel handles many as one."""

import errno
import socket
from collections.abc import Iterator
from math import ceil

import pytest
from tests.kernel.ledger import attached, flush, totals_of
from tests.kernel.machine import SERVER4, SERVER6, Cgroup, Netns, veth_pair
from tests.kernel.traffic import Generator, scaled
from tests.kernel.truth import settled_interface
from tests.kernel.tun import (
    GSO_UDP_L4,
    PORT,
    Family,
    Tun,
    new_tun,
    send_tcp_superpacket,
    tcp_connection,
    udp_datagram,
)

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath

IPV6_SYNACK = 40 + 40  # with all options of this kernel
UDP_GRO = 104  # include/uapi/linux/udp.h; the socket takes super-packets whole
families = pytest.mark.parametrize("family", Family, ids=lambda family: family.name.lower())
# payload and gso_size: one segment short of full, all full, a segment with one byte, a single one
shapes = pytest.mark.parametrize(
    ("payload", "size"), [(29_999, 1000), (30_000, 1000), (30_001, 1000), (999, 1000), (60_000, 1448)]
)


@pytest.fixture
def tun(netns: Netns) -> Iterator[Tun]:
    with new_tun(netns) as tun:
        yield tun


@pytest.fixture
def path(root: CgroupRoot) -> Iterator[DataPath]:
    with attached(root) as path:
        yield path


def received(path: DataPath, cgroup: Cgroup, protocol: str, family: Family) -> tuple[int, int]:
    flush(path)
    traffic = totals_of(path, cgroup.id)[protocol, family.name.lower()]
    return traffic.receive_bytes, traffic.receive_packets


@families
@shapes
def test_untrusted_tcp(
    tun: Tun, netns: Netns, path: DataPath, server: Cgroup, family: Family, payload: int, size: int
) -> None:
    with server.joined(), netns.entered(), tcp_connection(tun, family) as (near, sequence, acknowledged):
        bytes_before, packets_before = received(path, server, "tcp", family)
        length = send_tcp_superpacket(tun, family, sequence, acknowledged, bytes(payload), size)
        assert len(near.recv(payload, socket.MSG_WAITALL)) == payload
        bytes_after, packets_after = received(path, server, "tcp", family)
    assert packets_after - packets_before == ceil(payload / size)
    assert bytes_after - bytes_before == length


@families
@shapes
@pytest.mark.parametrize("whole", [False, True], ids=["segmented", "whole"])
def test_untrusted_udp(
    tun: Tun,
    netns: Netns,
    path: DataPath,
    server: Cgroup,
    family: Family,
    payload: int,
    size: int,
    whole: bool,
) -> None:
    with (
        server.joined(),
        netns.entered(),
        socket.socket(family.number, socket.SOCK_DGRAM) as near,
    ):
        near.setsockopt(socket.IPPROTO_UDP, UDP_GRO, whole)
        near.bind((family.address, PORT))
        near.settimeout(10)
        try:
            length = tun.send(family, socket.IPPROTO_UDP, udp_datagram(bytes(payload)), GSO_UDP_L4, size)
        except OSError as error:
            if error.errno == errno.EINVAL:
                pytest.skip("this kernel's TUN takes no UDP super-packets (Linux 6.2)")
            raise
        segments, left = ceil(payload / size), payload
        while left:
            left -= len(near.recv(65536))
    headers = 0 if whole else (segments - 1) * (family.header + 8)
    assert received(path, server, "udp", family) == (length + headers, segments)


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_segments_over_veth(
    root: CgroupRoot, path: DataPath, generator: Generator, family: int, *, ipv6_synack: bool
) -> None:
    """What the sender cuts late: our packets are TCP's own segments, our bytes those of the interface."""
    with veth_pair(offload=True) as (client, server):
        over_veth = Generator(
            generator.binary, generator.client, generator.server, client, server, (SERVER4, SERVER6)
        )
        before = settled_interface(client)
        events = over_veth.run("bulk", scaled(200), family=family).events
        passed = [after - start for after, start in zip(settled_interface(client), before, strict=True)]
        flush(path)
    key = "tcp", f"ipv{family}"
    sender, receiver = (totals_of(path, each.id)[key] for each in (generator.client, generator.server))
    reset = 1  # sent after the segments were read
    assert sender.transmit_packets == events["client_segments_out"] + reset
    assert sender.receive_packets == events["client_segments_in"]
    unseen = int(family == 6 and not ipv6_synack)
    assert (receiver.receive_packets, receiver.transmit_packets + unseen) == (
        sender.transmit_packets,
        sender.receive_packets,
    )
    assert (sender.receive_bytes, sender.transmit_bytes) == (passed[0], passed[2])
    assert (receiver.transmit_bytes + unseen * IPV6_SYNACK, receiver.receive_bytes) == (passed[0], passed[2])
    assert passed[3] * 2 < sender.transmit_packets  # there were super-packets
