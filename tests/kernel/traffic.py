"""The traffic generator from Python; its scenarios are described in generator/traffic.c."""

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.machine import Cgroup, Netns, run
from tests.patience import SCALE

from sockledger.kernel.sums import Traffic

BUILD = Path(__file__).parents[2] / "build" / "tests"

# With it a small send buffer limits: a burst lets less through at once than that holds.
SLOW_LINK = ("tbf", "rate", "10mbit", "burst", "20k", "latency", "1s")

# Together all kinds of packets there are: 10,000 TCP connections, 10,000 UDP sockets closed under fire.
EVERYTHING = {"tcp": 7000, "unaccepted": 1000, "killed": 2000, "udp": 4000, "flood": 10000, "others": 200}


def scaled(count: int) -> int:
    """Return a count for this machine; never so small that a scenario leaves something out."""
    return max(count // SCALE, 50)


def compiled(folder: str, name: str) -> Path:
    """A program of the tests, made anew if its source is younger: in an emulator that takes a minute."""
    source, binary = Path(__file__).with_name(folder) / f"{name}.c", BUILD / name
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [path.stat().st_mtime for path in source.parent.iterdir()]
    if not binary.exists() or binary.stat().st_mtime < max(sources):
        made = binary.with_suffix(f".{os.getpid()}")
        run(
            *("clang", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"),
            *(str(source), "-o", str(made)),
        )
        made.rename(binary)
    return binary


def compiled_generator() -> Path:
    """The generator's binary."""
    return compiled("generator", "traffic")


@dataclass(frozen=True)
class Result:
    """What the generator says that it did."""

    figures: dict[tuple[str, str, str], Traffic]  # by side, protocol and family
    events: dict[str, int]
    connections: dict[str, dict[str, int]]  # that came to be established, by side and role
    failures: dict[str, dict[str, int]]  # of connects, by side and reason
    tcp_info: dict[str, dict[str, int]]  # sums of its fields, by side

    def side(self, name: str) -> dict[tuple[str, str], Traffic]:
        """Return one side's figures that are not all 0, by protocol and family."""
        return {
            (protocol, family): traffic
            for (side, protocol, family), traffic in self.figures.items()
            if side == name and any(traffic)
        }


def _parse(line: str) -> Result:
    printed = json.loads(line)
    figures = {
        (side, protocol, family): Traffic(*each) for side, protocol, family, *each in printed.pop("figures")
    }
    return Result(figures, **printed)


class Running:
    """A generator at work."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait_ready(self) -> Result:
        """Return what it did so far; it goes on when its standard input ends."""
        assert self._process.stdout is not None
        so_far, line = (self._process.stdout.readline() for _ in range(2))
        assert line == "ready\n", f"{self._process.args!r} failed: {so_far + line!r}"
        return _parse(so_far)

    def result(self) -> Result:
        """End its standard input, and wait for its end."""
        output, complaint = self._process.communicate()
        assert self._process.returncode == 0, (
            f"{self._process.args!r}: {complaint or self._process.returncode}"
        )
        return _parse(output.splitlines()[-1])  # after "ready", if nobody waited for it


def netstat(netns: Netns) -> dict[str, int]:
    """Return what the kernel counts in a namespace, by protocol and name as nstat(8) has them."""
    counters = {
        name: int(value) for name, value in map(str.split, netns.run("cat", "/proc/net/snmp6").splitlines())
    }
    for table in ("snmp", "netstat"):
        lines = netns.run("cat", f"/proc/net/{table}").splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            protocol, *columns = names.replace(":", "").split()
            counters |= {
                protocol + name: int(value) for name, value in zip(columns, values.split()[1:], strict=True)
            }
    return counters


@dataclass(frozen=True)
class Generator:
    """The program, and where its two sides are."""

    binary: Path
    client: Cgroup
    server: Cgroup
    client_netns: Netns | None = None  # None: this machine's own, of which only the loopback is used
    server_netns: Netns | None = None
    addresses: tuple[str, str] = ("127.0.0.1", "::1")

    @contextmanager
    def start(self, scenario: str, count: int, **options: int) -> Iterator[Running]:
        command = [str(self.binary), scenario, "--count", str(count)]
        for side, cgroup, netns in (
            ("client", self.client, self.client_netns),
            ("server", self.server, self.server_netns),
        ):
            command += [f"--{side}-cgroup", str(cgroup.processes)]
            if netns is not None:
                command += [f"--{side}-netns", str(netns.path)]
        command += ["--v4", self.addresses[0], "--v6", self.addresses[1]]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                yield Running(process)
            finally:
                process.kill()

    def run(self, scenario: str, count: int, **options: int) -> Result:
        """Run a scenario to its end; those that wait for the end of their input get it at once."""
        with self.start(scenario, count, **options) as running:
            return running.result()

    def run_together(self, counts: dict[str, int]) -> dict[str, Result]:
        """Run scenarios at the same time."""
        with ThreadPoolExecutor(len(counts)) as pool:
            running = {name: pool.submit(self.run, name, scaled(count)) for name, count in counts.items()}
            return {name: future.result() for name, future in running.items()}
