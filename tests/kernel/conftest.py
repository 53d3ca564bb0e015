"""What the tests share. They need root: they load programs into this machine's kernel and attach them at
the cgroup root. Traffic stays in network namespaces and cgroups of their own.
"""

import os
import platform
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from tests.kernel.ledger import attached
from tests.kernel.machine import Cgroup, Netns, new_cgroup, new_netns, sysctl_set
from tests.kernel.tcp import Ends, new_ends
from tests.kernel.traffic import Generator, compiled_generator
from tests.kernel.truth import runs_for_ipv6_synack
from tests.patience import SCALE

from sockledger.kernel.cgroups import CgroupRoot, find_root

# Of files whose tests load programs again and again, what runs in emulators, where each load takes seconds;
# all does with SOCKLEDGER_TEST_FULL.
IN_EMULATORS = {
    "test_pins.py": ("counts_on", "other_limits", "another_version_and_back"),
    "test_gone.py": ("a_thousand_short_lives", "killed_while_folding"),
    "test_move.py": ("killed_at_any_moment", "while_a_program_adds_to_both"),
    "test_peers.py": ("test_classes", "comes_in", "while_connected", "of_the_node", "off_and_on"),
    "test_tags.py": ("three_tags", "changed_under", "hurried", "inherit", "who_may", "no_room", "not_noted"),
    "test_full_maps.py": (),
    "test_kills.py": (),
    "test_generator.py": (),
}


# What any kernel has to do. The rest runs on each other one, so that all is run somewhere.
ON_EACH_KERNEL = {"test_object.py", "test_exactness.py"}
# Of a test with more variants, a third runs in an emulator, another one on each kernel.
FEW = 4


def name_of(item: pytest.Item) -> str:
    """Return a test's name, without its variant's."""
    return item.nodeid.partition("[")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SCALE == 1 or os.environ.get("SOCKLEDGER_TEST_FULL"):
        return
    left_out = [
        item
        for item in items
        if not any(name in item.name for name in IN_EMULATORS.get(item.path.name, ("",)))
    ]
    minor = int(platform.release().split(".")[1])
    left_out += [
        item
        for item in items
        if item.path.name not in ON_EACH_KERNEL and crc32(name_of(item).encode()) % 2 != minor % 2
    ]
    variants: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        variants[name_of(item)].append(item)
    for each in variants.values():
        if len(each) > FEW:
            each.sort(key=lambda item: crc32(item.nodeid.encode()))  # a mixture of all that varies
            left_out += [item for number, item in enumerate(each) if number % 3 != minor % 3]
    for item in left_out:
        item.add_marker(pytest.mark.skip(reason="takes long in an emulator: SOCKLEDGER_TEST_FULL=1"))


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    if os.geteuid():
        pytest.exit("tests/kernel load BPF programs and attach them: run them as root", returncode=1)


@pytest.fixture(scope="session")
def root() -> Iterator[CgroupRoot]:
    root = find_root(None)
    yield root
    os.close(root.fd)


@pytest.fixture(scope="session", autouse=True)
def patched_kernel(root: CgroupRoot) -> Iterator[None]:
    """In an emulator, keep the kernel's code as it is while programs come and go.

    With the first program of a kind the kernel patches its own code, and QEMU without KVM may then run a CPU
    in circles at that place (seen on 6.1, in sk_filter_trim_cap). A second data path, at an empty cgroup,
    is there first and goes last.
    """
    if SCALE == 1:
        yield
        return
    with new_cgroup(root.path, f"sockledger-{os.getpid()}-patched") as cgroup:
        empty = CgroupRoot(cgroup.path)
        with attached(empty):
            yield
        os.close(empty.fd)


@pytest.fixture(scope="session", autouse=True)
def long_backlog() -> Iterator[None]:
    """Packets that the backlog drops have passed an interface, and reach no socket."""
    with sysctl_set("net.core.netdev_max_backlog", "100000"):
        yield


@pytest.fixture(scope="session")
def ipv6_synack(root: CgroupRoot) -> bool:
    """Whether this kernel runs programs for the SYN-ACK over IPv6."""
    with new_cgroup(root.path, f"sockledger-{os.getpid()}-synack") as cgroup:
        return runs_for_ipv6_synack(cgroup)


@pytest.fixture
def parent(root: CgroupRoot) -> Iterator[Cgroup]:
    """A cgroup of the test's own; its children are the sides of its traffic."""
    with new_cgroup(root.path, f"sockledger-{os.getpid()}") as parent:
        yield parent


@pytest.fixture
def client(parent: Cgroup) -> Iterator[Cgroup]:
    with new_cgroup(parent.path, "client") as cgroup:
        yield cgroup


@pytest.fixture
def server(parent: Cgroup) -> Iterator[Cgroup]:
    with new_cgroup(parent.path, "server") as cgroup:
        yield cgroup


@pytest.fixture
def netns() -> Iterator[Netns]:
    with new_netns("loopback") as netns:
        yield netns


@pytest.fixture(scope="session")
def binary() -> Path:
    return compiled_generator()


@pytest.fixture
def generator(binary: Path, client: Cgroup, server: Cgroup, netns: Netns) -> Generator:
    """The generator over one namespace's loopback."""
    return Generator(binary, client, server, netns, netns)


@pytest.fixture
def below(parent: Cgroup) -> Iterator[CgroupRoot]:
    """A root to count in that has nothing but the test's own cgroups below it."""
    root = CgroupRoot(parent.path)
    yield root
    os.close(root.fd)


@pytest.fixture
def ends(client: Cgroup, server: Cgroup, netns: Netns) -> Iterator[Ends]:
    """Connections one by one, over one namespace's loopback."""
    with new_ends(client, server, netns) as ends:
        yield ends
