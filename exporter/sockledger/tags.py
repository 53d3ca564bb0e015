"""Tags: what a socket is for, told by who uses it. Its traffic is then counted per tag, too.

    from sockledger import tags
    tags.tag(connection, "checkout-api")

Needs nothing but Python's standard library, and that ``<bpffs>/sockledger-tags``, which a daemon makes, is in
sight and open to this process. Source: include/uapi/linux/bpf.h.
"""

import ctypes
import errno
import os
import platform
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BPFFS = Path("/sys/fs/bpf")
FOLDER, NAME = "sockledger-tags", "tags"  # in bpffs, where the map is pinned

# struct socket_tag in bpf/tags.h: a name padded with NULs, and a lock
_TAG_BYTES = 32
_VALUE_BYTES = 40
_TAG = re.compile("[!-~]{1,31}")
_OTHER = "other"  # what counts for all for which there is no place

_SYSCALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351}
_MAP_UPDATE_ELEM, _MAP_DELETE_ELEM, _OBJ_GET = 2, 3, 7  # enum bpf_cmd
_ANY, _NOEXIST, _EXIST = range(3)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_MPTCP = 262

_REASONS = {
    errno.EEXIST: "the socket has a tag already",
    errno.ENOENT: "the socket has no tag",
    errno.ENOMEM: "no memory for a tag, or more than sockets may have (sysctl net.core.optmem_max)",
    errno.ENOTSOCK: "is no socket",
}

_libc = ctypes.CDLL(None, use_errno=True)


def tag(
    sock: socket.socket | int,
    name: str,
    *,
    create: bool = False,
    replace: bool = False,
    bpffs: str | Path = BPFFS,
) -> None:
    """Give a socket a tag: 1 to 31 ASCII characters, none of them a space; *sock* may be its descriptor.

    The one that it has is replaced; with *create* that is FileExistsError, and with *replace* it is
    FileNotFoundError if it has none. Connections that a listener accepts from then on have its tag.
    ValueError for what is no tag. OSError if it is no IPv4 or IPv6 socket, or MPTCP's, if no daemon counts
    tags here (FileNotFoundError with a file name), or if this process may not tag (PermissionError).
    """
    if not _TAG.fullmatch(name) or name == _OTHER:
        raise ValueError(f"{name!r} is no tag: 1 to 31 ASCII characters without spaces, and not {_OTHER!r}")
    if create and replace:
        raise ValueError("create and replace exclude each other")
    value = ctypes.create_string_buffer(name.encode(), _VALUE_BYTES)
    _change(_MAP_UPDATE_ELEM, sock, value, _NOEXIST if create else _EXIST if replace else _ANY, bpffs)


def untag(sock: socket.socket | int, *, bpffs: str | Path = BPFFS) -> None:
    """Take a socket's tag away. OSError as of `tag`, FileNotFoundError if it has none."""
    _change(_MAP_DELETE_ELEM, sock, None, 0, bpffs)


def _change(
    command: int,
    sock: socket.socket | int,
    value: ctypes.Array[ctypes.c_char] | None,
    flags: int,
    bpffs: str | Path,
) -> None:
    fd = sock if isinstance(sock, int) else sock.fileno()
    _require_internet(fd)
    key = ctypes.create_string_buffer(struct.pack("=i", fd), 4)
    addresses = ctypes.addressof(key), ctypes.addressof(value) if value else 0
    with _map(Path(bpffs, FOLDER, NAME)) as table:
        try:
            _bpf(command, struct.pack("=I4xQQQ", table, *addresses, flags))
        except OSError as error:
            raise OSError(error.errno, _REASONS.get(error.errno or 0, error.strerror)) from None


def _require_internet(fd: int) -> None:
    family, protocol = (_option(fd, option) for option in (socket.SO_DOMAIN, socket.SO_PROTOCOL))
    if family not in _FAMILIES:
        names = {each.value: each.name for each in socket.AddressFamily}
        raise OSError(
            errno.EAFNOSUPPORT, f"is of {names.get(family, family)}, and tags are for IPv4 and IPv6 sockets"
        )
    if protocol == _MPTCP:
        raise OSError(
            errno.EPROTONOSUPPORT, "is an MPTCP socket: others, one for each path, send what it is given"
        )


def _option(fd: int, option: int) -> int:
    """Return what the kernel says of a socket: to be made Python's by its descriptor would change it."""
    value, size = ctypes.c_int(), ctypes.c_uint(ctypes.sizeof(ctypes.c_int))
    if _libc.getsockopt(fd, socket.SOL_SOCKET, option, ctypes.byref(value), ctypes.byref(size)):
        number = ctypes.get_errno()
        raise OSError(number, _REASONS.get(number, os.strerror(number)))
    return value.value


@contextmanager
def _map(path: Path) -> Iterator[int]:
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        table = _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))
    except OSError as error:
        reason = error.strerror
        if isinstance(error, FileNotFoundError):
            reason = "no sockledger counts tags here"
        elif isinstance(error, PermissionError):
            reason = "this process may not tag"
        raise OSError(error.errno, reason, str(path)) from None
    try:
        yield table
    finally:
        os.close(table)


def _bpf(command: int, attributes: bytes) -> int:
    machine = platform.machine()
    if machine not in _SYSCALLS:
        raise OSError(errno.ENOSYS, f"tags are not known on {machine}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(_SYSCALLS[machine], command, buffer, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
