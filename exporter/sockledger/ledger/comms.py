"""Names of processes whose sums outlive their cgroups: a label set has as many at most as a cgroup.

Of those beyond, the sums go on where another cgroup is shown with the same name. Where there is none their
counters end: the sums only count in what is shown without names, and one like it is born at 0 again. They
are no `other`'s, for that would seem to count anew what has been shown already.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import cached_property

from sockledger.workloads.naming import OVERFLOW, Workload, label_value

GROUP = "sockledger_task_received_bytes"

Comm = tuple[int, ...]  # struct comm
Key = tuple[int, ...]  # struct task_key: a cgroup's or a label set's id, a comm, and the rest

NONE: Comm = (0, 0)  # what is not told apart
OTHER: Comm = struct.unpack("=2Q", b"other".ljust(16, b"\0"))


def comm_of(key: Key) -> Comm:
    """Return the name that a row is of."""
    return key[1:3]


def comm_text(comm: Comm) -> str:
    """Return a name as it is shown."""
    return label_value(os.fsdecode(struct.pack("=2Q", *comm).split(b"\0")[0]))


def comm_labels(workload: Workload, comm: str, family: str) -> list[tuple[str, str]]:
    """Return the labels of a name's series."""
    return [*workload.labels(), ("comm", comm), ("family", family)]


def shown_as(workload: Workload, comm: Comm) -> str:
    """Return under which name a row is shown; empty: under none."""
    return comm_text(OTHER if workload == OVERFLOW else comm)


class Comms:
    """What a flush has found of *rows*, whose owners *name_of* knows; those *leaving* keep nothing."""

    def __init__(
        self,
        rows: Collection[tuple[Key, tuple[int, ...]]],
        most: int,
        name_of: Callable[[int], Workload | None],
        leaving: Collection[int],
    ) -> None:
        self._rows = rows
        self._most = most
        self._name_of = name_of
        self._leaving = leaving

    @cached_property
    def _shown(self) -> defaultdict[int, set[Comm]]:
        """Names by cgroup or label set, as far as anything counts under them."""
        shown: defaultdict[int, set[Comm]] = defaultdict(set)
        for key, sums in self._rows:
            if comm_of(key) not in (NONE, OTHER) and any(sums):
                shown[key[0]].add(comm_of(key))
        return shown

    @cached_property
    def _staying(self) -> defaultdict[Workload | None, set[int]]:
        found: defaultdict[Workload | None, set[int]] = defaultdict(set)
        for number in self._shown.keys() - set(self._leaving):
            found[self._name_of(number)].add(number)
        return found

    def target(self, key: Key, workload: Workload, number: int) -> Key:
        """Return where the sums of a row of *workload* go: to those of *number*, if there is room."""
        comm = comm_of(key)
        if comm in (NONE, OTHER):
            return number, *key[1:]
        shown = self._shown[number]
        if comm in shown or len(shown) < self._most:
            shown.add(comm)
            return number, *key[1:]
        for other in sorted(self._staying[workload] - {number}):
            if comm in self._shown[other]:
                return other, *key[1:]
        return number, *NONE, *key[3:]
