"""The map that sockets are tagged by, pinned in a folder of its own for those who may.

It stays when versions and limits change, for what is in it only its users could put there again.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from sockledger.errors import UserError, remedy
from sockledger.kernel.libbpf import Map, OpenMap, pin
from sockledger.kernel.pins import opened_map
from sockledger.tags import FOLDER, NAME


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
        """Pin the map, unless it is; return whether it was not. UserError if something else is in the way."""
        self._make_folder()
        is_new = not self._is_ours(table)
        if is_new:
            with suppress(FileNotFoundError, IsADirectoryError):
                self._path.unlink()
            pin(table.fd, self._path)
        self._give(self._path, stat.S_IFREG | 0o660, "is no pin: remove it")
        return is_new

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o750)
        except FileExistsError:
            pass
        except OSError as error:
            raise self._refused(self._folder, error) from None
        self._give(self._folder, stat.S_IFDIR | 0o750, "is no folder: remove it")

    def _is_ours(self, table: Map) -> bool:
        try:
            if not stat.S_ISREG(self._path.lstat().st_mode):
                return False
            with opened_map(self._path) as pinned:
                return pinned.id == OpenMap(table.fd).id
        except FileNotFoundError:
            return False

    def _give(self, path: Path, mode: int, otherwise: str) -> None:
        """Let those have it who may; UserError where it is something else, or that is not allowed."""
        found = path.lstat()
        if stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode):
            raise UserError(f"{path}: {otherwise}")
        try:
            if (found.st_uid, found.st_gid) != (self._owner, self._group):
                os.chown(path, self._owner, self._group, follow_symlinks=False)
            if found.st_mode != mode:
                path.chmod(stat.S_IMODE(mode))
        except OSError as error:
            raise self._refused(path, error) from None

    def _refused(self, path: Path, error: OSError) -> Exception:
        if remedy(error):
            return error
        return UserError(
            f"{path}: {error.strerror}: the daemon must be able to make it and to give it to who may tag "
            "(CAP_CHOWN), or leave tags out (--no-collector.tags)"
        )

    def remove(self) -> int:
        """Remove the pin and its folder; return how many pins there were."""
        removed = 0
        with suppress(FileNotFoundError):
            self._path.unlink()
            removed = 1
        with suppress(OSError):  # what somebody else put there stays
            self._folder.rmdir()
        return removed
