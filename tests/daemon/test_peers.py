"""Bytes by class of peers, up to the page: as configured, as a file says that changes, as the node has it."""

import os
import signal
import socket
from collections import Counter
from pathlib import Path

from tests.daemon.support import Page, Surroundings
from tests.daemon.traffic import send_datagrams
from tests.kernel.machine import Cgroup, Netns, new_cgroup, run
from tests.patience import eventually
from tests.scrapes import Scrapes

Truth = Counter[tuple[str, str]]  # of bytes sent, by cgroup and class


def sent(page: Page) -> dict[tuple[str, str], int]:
    return {
        (dict(labels)["cgroup"], dict(labels)["peer"]): int(value)
        for (name, labels), value in page.samples.items()
        if name == "sockledger_peer_transmit_bytes_total" and ("cgroup", "") not in labels
    }


def talk(netns: Netns, cgroup: Cgroup, address: str, number: int) -> int:
    """Send datagrams to an address of the loopback; return the bytes."""
    with netns.entered(), cgroup.joined(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(number):
            sender.sendto(bytes(72), (address, 9))
    return 100 * number


def test_as_a_file_says(place: Surroundings, netns: Netns, tmp_path: Path) -> None:
    """While it changes, is refused, with SIGKILL between; no counter falls, and none is lost."""
    place.pinned = True
    file = tmp_path / "networks.yml"
    file.write_text("zone-a: [127.1.0.0/16]")
    flag = place.configure(f"networks_file: {file}\nservice_networks: [127.9.0.0/16]")
    scrapes, truth = Scrapes(), Truth()
    daemon = place.run(flag)
    with new_cgroup(place.cgroup.path, "a") as a, new_cgroup(place.cgroup.path, "b") as b:

        def exchange(**classes: str) -> None:
            for number, (address, name) in enumerate(classes.items(), 1):
                for cgroup in (a, b):
                    key = f"/{cgroup.path.name}", name
                    truth[key] += talk(netns, cgroup, address.replace("_", ".").strip("."), number)
            for _ in range(2):
                scrapes.take("one", daemon.settled("one").text)
            assert sent(Page(scrapes.increases("one"))) == truth

        exchange(_127_1_0_1="zone-a", _127_2_0_1="loopback", _127_9_0_1="service")
        file.write_text("zone-b: [127.1.0.0/16, 127.2.0.1/32]")
        eventually(lambda: daemon.lines("networks in use") == 2)
        exchange(_127_1_0_1="zone-b", _127_2_0_1="zone-b", _127_2_0_2="loopback")
        file.write_text("zone-c: [127.1.0.0/99]")
        eventually(lambda: daemon.page().sum("config_last_reload_successful") == 0)
        assert daemon.lines("networks refused, going on with the old ones", str(file)) == 1
        exchange(_127_1_0_1="zone-b")
        daemon.send(signal.SIGHUP)
        eventually(lambda: daemon.lines("configuration refused, going on with the old one") == 1)
        exchange(_127_1_0_1="zone-b")
        file.write_text("zone-a: [127.1.0.0/16]")
        eventually(lambda: daemon.lines("networks in use") == 3)
        assert daemon.page().sum("config_last_reload_successful") == 0, "SIGHUP's was refused: no other came"
        daemon.process.kill()
        daemon.process.wait()
        truth["/a", "zone-a"] += talk(netns, a, "127.1.0.1", 3)
        daemon = place.run(flag)
        exchange(_127_1_0_1="zone-a")
        page = daemon.settled()
        for direction in ("receive", "transmit"):
            of = {"cgroup": "/a", "family": "ipv4"}
            total = page.sum(f"{direction}_bytes_total", **of)
            assert page.sum(f"peer_{direction}_bytes_total", cgroup="/a") == total


def test_a_file_with_too_many(place: Surroundings, netns: Netns, tmp_path: Path) -> None:
    """It leaves nothing behind that what comes after would have no room for, nor the next daemon."""
    place.pinned = True
    file = tmp_path / "networks.yml"
    file.write_text("a: [127.1.0.0/16]")
    flag = place.configure(f"networks_file: {file}")
    daemon = place.run(flag)
    file.write_text("".join(f"n{n}: [10.{n // 256}.{n % 256}.0/24]\n" for n in range(1100)))
    eventually(lambda: daemon.page().sum("config_last_reload_successful") == 0)
    assert daemon.lines("there are 1100 classes; allowed: up to 512") == 1
    file.write_text("b: [127.1.0.0/16]")
    eventually(lambda: daemon.lines("networks in use") == 2)
    assert daemon.page().sum("config_last_reload_successful") == 1
    daemon.process.kill()
    daemon.process.wait()
    daemon = place.run(flag)
    with new_cgroup(place.cgroup.path, "a") as a:
        octets = talk(netns, a, "127.1.0.1", 3)
        assert sent(daemon.settled()) == {("/a", "b"): octets}


def test_nothing_without_networks(place: Surroundings, netns: Netns) -> None:
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run()
        send_datagrams(netns, a, a)
        assert "sockledger_peer" not in daemon.settled().text
        flag = place.configure("networks: {a: [127.0.0.0/8]}")
        daemon.stop()
        daemon = place.run(flag, "--no-collector.peers")
        send_datagrams(netns, a, a)
        assert "sockledger_peer" not in daemon.settled().text


def test_the_nodes_own(place: Surroundings, netns: Netns) -> None:
    """To an address of its own, to a network that comes meanwhile, and to the loopback."""
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run(place.configure("node_networks: [host, subnet]"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            own = probe.getsockname()[0]
        with a.joined(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for address in (own, "127.0.0.1"):
                sender.sendto(bytes(72), (address, 9))
        assert sent(daemon.settled()) == {("/a", "host"): 100, ("/a", "loopback"): 100}
        cable = f"sl{os.getpid()}"
        run("ip", "link", "add", cable, "type", "veth", "peer", "name", "far", "netns", netns.name)
        netns.run("ip", "address", "add", "198.51.100.2/24", "dev", "far")
        netns.run("ip", "link", "set", "far", "up")
        run("ip", "address", "add", "198.51.100.1/24", "dev", cable)
        run("ip", "link", "set", cable, "up")
        eventually(lambda: daemon.lines("networks in use") == 2)
        with a.joined(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for address in ("198.51.100.2", "198.51.100.1"):
                sender.sendto(bytes(172), (address, 9))
        assert sent(daemon.settled()) == {
            ("/a", "host"): 300,
            ("/a", "loopback"): 100,
            ("/a", "subnet"): 200,
        }
