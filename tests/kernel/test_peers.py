"""Bytes by the class of the address at their other end, against the kernel's packet filter."""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from tests.kernel.ledger import (
    ALL_PARTS,
    NOTHING,
    attached,
    branches,
    final_difference,
    flush,
    minus,
    record_of,
    repeating,
    seats,
)
from tests.kernel.machine import CLIENT4, CLIENT6, SERVER4, SERVER6, Cgroup, Netns, veth_pair
from tests.kernel.objects import Change, build
from tests.kernel.tcp import disconnect, tcp_info
from tests.kernel.test_pins import pins, start
from tests.kernel.traffic import Generator

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.networks import OTHER, UNKNOWN
from sockledger.kernel.pins import Pins
from sockledger.kernel.sums import Traffic

__all__ = ["pins"]  # a fixture

PARTS = Parts(**{**vars(ALL_PARTS), "peers": True})
LEFT = 1 << 63 | 2  # bpf/ledger.h

# The narrowest that has an address counts, also where it is in one that is in another of its own class.
NETWORKS = {
    "10.0.0.0/8": "wide",
    "10.1.0.0/16": "narrow",
    "10.1.128.0/17": "wide",
    "10.1.2.3/32": "single",
    "2001:db8:a::/48": "wide",
    "2001:db8:a:1::/64": "narrow",
    "2001:db8:a:1:8000::/65": "wide",
    "2001:db8:a:1::3/128": "single",
}
CLASSES = {
    "10.2.0.1": "wide",
    "10.1.0.1": "narrow",
    "10.1.128.1": "wide",
    "10.1.2.3": "single",
    "10.1.2.4": "narrow",
    SERVER4: OTHER,
    "2001:db8:a:2::1": "wide",
    "2001:db8:a:1::1": "narrow",
    "2001:db8:a:1:8000::1": "wide",
    "2001:db8:a:1::3": "single",
    "2001:db8:a:1::4": "narrow",
    SERVER6: OTHER,
}
V4, V6 = ([each for each in CLASSES if (":" in each) is wanted] for wanted in (False, True))


def networks(**others: str) -> dict[IPv4Network | IPv6Network, str]:
    return {ip_network(each): name for each, name in {**NETWORKS, **others}.items()}


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(frozen=True)
class Link:
    """Two namespaces; the far one has all addresses, and the near one's packet filter counts for each."""

    near: Netns
    far: Netns

    def counted(self) -> dict[str, Traffic]:
        """What has come from and gone to each address."""
        listed = json.loads(self.near.run("nft", "--json", "list", "counters"))["nftables"]
        found = {each["counter"]["name"]: each["counter"] for each in listed if "counter" in each}
        figures = {
            address: [found[f"{way}_{ip_address(address).packed.hex()}"] for way in ("from", "to")]
            for address in CLASSES
        }
        return {address: octets(came["bytes"], went["bytes"]) for address, (came, went) in figures.items()}

    def truth(self) -> "ByClass":
        return classed(self.counted(), CLASSES)


ByClass = dict[tuple[str, str], Traffic]  # and family


def octets(received: int, sent: int) -> Traffic:
    """Without packets: the filter counts super-packets as one."""
    return Traffic(received, 0, sent, 0)


def classed(counted: Mapping[str, Traffic], classes: Mapping[str, str]) -> ByClass:
    found: ByClass = {}
    for address, traffic in counted.items():
        if any(traffic):
            key = classes[address], f"ipv{ip_address(address).version}"
            found[key] = found.get(key, NOTHING).plus(traffic)
    return found


@pytest.fixture
def link() -> Iterator[Link]:
    with veth_pair(offload=False) as (near, far):
        counters, rules = "", {"input": "", "output": ""}
        for address in CLASSES:
            ip = "ip6" if ":" in address else "ip"
            if address not in (SERVER4, SERVER6):
                far.run("ip", "address", "add", address, "dev", "lo")
                near.run("ip", "route", "add", address, "via", SERVER6 if ip == "ip6" else SERVER4)
            for hook, direction, end in (("input", "from", "saddr"), ("output", "to", "daddr")):
                name = f"{direction}_{ip_address(address).packed.hex()}"
                counters += f"counter {name} {{}}\n"
                rules[hook] += f"{ip} {end} {address} counter name {name}\n"
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 10\n{each} }}\n"
            for hook, each in rules.items()
        )
        near.run("nft", "-f", "-", stdin=f"table inet peers {{ {counters} {chains} }}")
        yield Link(near, far)


def by_class(path: DataPath, cgroup: Cgroup) -> ByClass:
    flush(path)
    found: ByClass = {}
    for key, traffic in path.totals():
        if key.cgroup_id == cgroup.id and any(traffic):
            name = path.networks.name(key.peer), path.labels.family[key.family]
            more = octets(traffic.receive_bytes, traffic.transmit_bytes)
            found[name] = found.get(name, NOTHING).plus(more)
    return found


@contextmanager
def echoing(link: Link) -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """The far end: a UDP socket that is echoed by hand, and a TCP listener, both for all addresses."""
    with link.far.entered():
        datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with datagrams, listener:
        datagrams.bind(("::", listener.getsockname()[1]))
        for each in (datagrams, listener):
            each.settimeout(20)
        # the reply comes from the address that was asked
        yield listener.getsockname()[1], datagrams, listener


def new_udp(link: Link, cgroup: Cgroup, family: socket.AddressFamily) -> socket.socket:
    with link.near.entered(), cgroup.joined():
        made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(20)
    return made


def talk_tcp(link: Link, cgroup: Cgroup, listener: socket.socket, address: str, size: int) -> None:
    """A connection from its beginning to its end, which the far side begins, so that no socket is left."""
    port = listener.getsockname()[1]
    with link.near.entered(), cgroup.joined():
        near = socket.create_connection((address, port), 20)
    far, _ = listener.accept()
    far.settimeout(20)
    with near, far:
        near.sendall(bytes(size))
        _receive(far, size)
        far.sendall(bytes(2 * size))
        _receive(near, 2 * size)
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""


def _receive(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(sock.recv(size))


def test_classes(link: Link, below: CgroupRoot, client: Cgroup) -> None:
    """Of sockets that are connected, of some that are not, of connections; over IPv4 and IPv6."""
    with attached(below, parts=PARTS) as path, echoing(link) as (port, _, listener):
        path.networks.put(networks())
        for addresses in (V4, V6):
            with new_udp(link, client, family_of(addresses[0])) as free:
                for number, address in enumerate(addresses, 1):
                    with new_udp(link, client, family_of(address)) as fixed:
                        fixed.connect((address, port))
                        for _ in range(number):
                            fixed.send(bytes(100))
                    for _ in range(number):
                        free.sendto(bytes(50), (address, port))
                    talk_tcp(link, client, listener, address, 1000 * number)
        assert {name for name, _ in link.truth()} == {"wide", "narrow", "single", OTHER}
        assert by_class(path, client) == link.truth()
        assert final_difference(path, below) == NOTHING


SYNACK = 40 + 40  # over IPv6, with its options


def test_what_comes_in(link: Link, below: CgroupRoot, client: Cgroup, *, ipv6_synack: bool) -> None:
    """A listener and an unconnected socket here, to which all those addresses talk."""
    with attached(below, parts=PARTS) as path:
        path.networks.put(networks())
        with link.near.entered(), client.joined():
            listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with listener, datagrams:
            datagrams.bind(("::", 0))
            for number, address in enumerate(CLASSES, 1):
                here = CLIENT6 if ":" in address else CLIENT4
                with link.far.entered():
                    far = socket.socket(family_of(address), socket.SOCK_DGRAM)
                    connected = socket.create_connection(
                        (here, listener.getsockname()[1]), 20, source_address=(address, 0)
                    )
                near, _ = listener.accept()
                with far, connected, near:
                    far.bind((address, 0))
                    for _ in range(number):
                        far.sendto(bytes(10 * number), (here, datagrams.getsockname()[1]))
                        _, sender = datagrams.recvfrom(1000)
                        datagrams.sendto(bytes(7), sender)
                    connected.sendall(bytes(number))
                    _receive(near, number)
                    connected.shutdown(socket.SHUT_WR)
                    assert near.recv(1) == b""
                    near.shutdown(socket.SHUT_WR)
                    assert connected.recv(1) == b""
            truth = link.truth()
            for address in V6 if not ipv6_synack else ():
                key = CLASSES[address], "ipv6"
                truth[key] = minus(truth[key], octets(0, SYNACK))
            assert by_class(path, client) == truth
        assert final_difference(path, below) == NOTHING


SETTINGS = (("a", "b"), ("b", "a"), ("b", "b"), ("a", "a"), ("a", "b"))  # what two of the addresses become


@pytest.mark.parametrize("sockets", [65536, 1], ids=["seated", "written through"])
def test_changed_while_connected(
    link: Link, below: CgroupRoot, client: Cgroup, tmp_path: Path, sockets: int
) -> None:
    """What living sockets send counts for the new class from the next packet on, and not before."""
    image = build(tmp_path, defines="-DBRANCH_COUNTERS")
    with (
        attached(below, image, parts=PARTS, sockets=sockets) as path,
        echoing(link) as (port, _, listener),
        ExitStack() as stack,
    ):
        free = stack.enter_context(new_udp(link, client, socket.AF_INET))
        connected = []
        path.networks.put(networks())
        for address in ("10.1.0.1", "2001:db8:a:1::1"):
            udp = stack.enter_context(new_udp(link, client, family_of(address)))
            udp.connect((address, port))
            with link.near.entered(), client.joined():
                near = stack.enter_context(socket.create_connection((address, port), 20))
            connected.append((udp, near, stack.enter_context(listener.accept()[0])))
        before = link.counted()
        truth = classed(before, CLASSES)
        assert by_class(path, client) == truth
        for turn, (v4, v6) in enumerate(SETTINGS, 1):
            path.networks.put(networks(**{"10.1.0.0/24": v4, "2001:db8:a:1::/80": v6}))
            for udp, near, far in connected:
                for _ in range(turn):
                    udp.send(bytes(10))
                    free.sendto(bytes(20), ("10.1.0.1", port))
                    free.sendto(bytes(30), ("10.2.0.1", port))
                near.sendall(bytes(turn))
                _receive(far, turn)
                far.sendall(bytes(turn))
                _receive(near, turn)
            settle(link)
            now = link.counted()
            more = {address: minus(now[address], before[address]) for address in now}
            before = now
            for key, traffic in classed(more, {**CLASSES, "10.1.0.1": v4, "2001:db8:a:1::1": v6}).items():
                truth[key] = truth.get(key, NOTHING).plus(traffic)
            assert by_class(path, client) == truth
        taken = branches(path)
        if sockets > 1:
            assert min(taken["LEFT"], taken["PEER_REFRESHED"], taken["PEER_OTHER"]) > 0
        assert final_difference(path, below) == NOTHING


SERVICE = """table ip services {
    chain output { type nat hook output priority -100; ip daddr 10.96.0.1 dnat to 10.1.0.1; }
}"""


def test_a_service(link: Link, below: CgroupRoot, client: Cgroup) -> None:
    """Packets for it have a pod's address when they are counted. A connection is with the service."""
    link.near.run("nft", "-f", "-", stdin=SERVICE)
    link.near.run("ip", "route", "add", "10.96.0.0/16", "via", SERVER4)
    with attached(below, parts=PARTS) as path, echoing(link) as (_, _, listener):
        path.networks.put(networks(**{"10.96.0.0/16": "service"}))
        talk_tcp(link, client, listener, "10.96.0.1", 10_000)
        truth = link.counted()["10.1.0.1"]
        assert min(truth.receive_bytes, truth.transmit_bytes) > 10_000
        assert by_class(path, client) == {("service", "ipv4"): truth}
        assert node(path, CONNECTS) == {"service": 1}


def settle(link: Link) -> None:
    """Wait until no acknowledgement is on its way any more."""
    before: dict[str, Traffic] = {}
    while before != (before := link.counted()):
        time.sleep(0.1)


def test_connected_anew(link: Link, below: CgroupRoot, client: Cgroup) -> None:
    """One socket after another peer, and none; a TCP socket that is connected a second time."""
    with attached(below, parts=PARTS) as path, echoing(link) as (port, _, listener):
        path.networks.put(networks())
        for addresses in (V4, V6):
            with new_udp(link, client, family_of(addresses[0])) as udp:
                for number, address in enumerate(addresses * 2, 1):
                    udp.connect((address, port))
                    for _ in range(number):
                        udp.send(bytes(number))
                    disconnect(udp)
                    udp.sendto(bytes(number), (addresses[number % 3], port))
            with link.near.entered(), client.joined():
                near = socket.socket(family_of(addresses[0]))
            with near:
                for number, address in enumerate(addresses, 1):
                    near.connect((address, port))
                    far, _ = listener.accept()
                    with far:
                        near.sendall(bytes(number))
                        _receive(far, number)
                        settle(link)
                        disconnect(near)
        assert by_class(path, client) == link.truth()
        assert final_difference(path, below) == NOTHING


@pytest.mark.parametrize("period", [None, 0.001])
def test_changed_under_traffic(
    root: CgroupRoot, generator: Generator, below: CgroupRoot, period: float | None
) -> None:
    """Whatever the class, each byte counts once."""
    classes = [ip_network(each) for each in ("127.0.0.0/8", "127.0.0.0/30", "::/0", "::1/128", "0.0.0.0/0")]
    turn = 0

    with attached(below, parts=PARTS, cgroups=10_000) as path:

        def change() -> None:
            nonlocal turn
            turn += 1
            path.networks.put({network: f"class-{(turn + at) % 7}" for at, network in enumerate(classes)})

        change()
        with repeating(change, 0.002), repeating(path.flush_sockets, period):
            results = generator.run_together({"tcp": 2000, "udp": 1000, "flood": 1000})
        assert turn > 5
        found = by_class(path, generator.client)
        assert {name for name, _ in found} == {f"class-{number}" for number in range(7)}
        assert final_difference(path, below) == NOTHING
        assert results


def test_drops_of_a_socket_that_changes_its_class(link: Link, below: CgroupRoot, client: Cgroup) -> None:
    """What it has dropped up to then is counted, though it is another seat's from then on."""
    with attached(below, parts=PARTS) as path, echoing(link) as (port, far, _):
        path.networks.put(networks())
        with new_udp(link, client, socket.AF_INET) as udp:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            udp.connect(("10.1.0.1", port))
            udp.send(b"x")
            assert far.recv(10) == b"x"
            path._note_known(1)  # KNOWN_SEATED: who has a seat has dropped nothing before
            with link.far.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("10.1.0.1", 0))
                udp.connect(other.getsockname())
                for _ in range(50):
                    other.sendto(bytes(1000), udp.getsockname())
            path.networks.put(networks(**{"10.1.0.0/24": "another"}))
            udp.send(b"x")
            flush(path)
            path.flush_udp()
            table = link.near.run("cat", "/proc/net/udp").splitlines()[1:]
            dropped = sum(int(line.split()[-1]) for line in table)
            assert dropped > 0
            assert record_of(path, "udp_totals", client.id)["receive_drops"] == dropped


def test_seats_that_were_left(link: Link, below: CgroupRoot, client: Cgroup) -> None:
    """They are free two flushes later."""
    with attached(below, parts=PARTS) as path, echoing(link) as (port, _, _):
        path.networks.put(networks())
        with new_udp(link, client, socket.AF_INET) as udp:
            udp.connect(("10.1.0.1", port))
            for turn in range(3):
                path.networks.put(networks(**{"10.1.0.0/24": f"class-{turn}"}))
                udp.send(b"x")
            ours = [each for each in seats(path) if each["cgroup_id"] == client.id]
            assert sum(each["owner"] == LEFT for each in ours) == 2
            for _ in range(2):
                path.flush_sockets()
                udp.send(b"x")
            assert sum(each["owner"] != 0 for each in seats(path) if each["cgroup_id"] == client.id) == 1


# ---- the node's TCP


def node(path: DataPath, name: str) -> dict[str, int]:
    """A figure of the node by class, where it is not 0."""
    path.flush_tcp()
    found = {peer: sum_of(members, name) for peer, members in path.node_totals().items()}
    return {peer: value for peer, value in found.items() if value}


def sum_of(members: Mapping[str, int], name: str) -> int:
    return sum(value for member, value in members.items() if member.startswith(name))


RTTS, CONNECTS = (f"histograms.measured[{measure}].buckets" for measure in (0, 1))


@pytest.mark.parametrize("flushes", [0, 1], ids=["at the end", "while it lives"])
def test_connections_of_the_node(link: Link, below: CgroupRoot, client: Cgroup, flushes: int) -> None:
    """How long connecting took, round trips, and what was sent again, by class."""
    lossy = "table inet lossy { chain input { type filter hook input priority 0; tcp flags & psh == psh "
    link.far.run("nft", "-f", "-", stdin=f"{lossy} numgen inc mod 3 == 0 drop; }}; }}")
    connects: Counter[str] = Counter()
    retransmitted: Counter[str] = Counter()
    with attached(below, parts=PARTS) as path, echoing(link) as (port, _, listener):
        path.networks.put(networks())
        for address, name in CLASSES.items():
            with link.near.entered(), client.joined():
                near = socket.create_connection((address, port), 20)
            far, _ = listener.accept()
            connects[name] += 1
            with near, far:
                for _ in range(4):
                    near.sendall(b"x")
                    _receive(far, 1)
                for _ in range(flushes):
                    path.flush_tcp()
                far.shutdown(socket.SHUT_WR)
                assert near.recv(1) == b""
                retransmitted[name] += tcp_info(near)["total_retrans"]
                near.shutdown(socket.SHUT_WR)
                assert far.recv(1) == b""
        assert sum(retransmitted.values()) > 10
        assert node(path, CONNECTS) == connects
        assert node(path, RTTS) == {name: each * (1 + flushes) for name, each in connects.items()}
        assert node(path, "retransmitted_segments") == +retransmitted


# ---- names of classes


def test_numbers_stay(below: CgroupRoot, pins: Pins, link: Link, client: Cgroup) -> None:
    """The next daemon, with other networks, knows what those of before were called."""
    with closing(start(below, pins, parts=PARTS)) as path, echoing(link) as (_, _, listener):
        path.networks.put(networks())
        talk_tcp(link, client, listener, "10.1.0.1", 100)
        first = by_class(path, client)
    with closing(start(below, pins, parts=PARTS)) as path, echoing(link) as (_, _, listener):
        path.networks.put({ip_network("10.0.0.0/8"): "new", ip_network("10.1.0.0/16"): "single"})
        talk_tcp(link, client, listener, "10.2.0.1", 100)
        found = by_class(path, client)
        assert found == {**first, ("new", "ipv4"): first["narrow", "ipv4"]}
        for path_of_names in pins.of_name("class_names"):
            path_of_names.unlink()
    with closing(start(below, pins, parts=PARTS)) as path, echoing(link) as (_, _, listener):
        path.networks.put({ip_network("10.0.0.0/8"): "newest"})
        talk_tcp(link, client, listener, "10.2.0.1", 100)
        both = first["narrow", "ipv4"].plus(first["narrow", "ipv4"])
        assert by_class(path, client) == {
            (UNKNOWN, "ipv4"): both,
            ("newest", "ipv4"): first["narrow", "ipv4"],
        }


def test_classes_counted_while_no_daemon_runs(
    below: CgroupRoot, pins: Pins, link: Link, client: Cgroup
) -> None:
    """By the networks of the last one, and by the next one's on living connections."""
    with echoing(link) as (port, _, _), new_udp(link, client, socket.AF_INET) as udp:
        udp.connect(("10.1.0.1", port))
        for turn in range(3):
            with closing(start(below, pins, parts=PARTS)) as path:
                path.networks.put(networks(**{"10.1.0.0/24": f"class-{turn}"}))
            for _ in range(turn + 1):
                udp.send(bytes(72))
        with closing(start(below, pins, parts=PARTS)) as path:
            assert by_class(path, client) == {
                (f"class-{turn}", "ipv4"): octets(0, 100 * (turn + 1)) for turn in range(3)
            }


def test_switched_off_and_on(below: CgroupRoot, pins: Pins, link: Link, client: Cgroup) -> None:
    """Without networks nothing has a class; what had one goes on when there are some again."""
    with echoing(link) as (port, _, _), new_udp(link, client, socket.AF_INET) as udp:
        udp.connect(("10.1.0.1", port))
        for turn in range(3):
            with closing(start(below, pins, parts=ALL_PARTS if turn == 1 else PARTS)) as path:
                if turn != 1:
                    path.networks.put(networks())
                udp.send(bytes(72))
        with closing(start(below, pins, parts=PARTS)) as path:
            flush(path)
            found = {key.peer: each.transmit_packets for key, each in path.totals() if any(each)}
            assert {path.networks.name(peer) if peer else "": each for peer, each in found.items()} == {
                "": 1,
                "narrow": 2,
            }


def test_switched_off_under_traffic(
    below: CgroupRoot, pins: Pins, link: Link, client: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds a seat while programs are replaced, by those of before, leaves it then."""
    with echoing(link) as (port, _, _), new_udp(link, client, socket.AF_INET) as udp:
        with closing(start(below, pins, parts=PARTS)) as path:
            path.networks.put(networks())

        def send_one(path: DataPath) -> bool:
            udp.sendto(bytes(72), ("10.1.0.1", port))
            return True

        with monkeypatch.context() as patched:
            patched.setattr(DataPath, "_look_for_older", send_one)
            off = start(below, pins, parts=ALL_PARTS)
        with closing(off):
            for _ in range(5):
                udp.sendto(bytes(72), ("10.2.0.1", port))
        with closing(start(below, pins, parts=PARTS)) as path:
            flush(path)
            found = {key.peer: each.transmit_packets for key, each in path.totals() if any(each)}
            assert {path.networks.name(peer) if peer else "": each for peer, each in found.items()} == {
                "": 5,
                "narrow": 1,
            }


def test_starts_that_fail(below: CgroupRoot, pins: Pins) -> None:
    """With networks for the first time, as where their file is missing, again and again: nothing grows."""
    start(below, pins, parts=ALL_PARTS).close()
    for _ in range(5):
        path = DataPath(
            below, cgroups=1000, sockets=65536, connections=100_000, parts=PARTS, pins=pins, lease=86400
        )
        path.undo()
        path.close()
        assert len(pins.of_name("node_totals")) == 2
    with closing(start(below, pins, parts=PARTS)) as path:
        assert path.maps["node_totals"].max_entries == 1026
        assert len(pins.of_name("node_totals")) == 1


def test_sent_elsewhere(link: Link, below: CgroupRoot, client: Cgroup) -> None:
    """What a connected socket sends to others is written through, and it keeps its seat."""
    with attached(below, parts=PARTS) as path, echoing(link) as (port, _, _):
        path.networks.put(networks())
        with new_udp(link, client, socket.AF_INET) as udp:
            udp.connect(("10.1.0.1", port))
            for _ in range(20):
                udp.send(bytes(72))
                udp.sendto(bytes(72), ("10.2.0.1", port))
            assert LEFT not in [each["owner"] for each in seats(path)]
            assert by_class(path, client) == link.truth()
            assert not any(path.lost_updates().values())


def numbered(names: str, numbers: range) -> dict[IPv4Network | IPv6Network, str]:
    return {ip_network(f"10.9.{n // 256}.{n % 256}"): f"{names}{n}" for n in numbers}


def test_more_names_than_there_is_room_for(link: Link, below: CgroupRoot, pins: Pins, client: Cgroup) -> None:
    """What nothing is counted by is forgotten; what finds no room counts as other."""
    with closing(start(below, pins, parts=PARTS)) as path, echoing(link) as (port, _, listener):
        room = path.maps["class_names"].max_entries
        path.networks.put(networks())
        assert path.networks.put({**networks(), **numbered("a", range(room))})  # more than configuration may
        talk_tcp(link, client, listener, "10.1.2.3", 100)
        with new_udp(link, client, socket.AF_INET) as udp:
            udp.sendto(bytes(72), ("10.2.0.1", port))
    with closing(start(below, pins, parts=PARTS)) as path, echoing(link) as (port, _, _):
        more = networks(**{"10.1.0.0/24": "new"})
        assert path.networks.put(more) == {"new"}, "the programs of before may have had any of them"
        with new_udp(link, client, socket.AF_INET) as udp:
            udp.sendto(bytes(72), ("10.1.0.1", port))
            assert by_class(path, client)[OTHER, "ipv4"] == octets(0, 100)
            assert path.networks.put({**more, **numbered("b", range(room - 4))}) == set()
            udp.sendto(bytes(72), ("10.1.0.1", port))
            found = by_class(path, client)
            assert found["new", "ipv4"] == found["wide", "ipv4"] == octets(0, 100)
        (single,) = node(path, CONNECTS)
        assert single == "single"
        assert {"wide", "single", "new"} <= set(path.networks.names().values())


# ---- broken on purpose

MUTANTS = {
    "the other end is mistaken": Change(
        "peers.h",
        "direction == RECEIVE ? offsetof(struct iphdr",
        "direction == TRANSMIT ? offsetof(struct iphdr",
    ),
    "a class is kept for good": Change("peers.h", "p->generation == generation() && is_peer", "is_peer"),
    "another address is not noticed": Change("peers.h", " && address->words[0] == words[0];", ";"),
    "half of an address is enough": Change("peers.h", "address->words[3] == words[3];", "true;"),
    "nobody leaves": Change(
        "traffic.h", "!settings.peers || is_connected_to(skb, &peer->address)", "!settings.peers"
    ),
    "what is written through has no class": Change("traffic.h", "	key.peer = peer->class;\n", ""),
    "any seat will do": Change(
        "traffic.h", "if (s->tag == tag && s->peer == peer->class) {", "if (s->tag == tag && s->peer) {"
    ),
}


@pytest.mark.parametrize("name", ["", *MUTANTS])
def test_mutants(link: Link, below: CgroupRoot, client: Cgroup, tmp_path: Path, name: str) -> None:
    """Each counts something for another class, or a socket stays where it has no seat any more."""
    image = build(tmp_path, (MUTANTS[name],)) if name else None
    with attached(below, image, parts=PARTS) as path, echoing(link) as (port, _, _), ExitStack() as stack:
        udp, free, free6 = (
            stack.enter_context(new_udp(link, client, family))
            for family in (socket.AF_INET, socket.AF_INET, socket.AF_INET6)
        )
        path.networks.put(networks())
        udp.connect(("10.1.0.1", port))
        udp.send(b"x")
        path.networks.put(networks(**{"10.1.0.0/24": "later"}))
        udp.send(b"xy")
        for address in V4:
            free.sendto(b"x", (address, port))
            udp.connect((address, port))
            udp.send(b"xyz")
        for address in V6[1:]:
            free6.sendto(b"x", (address, port))
        left = sum(each["owner"] == LEFT for each in seats(path))
        found = by_class(path, client)
        truth = classed(link.counted(), {**CLASSES, "10.1.0.1": "later"})
        truth["later", "ipv4"] = minus(truth["later", "ipv4"], octets(0, 29))
        truth["narrow", "ipv4"] = truth["narrow", "ipv4"].plus(octets(0, 29))
        assert (found == truth and left > 0) is not bool(name)
