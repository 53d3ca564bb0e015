"""The node's addresses and networks: as they are, and as they come and go."""

import errno
import sys
from contextlib import closing

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from tests.kernel.machine import Netns
from tests.patience import eventually

from sockledger.kernel.host import in_host_network
from sockledger.workloads.networks import HOST, SUBNET
from sockledger.workloads.node_networks import NodeNetworks

HERE = "from sockledger.kernel.host import in_host_network; print(in_host_network())"


def test_where_we_are(netns: Netns) -> None:
    assert in_host_network()
    assert netns.run(sys.executable, "-c", HERE) == "False\n"


def test_more_changes_than_the_kernel_keeps(netns: Netns) -> None:
    """Some are dropped; that is a change, and no fault."""
    with netns.entered():
        node = NodeNetworks([SUBNET])
    with closing(node):
        for verb in ("add", "del"):
            routes = (f"route {verb} 10.{n // 256}.{n % 256}.0/24 dev lo\n" for n in range(5000))
            netns.run("ip", "-batch", "-", stdin="".join(routes))
        assert node.have_changed()
        assert not node.have_changed()
        netns.run("ip", "route", "add", "192.0.2.0/24", "dev", "lo")
        assert node.have_changed()
        assert networks(node) == {"192.0.2.0/24": SUBNET}


def networks(node: NodeNetworks) -> dict[str, str]:
    """All but those of link-local addresses, which the kernel makes up."""
    found = {str(network): name for network, name in node.networks().items()}
    return {network: name for network, name in found.items() if not network.startswith("fe80:")}


def test_come_and_go(netns: Netns) -> None:
    with netns.entered():
        both, host = NodeNetworks([HOST, SUBNET]), NodeNetworks([HOST])
    with closing(both), closing(host):
        assert networks(both) == {}
        netns.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far")
        netns.run("ip", "link", "set", "far", "up")
        netns.run("ip", "link", "set", "uplink", "up")
        netns.run("ip", "address", "add", "192.0.2.7/24", "dev", "uplink")
        netns.run("ip", "address", "add", "2001:db8:7::7/64", "dev", "uplink", "nodad")
        netns.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
        netns.run("ip", "route", "add", "203.0.113.0/24", "dev", "uplink")
        netns.run("ip", "route", "add", "default", "via", "192.0.2.1")
        netns.run("ip", "-6", "route", "add", "2001:db8:8::/48", "via", "2001:db8:7::1")
        netns.run("ip", "-6", "route", "add", "default", "dev", "uplink")
        netns.run("ip", "address", "add", "127.0.0.2/8", "dev", "lo")
        for node in (both, host):
            eventually(node.have_changed)
        hosts = dict.fromkeys(("192.0.2.7/32", "2001:db8:7::7/128"), HOST)
        subnets = dict.fromkeys(("192.0.2.0/24", "203.0.113.0/24", "2001:db8:7::/64"), SUBNET)
        assert networks(host) == hosts
        assert networks(both) == {**subnets, **hosts}
        assert not both.have_changed()
        netns.run("ip", "address", "del", "192.0.2.7/24", "dev", "uplink")
        eventually(both.have_changed)
        assert {"192.0.2.7/32", "192.0.2.0/24"}.isdisjoint(networks(both))
        eventually(host.have_changed)
        netns.run("ip", "route", "add", "198.51.100.0/24", "dev", "uplink")
        eventually(both.have_changed)
        assert not host.have_changed(), "routes are nothing to it"


def test_routes_that_go_with_their_link(netns: Netns) -> None:
    """Of IPv4's nobody is told."""
    netns.run(
        "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"
    )
    with netns.entered():
        node = NodeNetworks([SUBNET])
    with closing(node):
        for end in ("down", "del"):
            if end == "down":
                netns.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far")
            netns.run("ip", "link", "set", "uplink", "up")
            netns.run("ip", "route", "add", "203.0.113.5/32", "dev", "uplink")
            eventually(node.have_changed)
            assert networks(node) == {"203.0.113.5/32": SUBNET}
            while node.have_changed():
                pass
            netns.run("ip", "link", *(("set", "uplink", "down") if end == "down" else ("del", "uplink")))
            eventually(node.have_changed)
            assert networks(node) == {}


def test_netlink_that_fails(netns: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NetlinkError(errno.EBUSY)

    with netns.entered():
        node = NodeNetworks([HOST])
    with closing(node):
        monkeypatch.setattr(node._dumps, "get_addr", fail)
        with pytest.raises(OSError, match="rtnetlink: Device or resource busy"):
            node.networks()
