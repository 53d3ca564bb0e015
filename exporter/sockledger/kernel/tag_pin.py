"""The map that sockets are tagged by, pinned in a folder of its own for those who may.

It stays when versions and limits change, for what is in it only its users could put there again.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sockledger.errors import UserError, remedy
from sockledger.kernel.libbpf import Map, OpenMap, pin
from sockledger.kernel.pins import opened_map
from sockledger.tags import FOLDER, NAME

_FOLDER_MODE, _PIN_MODE = 0o750, 0o660


class TagPin:
    """``<bpffs>/sockledger-tags/tags``, for *owner* and *group* by their ids; None: our own."""

    def __init__(self, bpffs: Path, owner: int | None = None, group: int | None = None) -> None:
        self._folder = bpffs / FOLDER
        self._path = self._folder / NAME
        self._owner = os.geteuid() if owner is None else owner
        self._group = os.getegid() if group is None else group

    def take_over(self, table: Map) -> None:
        """Let an object be loaded with the map that is pinned, if there is one.

        UserError if it is no such map, or the folder cannot be made.
        """
        self._make_folder()
        with suppress(FileNotFoundError), opened_map(self._path) as pinned:
            if (pinned.type, pinned.key_size, pinned.value_size, pinned.flags) != (
                table.type,
                table.key_size,
                table.value_size,
                table.flags,
            ):
                raise UserError(f"{self._path}: is no map of tags: remove it")
            table.reuse(pinned.fd)

    def keep(self, table: Map) -> bool:
        """Pin the map, unless it is; return whether it was not. UserError if that is not allowed."""
        self._make_folder()
        is_new = not self._is_ours(table)
        if is_new:
            with suppress(FileNotFoundError, IsADirectoryError):
                self._path.unlink()
            pin(table.fd, self._path)
        found = self._path.lstat()
        try:
            if (found.st_uid, found.st_gid) != (self._owner, self._group):
                os.chown(self._path, self._owner, self._group, follow_symlinks=False)
            if stat.S_IMODE(found.st_mode) != _PIN_MODE:
                self._path.chmod(_PIN_MODE)
        except OSError as error:
            raise _refused(self._path, error) from None
        return is_new

    def _make_folder(self) -> None:
        try:
            with suppress(FileExistsError):
                self._folder.mkdir(mode=_FOLDER_MODE)
            with self._opened_folder() as fd:
                found = os.fstat(fd)
                if (found.st_uid, found.st_gid) != (self._owner, self._group):
                    os.fchown(fd, self._owner, self._group)
                if stat.S_IMODE(found.st_mode) != _FOLDER_MODE:
                    os.fchmod(fd, _FOLDER_MODE)
        except OSError as error:
            raise _refused(self._folder, error) from None

    @contextmanager
    def _opened_folder(self) -> Iterator[int]:
        """Open the folder itself: whoever may write to bpffs could have made a link there to another."""
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _is_ours(self, table: Map) -> bool:
        try:
            if not stat.S_ISREG(self._path.lstat().st_mode):
                return False
            with opened_map(self._path) as pinned:
                return pinned.id == OpenMap(table.fd).id
        except FileNotFoundError:
            return False

    def remove(self) -> int:
        """Remove the pin and its folder; return how many pins there were."""
        removed = 0
        with suppress(FileNotFoundError, NotADirectoryError), self._opened_folder() as fd:
            with suppress(FileNotFoundError):
                os.unlink(NAME, dir_fd=fd)
                removed = 1
            with suppress(OSError):  # what somebody else put there stays
                self._folder.rmdir()
        return removed


def _refused(path: Path, error: OSError) -> Exception:
    if remedy(error):
        return error
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return UserError(f"{path}: is no folder: remove it")
    return UserError(
        f"{path}: {error.strerror}: the daemon must be able to make it and to give it to who may tag "
        "(CAP_CHOWN), or leave tags out (--no-collector.tags)"
    )
