"""Listening sockets: from the addresses that a user gives, or from systemd."""

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from sockledger.errors import UserError, remedy

# Enough for a burst of connections: beyond it clients wait a second before they try again.
_BACKLOG = 1024
_FIRST_SYSTEMD_FD = 3


class ListenError(UserError):
    """There is no listening on a socket. The text says in one line what, where and what to do."""


def parse_address(text: str) -> tuple[str, int]:
    """Split a Go-style listen address into host and port; an empty host means all interfaces."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f'"{text}" has no port; write HOST:PORT, [IPV6]:PORT or :PORT')
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        raise ValueError(f'"{text}" has no port from 0 to 65535 behind its last colon')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f'"{text}" has no IPv6 address between its brackets') from None
    elif ":" in host:
        raise ValueError(f'"{text}" is ambiguous; put an IPv6 address in brackets, as in [::1]:{port}')
    elif re.search(r"[^\w.-]", host, re.ASCII):
        raise ValueError(f'"{text}" has no valid host name or IP address before its colon')
    return host, int(port)


def bind(addresses: Iterable[tuple[str, int]]) -> list[socket.socket]:
    """Listen on all *addresses*, as `parse_address` returns them, or raise `ListenError` and on none."""
    with ExitStack() as bound:
        sockets = [bound.enter_context(_listen(host, port)) for host, port in addresses]
        bound.pop_all()
    return sockets


def systemd_sockets() -> list[socket.socket]:
    """Take the listening sockets that systemd passes, see sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not re.fullmatch("[1-9][0-9]{0,3}", count):
        raise ListenError(
            "--web.systemd-socket: no socket activation file descriptors found: "
            "start the .socket unit, or leave the flag out"
        )
    return [_inherited(fd) for fd in range(_FIRST_SYSTEMD_FD, _FIRST_SYSTEMD_FD + int(count))]


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; one on all interfaces takes IPv4 and IPv6 alike, if there is IPv6."""
    dual_stack = host in ("", "::") and socket.has_dualstack_ipv6()
    try:
        family, address = _resolve("::" if dual_stack else host, port)
        listening = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual_stack)
    except (OSError, UnicodeError) as error:
        shown = f"[{host}]" if ":" in host else host
        raise ListenError(f"--web.listen-address {shown}:{port}: {_reason(error)}") from error
    listening.settimeout(0)
    return listening


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Look up the address to bind to; of a name's addresses the first IPv4 one, as Go does."""
    found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)  # noqa: S104
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def _reason(error: OSError | UnicodeError) -> str:
    """Say why there is no listening, and what to do."""
    if isinstance(error, UnicodeError):
        return "not a host name: correct it"
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}: give an IP address, or a host name that resolves"
    match error.errno:
        case errno.EADDRINUSE:
            return "address already in use: stop what listens there or choose another port"
        case errno.EACCES:
            return "permission denied: choose a port above 1023 or grant CAP_NET_BIND_SERVICE"
        case errno.EADDRNOTAVAIL:
            return "no interface has this address: give one of this host's or :PORT for all"
        case code:
            return f"{os.strerror(code or 0)}: {remedy(error) or 'choose another address'}"


def _inherited(fd: int) -> socket.socket:
    """Take over a listening socket from systemd."""
    unfit = ListenError(
        f"--web.systemd-socket: file descriptor {fd} is no listening stream socket: "
        "use ListenStream= and Accept=no in the .socket unit"
    )
    try:
        listening = socket.socket(fileno=fd)
    except OSError:
        raise unfit from None
    if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listening.close()
        raise unfit
    listening.set_inheritable(False)
    listening.settimeout(0)
    return listening
