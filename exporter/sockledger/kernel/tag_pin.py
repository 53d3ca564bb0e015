"""The map that sockets are tagged by, pinned in a folder of its own for those who may.

It stays when versions and limits change, for what is in it only its users could put there again.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from sockledger.errors import UserError, remedy
from sockledger.kernel.libbpf import BPF_F_RDONLY, Map, OpenMap, pin
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

    def prepare(self) -> bool:
        """Make the folder; return whether a map is pinned there. UserError if something else is."""
        self._make_folder()
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode):
            raise UserError(f"{self._path}: is no pin: remove it")
        return stat.S_ISREG(mode)

    def take_over(self, table: Map) -> None:
        """Let an object be loaded with the map that is pinned. UserError if it is no such."""
        with opened_map(self._path) as pinned:
            if (pinned.type, pinned.key_size, pinned.value_size, pinned.flags) != (
                table.type,
                table.key_size,
                table.value_size,
                table.flags,
            ):
                raise UserError(f"{self._path}: is no map of tags: remove it")
            table.reuse(pinned.fd)

    def keep(self, table: Map) -> bool:
        """Pin the map, in place of what is there; return whether it was not. UserError if that is refused."""
        is_new = not (self.prepare() and self._is_ours(table))
        if is_new:
            self._path.unlink(missing_ok=True)
            pin(table.fd, self._path)
        self._give(self._path, os.O_PATH, _PIN_MODE)
        return is_new

    def _make_folder(self) -> None:
        try:
            with suppress(FileExistsError):
                self._folder.mkdir(mode=_FOLDER_MODE)
        except OSError as error:
            raise _refused(self._folder, error) from None
        self._give(self._folder, os.O_DIRECTORY, _FOLDER_MODE)

    def _give(self, path: Path, kind: int, mode: int) -> None:
        """Let those have it who may: itself, whatever others make a link of meanwhile."""
        try:
            fd = os.open(path, kind | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                if stat.S_ISLNK(found.st_mode):
                    raise UserError(f"{path}: is no pin: remove it")
                itself = f"/proc/self/fd/{fd}"
                if (found.st_uid, found.st_gid) != (self._owner, self._group):
                    os.chown(itself, self._owner, self._group)
                if stat.S_IMODE(found.st_mode) != mode:
                    Path(itself).chmod(mode)
            finally:
                os.close(fd)
        except OSError as error:
            raise _refused(path, error) from None

    def _is_ours(self, table: Map) -> bool:
        try:
            with opened_map(self._path, BPF_F_RDONLY) as pinned:
                return pinned.id == OpenMap(table.fd).id
        except (OSError, UserError):  # it is no map
            return False

    def remove(self) -> int:
        """Remove the pin and its folder; return how many pins there were."""
        removed = 0
        with suppress(OSError):  # what somebody else put there stays
            fd = os.open(self._folder, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.unlink(NAME, dir_fd=fd)
                removed = 1
            finally:
                os.close(fd)
        with suppress(OSError):
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
