"""Which networks there are: of the configuration, of a file that changes, of everybody."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest

from sockledger.config import load_networks
from sockledger.errors import UserError
from sockledger.kernel.networks import Network
from sockledger.workloads.networks import Classes, PeerNetworks

EVERYBODYS = {"127.0.0.0/8": "loopback", "::1/128": "loopback"}


class Kernel:
    """What was put there."""

    def __init__(self) -> None:
        self.puts: list[Mapping[str, str]] = []
        self.error: OSError | None = None
        self.asked = 0
        self.without_room: set[str] = set()

    def put(self, networks: Mapping[Network, str]) -> set[str]:
        self.asked += 1
        if self.error:
            raise self.error
        self.puts.append({str(network): name for network, name in networks.items()})
        return self.without_room & set(networks.values())


def test_of_users_and_of_everybody() -> None:
    kernel = Kernel()
    classes = {"a": [ip_network("10.0.0.0/8")], "mine": [ip_network("127.0.0.0/8")]}
    PeerNetworks(classes, [ip_network("10.96.0.0/12")], kernel.put).look()
    assert kernel.puts == [
        {**EVERYBODYS, "10.0.0.0/8": "a", "127.0.0.0/8": "mine", "10.96.0.0/12": "service"}
    ]


class Node:
    """What the kernel says of it."""

    def __init__(self, **networks: str) -> None:
        self.now = networks
        self.changed = False

    def have_changed(self) -> bool:
        return self.changed

    def networks(self) -> dict[Network, str]:
        return {ip_network(network): name for network, name in self.now.items()}


def test_of_the_node() -> None:
    """But a service's address is a service's, though the node has it, too."""
    kernel = Kernel()
    of_node = {"192.0.2.7/32": "host", "192.0.2.0/24": "subnet", "::2/128": "host"}
    node = Node(**of_node, **{"10.96.0.1/32": "host"})
    services = [ip_network("10.96.0.0/12"), ip_network("2001:db8::/64")]
    networks = PeerNetworks({}, services, kernel.put, node=node)  # type: ignore[arg-type]
    of_services = {"10.96.0.0/12": "service", "2001:db8::/64": "service"}
    assert kernel.puts == [{**EVERYBODYS, **of_node, **of_services}]
    node.now = {"192.0.2.8/32": "host"}
    networks.look()
    assert len(kernel.puts) == 1
    node.changed = True
    networks.look()
    assert kernel.puts[1:] == [{**EVERYBODYS, "192.0.2.8/32": "host", **of_services}]


def config_map(folder: Path, turn: int, text: str) -> None:
    """Change a file as kubelet changes that of a ConfigMap: a symbolic link is another at once."""
    (folder / f"..{turn}").mkdir()
    (folder / f"..{turn}" / "networks.yml").write_text(text)
    (folder / "..new").symlink_to(f"..{turn}")
    (folder / "..new").replace(folder / "..data")
    if not turn:
        (folder / "networks.yml").symlink_to("..data/networks.yml")


def test_a_file_that_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    config_map(tmp_path, 0, "a: [10.0.0.0/8]")
    file = tmp_path / "networks.yml"
    networks = PeerNetworks({}, [], kernel.put, file, load_networks)
    networks.look()
    assert kernel.puts == [{**EVERYBODYS, "10.0.0.0/8": "a"}]
    config_map(tmp_path, 1, "b: [10.0.0.0/8]")
    networks.look()
    assert kernel.puts[1:] == [{**EVERYBODYS, "10.0.0.0/8": "b"}]
    config_map(tmp_path, 2, "b: [10.0.0.0/99]")
    for _ in range(3):
        networks.look()
    file.rename(tmp_path / "aside")
    for _ in range(3):
        networks.look()
    refused = networks.as_configured
    assert caplog.text.count("networks refused, going on with the old ones") == 2, "each once"
    (tmp_path / "aside").rename(file)
    config_map(tmp_path, 3, "# the same\nb: [10.0.0.0/8]")
    networks.look()
    assert (refused, networks.as_configured) == (False, True)
    assert len(kernel.puts) == 2


def test_a_file_that_can_be_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be the same file: what was short was the daemon's descriptors, say."""
    kernel, clock = Kernel(), Clock()
    file = tmp_path / "file"
    file.write_text("{}")
    short = [False]

    def load(path: Path) -> Classes:
        if short[0]:
            raise UserError("too many open files")
        return load_networks(path)

    networks = PeerNetworks({}, [], kernel.put, file, load, clock=clock)
    short[0] = True
    file.write_text("a: [10.0.0.0/8]")
    for _ in range(200):
        networks.look()
        clock.now += 1
    refused = networks.as_configured
    assert caplog.text.count("networks refused, going on with the old ones") == 1
    short[0] = False
    clock.now += 60
    networks.look()
    assert (refused, networks.as_configured) == (False, True)
    assert kernel.puts[1:] == [{**EVERYBODYS, "10.0.0.0/8": "a"}]


def test_a_file_that_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        PeerNetworks({}, [], Kernel().put, tmp_path / "none", load_networks)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_could_not_be_put_is_put_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More and more seldom, each minute in the end, or at once if the file changes again."""
    kernel, clock = Kernel(), Clock()
    file = tmp_path / "file"
    file.write_text("{}")
    networks = PeerNetworks({}, [], kernel.put, file, load_networks, clock=clock)
    kernel.error = OSError(12, "no memory")
    file.write_text("a: [10.0.0.0/8]")
    tries = []
    while clock.now < 300:
        asked = kernel.asked
        networks.look()
        tries += [clock.now] * (kernel.asked - asked)
        clock.now += 1
    assert tries == [0, 2, 6, 14, 30, 62, 122, 182, 242]
    failed = networks.as_configured
    for _ in range(3000):
        clock.now += 60
        asked = kernel.asked
        networks.look()
        assert kernel.asked == asked + 1
    file.write_text("# again\na: [10.0.0.0/8]")
    networks.look()
    assert kernel.asked == asked + 2
    kernel.error = None
    clock.now += 60
    networks.look()
    assert kernel.puts[1:] == [{**EVERYBODYS, "10.0.0.0/8": "a"}]
    assert (failed, networks.as_configured) == (False, True)
    assert caplog.text.count("networks stay as they are") == 1


def test_classes_without_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are tried again each minute; each reason is told once."""
    kernel, clock = Kernel(), Clock()
    file = tmp_path / "file"
    file.write_text("a: [10.0.0.0/8]\nb: [10.1.0.0/16]")
    kernel.without_room = {"b"}
    node = Node()
    networks = PeerNetworks({}, [], kernel.put, file, load_networks, node, clock=clock)  # type: ignore[arg-type]
    states = [networks.as_configured]
    for puts in (2, 3):
        clock.now += 60
        for _ in range(3):
            networks.look()
        assert len(kernel.puts) == puts
    assert caplog.text.count("no room for all classes of networks") == 1
    node.now, node.changed = {"192.0.2.9/32": "host"}, True
    networks.look()
    assert "192.0.2.9/32" in kernel.puts[-1], "that waits for nobody"
    node.changed = False
    kernel.error = OSError(12, "no memory")
    asked = kernel.asked
    clock.now += 60
    for _ in range(60):
        networks.look()
        clock.now += 1
    assert kernel.asked - asked == 5, "after 0, 2, 6, 14 and 30 seconds"
    kernel.error = None
    kernel.without_room = set()
    clock.now += 60
    for _ in range(3):
        networks.look()
    assert [*states, networks.as_configured] == [False, True]
    assert len(kernel.puts) == 5


def test_a_node_that_takes_long(tmp_path: Path) -> None:
    """Reading it takes a tenth of the time at most."""
    clock = Clock()

    class Slow(Node):
        reads = 0

        def networks(self) -> dict[Network, str]:
            self.reads += 1
            clock.now += 0.8
            return {ip_network(f"192.0.2.{self.reads}/32"): "host"}

    node, kernel = Slow(), Kernel()
    node.changed = True
    networks = PeerNetworks({}, [], kernel.put, node=node, clock=clock)  # type: ignore[arg-type]
    while clock.now < 100:
        networks.look()
        clock.now += 1
    assert 10 <= node.reads <= 13
