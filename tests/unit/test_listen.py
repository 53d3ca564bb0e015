"""Listen addresses, and the sockets made of them or passed by systemd."""

import os
import socket
import subprocess
import sys

import pytest

from sockledger.web.listen import ListenError, bind, parse_address, systemd_sockets

PATIENCE = 20


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":10042", ("", 10042)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:9100", ("::1", 9100)),
        ("[fe80::1%eth0]:9100", ("fe80::1%eth0", 9100)),
        ("node-1.example.org:65535", ("node-1.example.org", 65535)),
    ],
)
def test_go_style_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "9100", "host", "host:", ":http", ":65536", ":-1", ":+1", ":1_0", ": 1", ":٣", "::1:9100", "[::1]",
     "[::1:9100", "[host]:1", "ho st:1", "http://host:1", "host/x:1", ":" + "9" * 5000],
)  # fmt: skip
def test_bad_addresses_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        parse_address(text)


def test_bound_sockets_are_non_blocking_and_not_inherited() -> None:
    [listening] = bind([("127.0.0.1", 0)])
    with listening:
        assert not listening.getblocking()
        assert not listening.get_inheritable()


def test_no_host_listens_on_ipv4_and_ipv6() -> None:
    [listening] = bind([("", 0)])
    with listening:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listening.getsockname()[1]), timeout=PATIENCE).close()


def test_no_host_listens_on_ipv4_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    [listening] = bind([("", 0)])
    with listening:
        assert listening.getsockname()[0] == "0.0.0.0"


def test_an_ipv4_address_listens_on_that_only() -> None:
    [listening] = bind([("127.0.0.1", 0)])
    with listening, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", listening.getsockname()[1]))


def test_a_port_in_use_is_told_with_the_remedy_and_no_socket_stays() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as spare:
        taken, free = other.getsockname()[1], spare.getsockname()[1]
        spare.close()
        with pytest.raises(ListenError) as caught:
            bind([("127.0.0.1", free), ("127.0.0.1", taken)])
        assert str(caught.value) == (
            f"--web.listen-address 127.0.0.1:{taken}: "
            "address already in use: stop what listens there or choose another port"
        )
        bind([("127.0.0.1", free)])[0].close()
        with pytest.raises(ListenError, match=rf"\A--web.listen-address :{taken}: address already in use"):
            bind([("", taken)])


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "name.invalid", "a..b"])
def test_an_address_that_is_not_here_is_told_in_one_line(host: str) -> None:
    with pytest.raises(ListenError, match=r"\A--web.listen-address \S+:0: [^\n]+: [^\n]+\Z"):
        bind([(host, 0)])


TAKE = """
import os, sys
from sockledger.errors import UserError
from sockledger.web.listen import systemd_sockets
passed, count, pid = sys.argv[1:]
os.dup2(int(passed), 3)
os.environ |= {"LISTEN_FDS": count, "LISTEN_PID": pid or str(os.getpid())}
try:
    print(*(s.getsockname()[1] for s in systemd_sockets() if not s.getblocking() and not s.get_inheritable()))
except UserError as error:
    print(error)
"""


def activated(passed: socket.socket, count: str, pid: str = "") -> str:
    """What comes of a socket as file descriptor 3 of a process that systemd has started."""
    run = subprocess.run(
        [sys.executable, "-c", TAKE, str(passed.fileno()), count, pid],
        pass_fds=[passed.fileno()],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return run.stdout.strip()


def test_sockets_from_systemd() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert activated(listening, "1") == str(listening.getsockname()[1])
        for count, pid in (("1", "1"), ("0", ""), ("x", ""), ("", "")):
            assert "no socket activation file descriptors found" in activated(listening, count, pid)
    with socket.socket() as idle:
        assert "file descriptor 3 is no listening stream socket" in activated(idle, "1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert "file descriptor 3 is no listening stream socket" in activated(datagrams, "1")


def test_no_sockets_from_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(ListenError, match=r"\A--web.systemd-socket: no socket activation file descriptors"):
        systemd_sockets()
