"""The lock that keeps a second daemon from attaching beside the first: a flock on a folder in bpffs."""

import errno
import fcntl
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from sockledger.errors import UserError, remedy
from sockledger.kernel.filesystem import mount_bpffs


class Lock:
    """The folder ``<bpffs>/sockledger``, held while the daemon lives."""

    def __init__(self, bpffs: Path, inherited_fd: int | None = None) -> None:
        """Choose the lock. *inherited_fd*: a predecessor in this process has passed it on, held."""
        self._bpffs = bpffs
        self._path = bpffs / "sockledger"
        self._fd = inherited_fd

    def try_acquire(self) -> bool:
        """Take the lock unless another daemon holds it; return whether it is ours.

        One that we hold is none any more if somebody has removed its folder.
        """
        if self._fd is not None and self._is_there(self._fd):
            return True
        mount_bpffs(self._bpffs)
        with ExitStack() as undo:
            try:
                self._path.mkdir(mode=0o700, exist_ok=True)
                fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                undo.callback(os.close, fd)
                if os.fstat(fd).st_uid != os.geteuid():
                    raise UserError(f"{self._path}: belongs to another user: remove it")
                os.fchmod(fd, 0o700)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # the holder before us may have removed the folder that we opened
                if not self._is_there(fd):
                    return False
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._refused(error) from None
            undo.pop_all()
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd
        return True

    def _refused(self, error: OSError) -> UserError:
        what_to_do = remedy(error) or "the daemon must be able to make, open and change this folder"
        if error.errno == errno.EROFS:
            what_to_do = (
                f"make it writable (mount -o remount,rw {self._bpffs}, ReadWritePaths= in a systemd "
                "unit, no readOnly volumeMount)"
            )
        return UserError(f"{self._path}: {error.strerror}: {what_to_do}")

    def require_writable(self) -> None:
        """Raise UserError if nothing can be pinned beside the lock any more."""
        mount_bpffs(self._bpffs)  # if somebody has unmounted it
        try:
            flags = os.statvfs(self._bpffs).f_flag
        except OSError as error:
            raise self._refused(error) from None
        if flags & os.ST_RDONLY:
            raise self._refused(OSError(errno.EROFS, os.strerror(errno.EROFS)))

    def _is_there(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def renew(self) -> None:
        """Make and lock the folder again if somebody has removed it; UserError if another was faster."""
        if not self.try_acquire():
            raise UserError(f"{self._path}: somebody has removed this folder, and another daemon has made it")

    def fileno(self) -> int:
        """Return the descriptor that holds the lock."""
        if self._fd is None:
            raise ValueError("the lock is not held")
        return self._fd

    def release(self) -> None:
        """Let go, and remove the folder."""
        if self._fd is not None:
            with suppress(OSError):  # what somebody else put there stays
                if self._is_there(self._fd):
                    self._path.rmdir()
            os.close(self._fd)
            self._fd = None
