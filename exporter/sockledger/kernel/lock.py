"""The lock that keeps a second daemon from attaching beside the first: a flock on a folder in bpffs."""

import ctypes
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from sockledger.errors import UserError

BPF_FS_MAGIC = 0xCAFE4A11  # include/uapi/linux/magic.h
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8

_libc = ctypes.CDLL(None, use_errno=True)


class Lock:
    """The folder ``<bpffs>/sockledger``, held while the daemon lives."""

    def __init__(self, bpffs: Path, inherited_fd: int | None = None) -> None:
        """Choose the lock. *inherited_fd*: a predecessor in this process has passed it on, held."""
        self._path = bpffs / "sockledger"
        self._fd = inherited_fd
        if inherited_fd is None:
            _mount(bpffs)

    def try_acquire(self) -> bool:
        """Take the lock unless another daemon holds it; return whether it is ours."""
        if self._fd is not None:
            return True
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(
                f"{self._path}: {error.strerror}: the daemon needs root, or this folder as its own"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the holder before us may have removed the folder that we opened
            if os.path.samestat(os.fstat(fd), self._path.stat()):
                self._fd = fd
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(fd)
        return False

    def fileno(self) -> int:
        """Return the descriptor that holds the lock."""
        if self._fd is None:
            raise ValueError("the lock is not held")
        return self._fd

    def release(self) -> None:
        """Let go, and remove the folder."""
        if self._fd is not None:
            with suppress(OSError):  # what somebody else put there stays
                self._path.rmdir()
            os.close(self._fd)
            self._fd = None


def is_bpffs(path: Path) -> bool:
    """Whether *path* is on a BPF file system."""
    buffer = (ctypes.c_long * 32)()  # struct statfs: its first member is the type
    return _libc.statfs(os.fsencode(path), buffer) == 0 and buffer[0] == BPF_FS_MAGIC


def require_mountable(path: Path) -> None:
    """Raise UserError where a mount would hide something."""
    try:
        occupied = any(path.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name a BPF file system with --path.bpffs") from None
    if occupied:
        raise UserError(
            f"{path}: neither a BPF file system nor an empty folder to mount one on: see --path.bpffs"
        )


def _mount(path: Path) -> None:
    """Mount bpffs on the empty folder *path* if it is none; UserError with the command if that fails."""
    if is_bpffs(path):
        return
    require_mountable(path)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", ctypes.c_ulong(flags), b"mode=0700"):
        reason = os.strerror(ctypes.get_errno())
        raise UserError(
            f"{path}: not a BPF file system, and mounting one failed ({reason}): mount -t bpf bpf {path}"
        )
