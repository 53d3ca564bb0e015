"""What is noted beside sums: cgroups by id, and label sets that sums of gone cgroups are kept for."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.libbpf import Map

logger = logging.getLogger(__name__)

VALUES = 6  # that a workload is told apart by
LABELS_BYTES = 432  # for these, with what is between them, as in bpf/kept.h

# For a cgroup's `removed`: its sums are not kept, and it is not shown any more.
ENDED = (1 << 64) - 1


def boottime() -> int:
    """Return CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class NotedCgroup(NamedTuple):
    """A cgroup below the root. Times are of CLOCK_BOOTTIME, in nanoseconds; 0: not yet."""

    removed: int
    released: int  # as the kernel has told: nothing counts for it any more
    path: str  # empty where nobody knows it


class KeptLabelSet(NamedTuple):
    """A label set. *seen* is when it last had a cgroup, or up to an hour before; 0: it has to end.

    *left* is when one left it that lives on under another name; 0: all have seen that.
    """

    seen: int
    left: int
    labels: tuple[str, ...]


class NotedCgroups:
    """The map `cgroups`, which the kernel fills as cgroups come and go. There is *room* for so many."""

    def __init__(self, table: Map, room: int) -> None:
        self._table = table
        self.room = room
        self._key, self._value = table.key.struct, table.value.struct
        self._path_bytes = table.value.field("path").size

    def all(self) -> dict[int, NotedCgroup]:
        """Return them by id."""
        return {cgroup_id: _noted(*members) for cgroup_id, members in _entries(self._table)}

    def note(self, cgroup_id: int, path: str, gone: int = 0) -> bool:
        """Note a cgroup that is not there, *gone* since then; return whether there is room for it."""
        if not self.room or len(os.fsencode(path)) >= self._path_bytes:
            return False
        return self._table.make(self._key.pack(cgroup_id), self._pack(NotedCgroup(gone, 0, path)))

    def note_older(self, root: CgroupRoot) -> None:
        """Note the cgroups that are there already, and that others are gone whose end nobody has seen.

        One that comes or goes meanwhile its own beginning and end have noted.
        """
        noted = self.all()
        try:
            for cgroup_id, path in root.walk():
                if noted.pop(cgroup_id, None) is None and cgroup_id != root.id:
                    self.note(cgroup_id, path)
            for cgroup_id, living in root.paths_of([number for number in noted if not noted[number].removed]):
                if living is None and root.sees_all:
                    self._note_end(cgroup_id)
        except OSError as error:  # they are named when they count
            logger.warning("older cgroups are not looked for", extra={"error": str(error)})

    def _note_end(self, cgroup_id: int) -> None:
        """Note that a cgroup was found removed, unless the kernel has told: it may be released any time."""
        value = self._table.lookup(self._key.pack(cgroup_id))
        if value and not (each := _noted(*self._value.unpack(value))).removed:
            self._update(cgroup_id, each._replace(removed=boottime()))

    def end(self, cgroup_id: int, each: NotedCgroup) -> None:
        """Note that a cgroup's sums are not kept."""
        self._update(cgroup_id, each._replace(removed=ENDED))

    def _update(self, cgroup_id: int, each: NotedCgroup) -> None:
        self._table.update(self._key.pack(cgroup_id), self._pack(each))

    def _pack(self, each: NotedCgroup) -> bytes:
        return self._value.pack(each.removed, each.released, 0, os.fsencode(each.path))

    def forget(self, cgroup_id: int) -> None:
        """Delete a cgroup."""
        self._table.delete(self._key.pack(cgroup_id))


class KeptLabelSets:
    """The map `label_sets`. There is *room* for so many; more may be there from before."""

    def __init__(self, table: Map, room: int) -> None:
        self._table = table
        self.room = room
        self._key, self._value = table.key.struct, table.value.struct

    def all(self) -> dict[int, KeptLabelSet]:
        """Return them by id."""
        return {
            label_set_id: KeptLabelSet(seen, left, _split(labels))
            for label_set_id, (seen, left, labels) in _entries(self._table)
        }

    def make(self, label_set_id: int, each: KeptLabelSet) -> bool:
        """Write a label set that is not there; return whether there was room for it."""
        return fits(each.labels) and self._table.make(self._key.pack(label_set_id), self._pack(each))

    def update(self, label_set_id: int, each: KeptLabelSet) -> None:
        """Write one that is there anew."""
        self._table.update(self._key.pack(label_set_id), self._pack(each))

    def _pack(self, each: KeptLabelSet) -> bytes:
        return self._value.pack(each.seen, each.left, _joined(each.labels))

    def forget(self, label_set_id: int) -> None:
        """Delete a label set."""
        self._table.delete(self._key.pack(label_set_id))


class CgroupLabels:
    """The map `cgroup_labels`: what cgroups are shown as, by id."""

    def __init__(self, table: Map) -> None:
        self._table = table
        self._key, self._value = table.key.struct, table.value.struct

    def all(self) -> dict[int, tuple[str, ...]]:
        """Return them by id."""
        return {cgroup_id: _split(labels) for cgroup_id, (labels,) in _entries(self._table)}

    def note(self, cgroup_id: int, labels: tuple[str, ...]) -> None:
        """Note what a cgroup is shown as; if that is too long, nothing. OSError if there is no memory."""
        if fits(labels):
            self._table.update(self._key.pack(cgroup_id), self._value.pack(_joined(labels)))
        else:
            self.forget(cgroup_id)

    def forget(self, cgroup_id: int) -> None:
        """Delete a cgroup, if it is there."""
        with suppress(FileNotFoundError):
            self._table.delete(self._key.pack(cgroup_id))


def fits(labels: tuple[str, ...]) -> bool:
    """Whether values are not too long to be noted."""
    return len(_joined(labels)) <= LABELS_BYTES


def _entries(table: Map) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the ids that a map has, with the members of their values."""
    for keys, values in table.batches():
        for (number,), members in zip(
            table.key.unpack_all(keys), table.value.unpack_all(values), strict=True
        ):
            yield number, members


def _joined(labels: tuple[str, ...]) -> bytes:
    """Return values as the map has them; the rest of it are NULs, too."""
    return "\0".join(labels).encode()


def _split(joined: bytes) -> tuple[str, ...]:
    return tuple(joined.decode().split("\0")[:VALUES])


def _noted(removed: int, released: int, level: int, path: bytes) -> NotedCgroup:
    return NotedCgroup(removed, released, _below(os.fsdecode(path[: path.index(0)]), level))


def _below(path: str, level: int) -> str:
    """Return a path without its first *level* components."""
    return "/".join(["", *path.split("/")[1 + level :]]) if level else path
