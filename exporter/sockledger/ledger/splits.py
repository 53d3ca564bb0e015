"""Names that split sums within a workload, of processes and of sockets; they outlive their cgroups.

A label set has as many at most as a cgroup. Of those beyond, the sums go on where another cgroup is shown
with the same name. Where there is none their counters end: the sums only count in what is shown without
names, and one like it is born at 0 again. They are no `other`'s, for that would seem to count anew what has
been shown already.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from sockledger.kernel.sums import TAGGED_TOTALS, TASK_TOTALS
from sockledger.workloads.naming import OVERFLOW, Workload, label_value

Name = tuple[int, ...]  # in words of 64 bits
Key = tuple[int, ...]  # a cgroup's or a label set's id, a name, and the rest


@dataclass(frozen=True)
class Split:
    """Sums that are told apart by names."""

    group: str  # of births
    label: str
    words: int  # that a name has in keys

    @property
    def none(self) -> Name:
        """The name of what is not told apart."""
        return (0,) * self.words

    @property
    def other(self) -> Name:
        """The name of all for which there is no place."""
        return struct.unpack(f"={self.words}Q", b"other".ljust(8 * self.words, b"\0"))

    def name_of(self, key: Key) -> Name:
        """Return the name that a row is of."""
        return key[1 : 1 + self.words]

    def rest_of(self, key: Key) -> Key:
        """Return what stands behind the name in a row's key: a family of sockets first, if there is any."""
        return key[1 + self.words :]

    def text(self, name: Name) -> str:
        """Return a name as it is shown."""
        return label_value(os.fsdecode(struct.pack(f"={self.words}Q", *name).split(b"\0")[0]))

    def shown_as(self, workload: Workload, name: Name) -> str:
        """Return under which name a row is shown; empty: under none."""
        return self.text(self.other if workload == OVERFLOW else name)

    def labels(self, workload: Workload, name: str, family: str | None = None) -> list[tuple[str, str]]:
        """Return the labels of a name's series."""
        of_family = [] if family is None else [("family", family)]
        return [*workload.labels(), (self.label, name), *of_family]


COMMS = Split("sockledger_task_received_bytes", "comm", 2)
TAGS = Split("sockledger_tagged_receive_bytes", "tag", 4)
SPLITS: Mapping[str, Split] = {TASK_TOTALS: COMMS, TAGGED_TOTALS: TAGS}


class NamedRows:
    """What a flush has found of *rows*, whose owners *name_of* knows; those *leaving* keep nothing."""

    def __init__(
        self,
        split: Split,
        rows: Collection[tuple[Key, tuple[int, ...]]],
        most: int,
        name_of: Callable[[int], Workload | None],
        leaving: Collection[int],
    ) -> None:
        self._split = split
        self._rows = rows
        self._most = most
        self._name_of = name_of
        self._leaving = leaving

    @cached_property
    def _shown(self) -> defaultdict[int, set[Name]]:
        """Names by cgroup or label set, as far as anything counts under them."""
        shown: defaultdict[int, set[Name]] = defaultdict(set)
        for key, sums in self._rows:
            if self._is_name(name := self._split.name_of(key)) and any(sums):
                shown[key[0]].add(name)
        return shown

    def _is_name(self, name: Name) -> bool:
        return name not in (self._split.none, self._split.other)

    @cached_property
    def _staying(self) -> defaultdict[Workload | None, set[int]]:
        found: defaultdict[Workload | None, set[int]] = defaultdict(set)
        for number in self._shown.keys() - set(self._leaving):
            found[self._name_of(number)].add(number)
        return found

    def target(self, key: Key, workload: Workload, number: int) -> Key:
        """Return where the sums of a row of *workload* go: to those of *number*, if there is room."""
        name = self._split.name_of(key)
        if not self._is_name(name):
            return number, *key[1:]
        shown = self._shown[number]
        if name in shown or len(shown) < self._most:
            shown.add(name)
            return number, *key[1:]
        for other in sorted(self._staying[workload] - {number}):
            if name in self._shown[other]:
                return other, *key[1:]
        return number, *self._split.none, *self._split.rest_of(key)
