"""Which file system a folder is on, and mounting bpffs where it is not."""

import ctypes
import os
from pathlib import Path

from sockledger.errors import UserError

# include/uapi/linux/magic.h
BPF_FS_MAGIC = 0xCAFE4A11
CGROUP2_SUPER_MAGIC = 0x63677270

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8

_libc = ctypes.CDLL(None, use_errno=True)


def is_cgroup2(path: Path) -> bool:
    """Whether *path* is on a cgroup v2 file system."""
    return _magic(path) == CGROUP2_SUPER_MAGIC


def is_bpffs(path: Path) -> bool:
    """Whether *path* is on a BPF file system."""
    return _magic(path) == BPF_FS_MAGIC


def _magic(path: Path) -> int | None:
    buffer = (ctypes.c_long * 32)()  # struct statfs: its first member is the type
    return buffer[0] if _libc.statfs(os.fsencode(path), buffer) == 0 else None


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


def mount_bpffs(path: Path) -> None:
    """Mount bpffs on the empty folder *path* if it is none; UserError with the command if that fails."""
    if is_bpffs(path):
        return
    require_mountable(path)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", ctypes.c_ulong(flags), b"mode=0700"):
        reason = os.strerror(ctypes.get_errno())
        raise UserError(
            f"{path}: not a BPF file system, and mounting one failed ({reason}): "
            f"mkdir -p {path} && mount -t bpf bpf {path}"
        )
