"""What systemd is told, at a real datagram socket."""

import platform
import signal
import socket
import struct
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.daemon.support import Daemon, Surroundings
from tests.daemon.test_lock import waiting
from tests.patience import eventually

READY = "READY=1\nSTATUS=counting"
PING = "WATCHDOG=1"
OFTEN = "flush: {interval: 100ms}"
PERIOD_SECONDS = 0.2
BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]  # the number of bpf()


class Manager:
    """The socket that a service manager listens at, and what each process told it."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self._told: dict[int, list[str]] = defaultdict(list)

    def told(self, daemon: Daemon) -> list[str]:
        """All up to now. The sender's pid is the kernel's word: systemd listens to the main process only."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return self._told[daemon.process.pid]
            ((_, _, credentials),) = ancillary
            pid, _, _ = struct.unpack("=iII", credentials)
            self._told[pid].append(data.decode())


@pytest.fixture
def manager(place: Surroundings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(place.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listening.bind(address)
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield Manager(listening)


def monotonic_microseconds() -> int:
    return time.monotonic_ns() // 1000


def test_ready_reloading_stopping(place: Surroundings, manager: Manager) -> None:
    daemon = place.run(place.configure(OFTEN))
    moments = [monotonic_microseconds()]
    for lines, text in ((3, "limits: none"), (5, OFTEN)):
        place.configure(text)
        daemon.send(signal.SIGHUP)
        eventually(lambda lines=lines: len(manager.told(daemon)) == lines, "reloaded")  # type: ignore[misc]
        reloading, _, moment = manager.told(daemon)[-2].partition("=1\nMONOTONIC_USEC=")
        assert reloading == "RELOADING"
        moments.append(int(moment))
    assert moments == sorted(moments)
    assert moments[-1] <= monotonic_microseconds()
    assert daemon.stop() == 0
    told = [text.partition("\nMONOTONIC_USEC=")[0] for text in manager.told(daemon)]
    assert told == [READY, "RELOADING=1", "READY=1", "RELOADING=1", READY, "STOPPING=1"]


def test_one_that_waits_says_so(place: Surroundings, manager: Manager) -> None:
    first, second, third = place.run(), waiting(place), waiting(place)
    status = "STATUS=waiting until another sockledger stops"
    assert manager.told(second) == [status]
    assert third.stop() == 0
    assert manager.told(third) == [status, "STOPPING=1"]
    assert first.stop() == 0
    second.wait_until_ready()
    eventually(lambda: manager.told(second) == [status, READY], "ready")


def pings(manager: Manager, daemon: Daemon) -> int:
    return manager.told(daemon).count(PING)


def assert_pings(manager: Manager, daemon: Daemon) -> None:
    before = pings(manager, daemon)
    eventually(lambda: pings(manager, daemon) > before + 3, "pings")


def assert_no_pings(manager: Manager, daemon: Daemon) -> None:
    time.sleep(PERIOD_SECONDS)  # one that was on its way
    before = pings(manager, daemon)
    time.sleep(5 * PERIOD_SECONDS)
    assert pings(manager, daemon) == before


@contextmanager
def injected(daemon: Daemon, what: str) -> Iterator[None]:
    """Have strace do something to all of the daemon's bpf() calls."""
    command = [
        "strace",
        "-q",
        "-f",
        "-p",
        str(daemon.process.pid),
        "-e",
        "trace=bpf",
        "-e",
        f"inject=bpf:{what}",
    ]
    with subprocess.Popen([*command, "-o", "/dev/null"]) as strace:
        try:
            eventually(lambda: traced(daemon), "strace is there")
            yield
        finally:
            strace.send_signal(signal.SIGINT)


def threads(daemon: Daemon) -> list[Path]:
    return list(Path(f"/proc/{daemon.process.pid}/task").iterdir())


def traced(daemon: Daemon) -> bool:
    return all("\nTracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads(daemon))


def in_bpf(daemon: Daemon) -> bool:
    return any((thread / "syscall").read_text().startswith(f"{BPF} ") for thread in threads(daemon))


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(int(PERIOD_SECONDS * 1e6)))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)


@pytest.mark.usefixtures("watchdog")
def test_pings_oftener_than_it_flushes(place: Surroundings, manager: Manager) -> None:
    daemon = place.run(place.configure("flush: {interval: 1h}"))
    assert_pings(manager, daemon)
    second = waiting(place)
    assert_pings(manager, second)


@pytest.mark.usefixtures("watchdog")
def test_a_flush_that_hangs(place: Surroundings, manager: Manager) -> None:
    """The event loop still answers, so that only what it does not get from the other thread can tell."""
    daemon = place.run(place.configure(OFTEN))
    assert_pings(manager, daemon)
    with injected(daemon, "delay_enter=1000000000"):
        eventually(lambda: in_bpf(daemon), "a flush hangs")
        assert_no_pings(manager, daemon)
        assert daemon.status("/-/healthy") == 200
    assert_pings(manager, daemon)


@pytest.mark.usefixtures("watchdog")
def test_flushes_that_fail(place: Surroundings, manager: Manager) -> None:
    daemon = place.run(place.configure(OFTEN))
    assert_pings(manager, daemon)
    with injected(daemon, "error=ENOMEM"):
        eventually(lambda: daemon.lines("flush failed") > 0, "a flush fails")
        assert_no_pings(manager, daemon)
        assert daemon.status("/-/healthy") == 200
    assert_pings(manager, daemon)
