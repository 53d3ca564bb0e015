"""What tests make on the machine, as context managers: cgroups, network namespaces, interfaces."""

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command and return its output; its complaint is in the exception."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Cgroup:
    path: Path

    @property
    def id(self) -> int:
        return self.path.stat().st_ino

    @property
    def processes(self) -> Path:
        return self.path / "cgroup.procs"

    @contextmanager
    def joined(self) -> Iterator[None]:
        """This process in the cgroup, so that sockets made meanwhile belong to it."""
        root = next(path for path in self.path.parents if not (path / "cgroup.type").exists())
        memberships = Path("/proc/self/cgroup").read_text().splitlines()
        before = next(line for line in memberships if line.startswith("0::/")).removeprefix("0::/")
        self.processes.write_text("0")
        try:
            yield
        finally:
            (root / before / "cgroup.procs").write_text("0")


@contextmanager
def new_cgroup(parent: Path, name: str) -> Iterator[Cgroup]:
    cgroup = Cgroup(parent / name)
    cgroup.path.mkdir()
    try:
        yield cgroup
    finally:
        _remove(cgroup.path)


def _remove(path: Path) -> None:
    deadline = time.monotonic() + 5
    while True:  # a process that was just waited for may still be on its way out
        try:
            return path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@dataclass(frozen=True)
class Netns:
    name: str

    @property
    def path(self) -> Path:
        return Path("/run/netns", self.name)

    def run(self, *command: str, stdin: str | None = None) -> str:
        return run("ip", "netns", "exec", self.name, *command, stdin=stdin)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread in the namespace, so that sockets made meanwhile belong to it."""
        with Path("/proc/thread-self/ns/net").open() as before, self.path.open() as inside:
            _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(before.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def new_netns(name: str) -> Iterator[Netns]:
    """A network namespace with a loopback, and none of the kernel's own IPv6 chatter."""
    netns = Netns(f"sockledger-{os.getpid()}-{name}")
    run("ip", "netns", "add", netns.name)
    try:
        for setting in (
            "net.ipv4.ping_group_range=0 2147483647",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.default.router_solicitations=0",
            "net.ipv6.conf.default.addr_gen_mode=1",  # no link-local address
        ):
            netns.run("sysctl", "-qw", setting)
        netns.run("ip", "link", "set", "lo", "up")
        yield netns
    finally:
        run("ip", "netns", "delete", netns.name)


CLIENT4, SERVER4 = "192.0.2.1", "192.0.2.2"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"

# Multicast reports are the one thing left that the kernel says by itself; neighbours are static.
_SILENCE = (
    "table inet silence { chain output { type filter hook output priority 0; icmpv6 type 143 drop; }; }"
)


@contextmanager
def veth_pair(*, offload: bool) -> Iterator[tuple[Netns, Netns]]:
    """Two namespaces joined by interfaces called veth; *offload* lets super-packets through whole.

    Never are packets merged on their way in (GRO): the interface would count what no program sees.
    """
    with ExitStack() as stack:
        client, server = (stack.enter_context(new_netns(name)) for name in ("client", "server"))
        run(
            *f"ip -n {client.name} link add veth address 02:00:00:00:00:01 type veth".split(),
            *f"peer name veth address 02:00:00:00:00:02 netns {server.name}".split(),
        )
        ends = (
            (client, CLIENT4, CLIENT6, SERVER4, SERVER6, "02:00:00:00:00:02"),
            (server, SERVER4, SERVER6, CLIENT4, CLIENT6, "02:00:00:00:00:01"),
        )
        switch = "on" if offload else "off"
        for netns, v4, v6, peer4, peer6, peer in ends:
            netns.run("nft", "-f", "-", stdin=_SILENCE)
            netns.run("ethtool", "-K", "veth", "tso", switch, "gso", switch, "gro", "off")
            netns.run("ip", "link", "set", "veth", "up")
            netns.run("ip", "address", "add", f"{v4}/24", "dev", "veth")
            netns.run("ip", "address", "add", f"{v6}/64", "dev", "veth", "nodad")
            for address in (peer4, peer6):
                netns.run(
                    *("ip", "neighbour", "replace", address, "lladdr", peer),
                    *("dev", "veth", "nud", "permanent"),
                )
        yield client, server


def sysctl(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


@contextmanager
def sysctl_set(name: str, value: str) -> Iterator[None]:
    """A setting of the whole machine, put back afterwards."""
    before = sysctl(name).read_text()
    sysctl(name).write_text(value)
    try:
        yield
    finally:
        sysctl(name).write_text(before)
