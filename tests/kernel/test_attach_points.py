"""Control totals of attach points that come to their end."""

import os
import resource
import socket

import pytest
from tests.kernel.ledger import NOTHING, attached
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.patience import eventually

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.meters import Meters
from sockledger.ledger.ledger import ROOT, AttachPoint, Ledger
from sockledger.ledger.reconciliation import Reconciliation


def test_gone_is_no_count_of_0(parent: Cgroup, netns: Netns, caplog: pytest.LogCaptureFixture) -> None:
    with new_cgroup(parent.path, "root") as cgroup:
        root = CgroupRoot(cgroup.path)
        path = DataPath(root, cgroups=10, sockets=10, connections=1000)
        path.attach()
        assert path.control(root.id) == NOTHING
        meters = Meters(["/*"], root, path)
        ledger = Ledger(path, root, meters)
        with new_cgroup(cgroup.path, "below") as below:
            ledger.flush()  # attaches the meter
            with below.joined(), netns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", ("127.0.0.1", 9))
            ledger.flush()
            assert {point: count.transmit_bytes for point, count in ledger.books.attach_points.items()} == {
                ROOT: 29,
                AttachPoint("/below", (str(below.id),)): 29,
            }
        eventually(lambda: not list(meters.read()), "gone since the last look")
        ledger.flush()
        assert ledger.books.attach_points.keys() == {ROOT}
    eventually(lambda: path.control(root.id) is None, "the kernel lets go of it in its own time")
    for _ in range(2):
        ledger.flush()
    assert ledger.books.attach_points == {}
    at_root = {"sl_receive", "sl_transmit", "sl_tcp_events", "sl_udp_released"}
    assert path.detached() == at_root
    assert caplog.text.count("a program has been detached") == len(at_root)
    assert ledger.reconciliation == Reconciliation(), "no false alarm"
    path.close()
    os.close(root.fd)


def test_a_scan_without_descriptors(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    """It finds nothing, and that is no end."""
    with attached(below) as path:
        meters = Meters(["/*"], below, path)
        meters.follow()
        links = {name: link.id for name, link in path.links.held.items()}
        with client.joined(), netns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", 9))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.scandir(below.path)
            meters.follow()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [(number, count.transmit_bytes) for number, _, count in meters.read()] == [(client.id, 29)]
        assert {name: link.id for name, link in path.links.held.items()} == links
