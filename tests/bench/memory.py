"""Resident memory of the daemon while it serves 2,000 series."""

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.support import RESET_AT_CLOSE, Cgroups, cgroups, print_table, verdict

CGROUPS = 63  # times 4 protocols, 2 families and 4 metrics
SCRAPES = 10
INTERVAL = 1  # seconds; much faster, and scrapes share the flush's result
MEGABYTES = 40  # the target
READY_TIMEOUT = 20

_EXPERIMENTAL = 253  # RFC 3692: a protocol that is neither TCP nor UDP nor ICMP


def _send(family: socket.AddressFamily) -> None:
    """Send and receive a little with each protocol."""
    address = "127.0.0.1" if family is socket.AF_INET else "::1"
    with (
        socket.create_server((address, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
        server.accept()[0] as accepted,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        client.send(b"x")
        accepted.recv(1)
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.bind((address, 0))
        udp.sendto(b"x", udp.getsockname())
        udp.recv(1)
    icmp = socket.IPPROTO_ICMP if family is socket.AF_INET else socket.IPPROTO_ICMPV6
    for protocol in (icmp, _EXPERIMENTAL):
        with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
            raw.sendto(bytes(8), (address, 0))
            raw.recv(100)


@contextmanager
def _daemon(cgroup: Path) -> Iterator[tuple[int, str]]:
    """Run the daemon on a cgroup; yield its process id and the address of its metrics once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [str(Path(sys.executable).with_name("sockledger")), "run", "--no-pin"]
    command += [f"--web.listen-address={address}", f"--path.cgroupfs={cgroup}", "--log.level=warn"]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://{address}/metrics"
            _wait_for(url)
            yield process.pid, url
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    while True:
        try:
            _scrape(url)
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _scrape(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        page: bytes = response.read()
    return page


def _resident_megabytes(pid: int) -> float:
    found = re.search(r"^VmRSS:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def run() -> None:
    """Measure, and print a table."""
    with ExitStack() as stack:
        below = stack.enter_context(cgroups(CGROUPS))
        pid, url = stack.enter_context(_daemon(below.path))
        at_start = _resident_megabytes(pid)
        for cgroup in below.children:
            Cgroups.enter(cgroup)
            for family in (socket.AF_INET, socket.AF_INET6):
                _send(family)
        for _ in range(SCRAPES):
            page = _scrape(url)
            time.sleep(INTERVAL)
        after = _resident_megabytes(pid)
    series = sum(not line.startswith(b"#") for line in page.splitlines())
    print_table(
        f"Resident memory of the daemon, {CGROUPS} workloads",
        ("", "series", "MB"),
        [
            ("after the first scrape", "", f"{at_start:.1f}"),
            (f"with traffic, after {SCRAPES} more", str(series), f"{after:.1f}"),
        ],
    )
    print("  " + verdict(f"target: under {MEGABYTES} MB", met=after < MEGABYTES))
