"""What outlives the daemon: maps, links and programs pinned in bpffs, and whether they belong together.

``<bpffs>/sockledger/v1`` holds ``maps/NAME-SHAPE``, ``links/NAME`` and, once all maps are there, the symbolic
link ``root``, which names the cgroup that they count in by its id. SHAPE tells apart maps of one name whose
layout or size differs, so that one version or configuration can follow another; ``layouts/NAME-SHAPE``, a
symbolic link, too, has the map's layout in words. Another, ``generations/NAME``, tells apart when a map's
sums began at 0 alone, in whatever shape. ``programs/sl_flush-SHAPE`` brings home what is in
``maps/sockets-SHAPE``: while that is pinned, all that it fills is. ``hooks/NAME`` is the program that a
tracepoint's link runs. The symbolic link ``attached`` names the links of the last start that came to its end.
"""

import errno
import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sockledger.errors import UserError, remedy
from sockledger.kernel.btf import Layout, describe, parse
from sockledger.kernel.libbpf import BPF_F_RDONLY, Link, Map, OpenMap, open_pin, pin
from sockledger.kernel.maps import CORE, FIXED, PENDING

logger = logging.getLogger(__name__)

# Moves on when a daemon can no longer go on with what another has pinned.
VERSION = "v1"
_PLAIN = "-"  # a layout without members; no links
_SYMLINKS = ("layouts", "generations")
KINDS = (*_SYMLINKS, "maps", "links", "programs", "hooks")


def shape(each: Map) -> str:
    """Return what a map that is taken over must agree in, as a short name."""
    entries = 0 if each.name in FIXED else each.max_entries
    text = f"{each.type} {each.key_size} {each.value_size} {entries} {each.flags} {_layouts(each)}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _layouts(each: Map) -> str:
    """Return the layouts of a map's keys and values as a line of text.

    With the labels of a later version sums are moved; those in what never changes the programs bound.
    """
    texts = []
    for kind in ("key", "value"):
        try:
            texts.append(describe(getattr(each, kind), enums=each.name not in FIXED))
        except ValueError:  # a plain number, as an array's index
            texts.append(_PLAIN)
    return "/".join(texts)


class MapPin(NamedTuple):
    """A map, where it is pinned or is to be, and its layouts in words, which lie beside it."""

    map: Map
    path: Path
    layouts: str


class Pins:
    """The pins of one daemon's counts."""

    def __init__(self, bpffs: Path) -> None:
        self._home = bpffs / "sockledger"
        self.folder = self._home / VERSION
        self._root = self.folder / "root"
        self._attached = self.folder / "attached"
        self.resumed = False  # whether there was something to go on with
        self.attached: set[str] = set()  # the links of the last start that came to its end
        self.taken_over: set[str] = set()  # maps, by name
        self.generations: dict[str, str] = {}  # by a map's name; of those of an older version there are none

    def there(self) -> bool:
        """Whether anything is pinned, by whatever version."""
        return bool(self._pinned_versions())

    def _pinned_versions(self) -> list[str]:
        return [each.name for each in self._versions() if _holds_any(each)]

    def _versions(self) -> list[Path]:
        # a symbolic link is nobody's but whoever wants us to remove what it points to
        versions = (path for path in _entries(self._home) if path.match("v[0-9]*"))
        return sorted(path for path in versions if stat.S_ISDIR(_mode(path)))

    def begin(self, root_id: int, wanted: Collection[MapPin]) -> None:
        """Make the folders. What is pinned but does not belong together is removed, with a line in the log.

        UserError if what is pinned counts in another cgroup, or is another version's.
        """
        self.resumed, self.attached = False, set()
        versions = self._pinned_versions()
        if others := [each for each in versions if each != VERSION]:
            raise UserError(self._not_understood(", ".join(others)))
        if versions and (reason := self._unfit(root_id, wanted)):
            logger.warning("what was pinned is removed, counts begin at 0", extra={"reason": reason})
            self.remove()
        if self.resumed:
            if not (self.folder / "generations").exists():
                logger.warning(
                    "somebody has removed generations: what began anew may be shown at 0 once more"
                )
            try:
                self.attached = {*os.readlink(self._attached).split(",")} - {_PLAIN}  # noqa: PTH115 - no path
            except FileNotFoundError:
                logger.warning("it is not known what was attached: if a program was not, counts are missing")
        self.make_folders()
        self.generations = {path.name: os.readlink(path) for path in self.all("generations")}  # noqa: PTH115

    def new_generation(self, names: Iterable[str]) -> None:
        """Give maps that begin at 0 another generation; it is written down before they are pinned."""
        for name in names:
            self._generation(name).unlink(missing_ok=True)
            self.generations[name] = secrets.token_hex(4)

    def _not_understood(self, what: str) -> str:
        return (
            f"{self._home}: {what} was pinned by a version of sockledger that this one does not understand: "
            "run that one, or sockledger uninstall, which ends its counts"
        )

    def make_folders(self) -> None:
        """Make what pins lie in, as far as it is not there. UserError if something else is."""
        for folder in (self._home, self.folder, *(self.folder / kind for kind in KINDS)):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            if not stat.S_ISDIR(_mode(folder)):
                raise UserError(f"{folder}: is no folder: remove it")

    def counted_in(self) -> int | None:
        """Return the id of the cgroup that what is pinned counts in, None if it is no whole."""
        try:
            return int(self._root.readlink().name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which says that it is no link
                raise
            raise ValueError(f"{self._root} names no cgroup") from None

    def _unfit(self, root_id: int, wanted: Collection[MapPin]) -> str:
        """Return why what is pinned cannot be gone on with, empty if it can."""
        counted_in = self.counted_in()
        if counted_in is None:
            return "a start or an uninstall did not come to its end, or somebody has removed root"
        if missing := CORE - set(map(pin_name, self.all("maps"))):
            return f"somebody has removed {', '.join(sorted(missing))}"
        left, names = self.others(wanted), {each.map.name for each in wanted}
        if not names.isdisjoint(FIXED & set(map(pin_name, left))):
            raise UserError(self._not_understood(VERSION))
        if unknown := {path for path in left if pin_name(path) in names} - self._with_layouts():
            for path in unknown:
                with opened_map(path):
                    pass  # what is no map is told of, and nothing is removed
            found = ", ".join(sorted(path.name for path in unknown))
            return f"somebody has removed layouts, or these maps are none of ours: {found}"
        if not self.flushes(left).keys() <= self.all("programs"):
            return "somebody has removed programs"
        if counted_in == root_id:
            self.resumed = True
            return ""
        at = set()
        for path in self.all("links"):
            link = _open_link(path)
            at.add(link.cgroup_id)
            link.destroy()
        if not at - {None, 0}:  # tracepoints have no cgroup, and of one that is gone the id is 0
            return "the cgroup that was counted in is gone, or nothing is attached there"
        raise UserError(
            f"{self.folder}: what is pinned there counts in another cgroup (id {counted_in}): give the "
            "--path.cgroupfs of before, or run sockledger uninstall, which ends its counts"
        )

    def complete(self, root_id: int) -> None:
        """Note that all maps are pinned, and in which cgroup they count."""
        with suppress(FileExistsError):
            self._attached.symlink_to(_names(self.attached))
        with suppress(FileExistsError):
            self._root.symlink_to(str(root_id))

    def note_attached(self, names: Set[str]) -> None:
        """Note which links are there, for the next start to say if they are not."""
        if names != self.attached:
            _replace(self._attached, lambda fresh: fresh.symlink_to(_names(names)))
        self.attached = set(names)

    def remove(self) -> int:
        """Remove all pins, of whatever version, and return how many they were: what is attached ends."""
        return sum(map(_remove_version, self._versions()))

    def clear(self) -> None:
        """Remove what is pinned by this version."""
        if self.folder in self._versions():
            _remove_version(self.folder)

    def names(self) -> set[str]:
        """Return all that is pinned, as KIND/NAME."""
        return {f"{kind}/{path.name}" for kind in KINDS for path in self.all(kind)}

    def all(self, kind: str) -> set[Path]:
        """Return the pins of a kind, without what is none."""
        is_one = stat.S_ISLNK if kind in _SYMLINKS else stat.S_ISREG
        return {path for path in _entries(self.folder / kind) if is_one(path.lstat().st_mode)}

    def others(self, maps: Collection[MapPin]) -> set[Path]:
        """Return the pins of maps that are none of *maps*."""
        return self.all("maps") - {each.path for each in maps}

    def _with_layouts(self) -> set[Path]:
        """Return the pins of maps that are ours for certain."""
        layouts = self.all("layouts")
        return {path for path in self.all("maps") if self._layouts(path) in layouts}

    def of_name(self, name: str) -> list[Path]:
        """Return the pins of our maps of this name, in whatever shape."""
        return [path for path in self._with_layouts() if pin_name(path) == name]

    def of_map(self, each: Map) -> MapPin:
        """Return the pin of a map whose size is set."""
        return MapPin(each, self.folder / "maps" / f"{each.name}-{shape(each)}", _layouts(each))

    def keep_map(self, each: MapPin) -> None:
        """Pin a map, unless it is, with what is beside it."""
        with suppress(FileExistsError):
            self._layouts(each.path).symlink_to(each.layouts)
        if generation := self.generations.get(each.map.name):
            with suppress(FileExistsError):
                self._generation(each.map.name).symlink_to(generation)
        self.keep(each.map.fd, each.path)

    def layouts(self, path: Path) -> tuple[Layout | None, Layout | None]:
        """Return the layouts of keys and values of a pinned map, None for a plain number."""
        text = os.readlink(self._layouts(path))  # noqa: PTH115 - it is no path
        try:
            key, value = (None if each == _PLAIN else parse(each) for each in text.split("/"))
        except ValueError:
            raise ValueError(f"{self._layouts(path)} is not readable") from None
        return key, value

    def _layouts(self, path: Path) -> Path:
        return self.folder / "layouts" / path.name

    def _generation(self, name: str) -> Path:
        return self.folder / "generations" / name

    def remove_maps(self, paths: Iterable[Path]) -> None:
        """Remove maps' pins, and layouts of what is not pinned."""
        for path in paths:
            path.unlink()
        for path in self.all("layouts") - set(map(self._layouts, self.all("maps"))):
            path.unlink()

    def link(self, name: str) -> Path:
        """Return where a link is pinned, or is to be."""
        return self.folder / "links" / name

    def remove_link(self, name: str) -> None:
        """Remove a link's pin, if there is one, and its hook's program."""
        self.link(name).unlink(missing_ok=True)
        self.hook(name).unlink(missing_ok=True)

    def open_link(self, name: str) -> Link | None:
        """Return a pinned link, None if there is none."""
        with suppress(FileNotFoundError):
            return _open_link(self.link(name))
        return None

    def map_id(self, path: Path) -> int | None:
        """Return the id of the map that is pinned at *path*, None if there is none. It may be read-only."""
        try:
            with opened_map(path, BPF_F_RDONLY) as table:
                return table.id
        except (FileNotFoundError, UserError):
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:  # a link knows no BPF_F_RDONLY
                raise
            return None

    def link_ids(self, name: str) -> set[int]:
        """Return the id of a pinned link, none if there is none, or it is detached."""
        link = self.open_link(name)
        if link is None:
            return set()
        try:
            return {link.id} if link.attached() else set()
        finally:
            link.destroy()

    def take_over(self, each: MapPin) -> None:
        """Let a map's object be loaded with the one that is pinned, if there is one."""
        with suppress(FileNotFoundError), opened_map(each.path) as table:
            each.map.reuse(table.fd)
            self.taken_over.add(each.map.name)

    def keep(self, fd: int, path: Path) -> None:
        """Pin, unless it is. UserError if something else is there."""
        try:
            pin(fd, path)
        except FileExistsError:
            if not stat.S_ISREG(_mode(path) or stat.S_IFREG):  # it may be gone meanwhile
                raise UserError(f"{path}: is no pin: remove it, or run sockledger uninstall") from None

    def flushes(self, maps: Iterable[Path]) -> dict[Path, Path]:
        """Return, by where its flush is pinned or is to be, what among *maps* has pending counts."""
        programs = self.folder / "programs"
        pending = (path for path in maps if pin_name(path) == PENDING)
        return {programs / path.name.replace(PENDING, "sl_flush"): path for path in pending}

    def replace(self, fd: int, path: Path) -> None:
        """Pin in place of what is pinned there: at no time is there none."""
        _replace(path, partial(pin, fd))

    def hook(self, name: str) -> Path:
        """Return where a hook's program is pinned, or is to be."""
        return self.folder / "hooks" / name

    def missing(self, names: set[str]) -> set[str]:
        """Return the names of maps that are pinned in no shape."""
        return names - set(map(pin_name, self.all("maps")))

    def keep_program(self, name: str, fd: int, is_new: bool) -> int:  # noqa: FBT001
        """Pin a hook's program, if it *is_new*; return a descriptor of the one that is pinned."""
        path = self.hook(name)
        if is_new or not path.exists():
            self.replace(fd, path)
        return open_pin(path)


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    """Make something in place of what is at *path*."""
    fresh = path.with_name("new")
    fresh.unlink(missing_ok=True)
    make(fresh)
    fresh.rename(path)


def _names(links: Set[str]) -> str:
    return ",".join(sorted(links)) or _PLAIN


def pin_name(path: Path) -> str:
    """Return what a pin is called, without its shape."""
    return path.name.partition("-")[0]


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, nothing if there is none."""
    try:  # not by glob, for which any error means none from Python 3.13 on
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _holds_any(folder: Path) -> bool:
    """Whether anything but folders is in a folder: a start that was refused at once leaves these.

    Others may be removing it.
    """
    for path in _entries(folder):
        mode = _mode(path)
        if _holds_any(path) if stat.S_ISDIR(mode) else mode:
            return True
    return False


def _mode(path: Path) -> int:
    """Return st_mode, 0 if nothing is there any more."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0


def _remove_version(folder: Path) -> int:
    with suppress(FileNotFoundError, IsADirectoryError):
        (folder / "root").unlink()  # what is left, if this is interrupted, is no whole
    return _remove_tree(folder)


def _remove_tree(folder: Path) -> int:
    """Remove a folder; return how many files and links there were in it."""
    removed = 0
    for path in folder.iterdir():
        if stat.S_ISDIR(path.lstat().st_mode):
            removed += _remove_tree(path)
        else:
            path.unlink()
            removed += 1
    folder.rmdir()
    return removed


@contextmanager
def opened(path: Path, file_flags: int = 0) -> Iterator[int]:
    """Open what is pinned at *path*, as a descriptor."""
    fd = open_pin(path, file_flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_map(path: Path, file_flags: int = 0) -> Iterator[OpenMap]:
    """Open the map that is pinned at *path*; UserError if it is none."""
    with opened(path, file_flags) as fd:
        _require_kind("map", fd, path)
        yield OpenMap(fd)


def _open_link(path: Path) -> Link:
    """Open the link that is pinned at *path*; UserError if it is none."""
    try:
        link = Link.open(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        if remedy(error):
            raise
        raise UserError(f"{path}: {error.strerror}: remove it, or run sockledger uninstall") from None
    try:
        _require_kind("link", link.fd, path)
    except BaseException:
        link.destroy()
        raise
    return link


def _require_kind(kind: str, fd: int, path: Path) -> None:
    """Raise UserError if it is another's: a program's figures would be taken for a map's, or a link's."""
    if os.readlink(f"/proc/self/fd/{fd}") != f"anon_inode:bpf-{kind}":  # noqa: PTH115 - no path
        raise UserError(f"{path}: is no {kind}: remove it, or run sockledger uninstall")
