import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sockledger.systemd import notify, watchdog_seconds


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket at which a service manager listens."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@sockledger-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield listening


def test_one_datagram(manager: socket.socket) -> None:
    notify("READY=1", "STATUS=counting")
    notify("STOPPING=1")
    assert manager.recv(100) == b"READY=1\nSTATUS=counting"
    assert manager.recv(100) == b"STOPPING=1"
    with pytest.raises(BlockingIOError):
        manager.recv(100)


@pytest.mark.parametrize("address", [None, ""])
def test_nobody_asked(
    address: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    assert not caplog.records


@pytest.mark.parametrize("address", ["/nonexistent/notify", "vsock:2:1234", "/" + "x" * 200])
def test_nobody_there(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1", "STATUS=counting")
    (record,) = caplog.records
    assert vars(record)["what"] == "READY=1"


def test_the_unit_lets_the_daemon_use_netlink() -> None:
    """Which node_networks need."""
    unit = (Path(__file__).parents[2] / "systemd" / "sockledger.service").read_text()
    (families,) = (line for line in unit.splitlines() if line.startswith("RestrictAddressFamilies="))
    assert "AF_NETLINK" in families.partition("=")[2].split()


def test_a_manager_that_does_not_read(manager: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.setblocking(False)
        sending.connect(manager.getsockname())
        with suppress(BlockingIOError):
            while True:
                sending.send(b"x")
    notify("WATCHDOG=1")
    assert [vars(record)["what"] for record in caplog.records] == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("120000000", None, 120.0),
        ("500000", str(os.getpid()), 0.5),
        ("500000", "1", None),
        ("500000", "", None),
        (None, None, None),
        ("", None, None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
    ],
)
def test_watchdog(
    microseconds: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds
