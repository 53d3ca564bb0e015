"""The cgroup v2 hierarchy: where it is, and from a cgroup's id to its path."""

import ctypes
import errno
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from sockledger.errors import UserError, remedy
from sockledger.kernel.filesystem import is_cgroup2

_DELETED = " (deleted)"  # what the kernel adds to the path of what is gone
FILEID_KERNFS = 0xFE  # include/linux/exportfs.h
MOUNTINFO = Path("/proc/self/mountinfo")


class _FileHandle(ctypes.Structure):
    """struct file_handle of a kernfs node: the cgroup's id is the handle."""

    _fields_ = (("bytes", ctypes.c_uint32), ("type", ctypes.c_int), ("id", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.POINTER(_FileHandle), ctypes.c_int)


class CgroupRoot:
    """The folder that stands for ``/``: the hierarchy's root, or a cgroup below it, as `--path.cgroupfs`."""

    def __init__(self, path: Path) -> None:
        """Open *path*; UserError if it is no cgroup v2 folder."""
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if remedy(error):
                raise
            raise UserError(
                f"{path}: {error.strerror}: --path.cgroupfs must be a folder of a cgroup v2 file system"
            ) from None
        if not is_cgroup2(path):
            os.close(self.fd)
            raise UserError(
                f"{path}: not on a cgroup v2 file system: mount one (mount -t cgroup2 none {path}) "
                "or name another folder with --path.cgroupfs"
            )
        self.path = path.resolve()
        self.id = os.fstat(self.fd).st_ino
        self._may_open = True  # open_by_handle_at needs CAP_DAC_READ_SEARCH
        self.sees_all = True  # the last walk: without it folders may be closed to us

    def paths_of(self, cgroup_ids: Collection[int]) -> Iterator[tuple[int, str | None]]:
        """Yield each cgroup with its path, None if it is gone; without the capability by a walk.

        OSError for what may pass, as too many open files.
        """
        try:
            for cgroup_id in cgroup_ids if self._may_open else ():
                yield cgroup_id, self.path_of(cgroup_id)
        except PermissionError:
            self._may_open = False
        if cgroup_ids and not self._may_open:
            walked = dict(self.walk())
            for cgroup_id in cgroup_ids:
                yield cgroup_id, walked.get(cgroup_id)

    def path_of(self, cgroup_id: int) -> str | None:
        """Return the path of a living cgroup, ``/`` for the root itself; None if there is none below it.

        Needs CAP_DAC_READ_SEARCH, PermissionError without; OSError for what may pass, as too many open files.
        """
        if cgroup_id == self.id:
            return "/"
        handle = _FileHandle(bytes=8, type=FILEID_KERNFS, id=cgroup_id)
        fd = _libc.open_by_handle_at(self.fd, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            number = ctypes.get_errno()
            if number in (errno.ESTALE, errno.ENOENT):
                return None
            raise OSError(number, f"open_by_handle_at: {os.strerror(number)}")
        try:
            absolute = str(Path(f"/proc/self/fd/{fd}").readlink())
        finally:
            os.close(fd)
        if absolute.endswith(_DELETED) and not is_cgroup(Path(absolute), cgroup_id):  # one may be called so
            return None
        return self._relative(absolute)

    def _relative(self, absolute: str) -> str | None:
        prefix = str(self.path)
        return absolute.removeprefix(prefix) if absolute.startswith(prefix + "/") else None

    def walk(self) -> Iterator[tuple[int, str]]:
        """Yield (id, path) of every living cgroup, the root first; what vanishes meanwhile is passed over.

        OSError for what may pass, as too many open files.
        """
        self.sees_all = True
        yield self.id, "/"
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(f"{self.path}{folder}") as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            path = f"{folder}/{entry.name}"
                            folders.append(path)
                            yield entry.inode(), path
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EACCES):
                    raise
                if error.errno == errno.EACCES:
                    self.sees_all = False


def is_cgroup(path: Path, cgroup_id: int) -> bool:
    """Whether *path* is this cgroup's; OSError if it cannot be seen."""
    try:
        return path.stat().st_ino == cgroup_id
    except FileNotFoundError:
        return False


def find_root(override: Path | None) -> CgroupRoot:
    """Return the cgroup v2 root: *override*, or the mount that mountinfo names, also on a hybrid host."""
    if override is not None:
        return CgroupRoot(override)
    for mount_point in _cgroup2_mounts(os.fsdecode(MOUNTINFO.read_bytes())):
        with suppress(UserError):  # something else may be mounted over it
            return CgroupRoot(Path(mount_point))
    raise UserError(
        "no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup (or another folder), "
        "or name its folder with --path.cgroupfs"
    )


def _cgroup2_mounts(mountinfo: str) -> list[str]:
    """Return mount points of cgroup v2, those of the whole hierarchy first. Source: proc_pid_mountinfo(5)."""
    found = []
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        if tail.split(" ")[0] == "cgroup2":
            _id, _parent, _device, root, mount_point = fields.split(" ")[:5]
            found.append((root != "/", _unescape(mount_point)))
    return [mount_point for _, mount_point in sorted(found, key=lambda entry: entry[0])]


def _unescape(text: str) -> str:
    for escaped, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(escaped, char)
    return text
