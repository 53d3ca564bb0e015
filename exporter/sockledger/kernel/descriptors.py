"""What other processes have open, by their number there: pidfd_open(2) and pidfd_getfd(2)."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sockledger.errors import UserError, remedy

_PIDFD_GETFD = 438  # the same number on all architectures
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def descriptor_of(pid: int, fd: int) -> Iterator[int]:
    """Lend a descriptor of what is descriptor *fd* of process *pid*; UserError if there is none."""
    what = f"descriptor {fd} of process {pid}"
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        if remedy(error):
            raise
        reason = "there is none, or it has ended" if error.errno == errno.ESRCH else error.strerror
        raise UserError(f"process {pid}: {reason}") from None
    try:
        copy: int = _libc.syscall(_PIDFD_GETFD, process, fd, 0)
        if copy < 0:
            raise _refused(what, pid, ctypes.get_errno())
    finally:
        os.close(process)
    try:
        yield copy
    finally:
        os.close(copy)


def _refused(what: str, pid: int, number: int) -> Exception:
    error = OSError(number, os.strerror(number))
    if remedy(error):
        return error
    match number:
        case errno.EBADF:
            return UserError(f"{what}: there is none")
        case errno.ESRCH:
            return UserError(f"process {pid}: has ended")
        case errno.EPERM:
            return UserError(f"{what}: not for this user: run as root (CAP_SYS_PTRACE)")
    return UserError(f"{what}: {error.strerror}")
