"""What becomes of the sums of cgroups that are gone: they stay with what the cgroup was shown as.

A cgroup is shown on until all scrapers have seen its end. Then, flush by flush:

1. its label set is written to a map, if it is not there;
2. its sums are moved to the label set's rows, each inside the kernel;
3. a later flush finds its rows empty and deletes them,
4. and then the cgroup.

A label set is shown as long as it has a cgroup, as the sum of all rows. If it has none for a day, it ends
the same way: its sums are moved to where they only count in the sum of everything, then its rows are deleted,
then itself. So it may be earlier, the oldest first, where there is no room for another.

All that is known is in the kernel's maps: a daemon that begins between any two steps goes on with the next.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from sockledger.kernel.datapath import LABEL_SET, RETIRED, DataPath
from sockledger.kernel.noted import ENDED, KeptLabelSet, NotedCgroup
from sockledger.workloads.names import Workload

# For so long a label set is kept that has no cgroup; nanoseconds.
DAY = 24 * 3600 * 10**9

Key = tuple[int, ...]
# By map: keys, of which the first member is a cgroup's id or a label set's, with their sums.
Tables = Mapping[str, Iterable[tuple[Key, tuple[int, ...]]]]
Rows = list[tuple[str, Key]]


def label_set_id(workload: Workload) -> int:
    """Return the id under which the sums of a label set are kept."""
    digest = hashlib.blake2b("\0".join(workload).encode(), digest_size=8).digest()
    return LABEL_SET | int.from_bytes(digest, "big")


class Retirement:
    """Takes the steps that each flush allows."""

    def __init__(
        self, datapath: DataPath, gone: float, have_seen: Callable[[int], bool], clock: Callable[[], int]
    ) -> None:
        """*gone*: for so many seconds at least a cgroup is shown on.

        *have_seen* tells whether all scrapers have seen what was at a moment of *clock*.
        """
        self._datapath = datapath
        self._gone = int(gone * 1e9)
        self._have_seen = have_seen
        self._clock = clock
        self._start = clock()  # who scraped before is not known
        self._label_sets: dict[int, KeptLabelSet] = {}
        self._over = True  # of what the last daemon ended it may not have told

    @property
    def workloads(self) -> frozenset[Workload]:
        """All label sets that are kept."""
        return frozenset(Workload(*each.labels) for each in self._label_sets.values())

    def shown(self, named: Mapping[int, Workload]) -> dict[int, Workload]:
        """Read the label sets, and return those that have a cgroup, by id."""
        self._label_sets = self._datapath.label_sets.all()
        present = set(named.values())
        workloads = {number: Workload(*each.labels) for number, each in self._label_sets.items()}
        return {number: workload for number, workload in workloads.items() if workload in present}

    def advance(
        self,
        began: int,
        tables: Tables,
        noted: Mapping[int, NotedCgroup],
        named: Mapping[int, Workload],
        shown: Collection[int],
    ) -> bool:
        """Take steps, given what the flush that *began* then has found; return whether any sums have ended.

        The sums of a cgroup that had gone before are final. *named* are all cgroups that are shown, *shown*
        the label sets.
        """
        now = self._clock()
        gone = {number: each.gone for number, each in noted.items() if 0 < each.gone < began}
        ended = {number for number, each in noted.items() if each.gone == ENDED}
        filled, empty = _rows(tables, gone.keys() | ended, shown)

        left = Counter(named.values())
        due = []
        for number, since in gone.items():
            if number not in filled:
                self._forget_cgroup(number, empty[number], named[number], left)
            elif now - max(since, self._start) >= self._gone and self._have_seen(since):
                due.append(number)

        ending = {
            number
            for number, each in self._label_sets.items()
            if number not in shown and now - each.seen >= DAY
        }
        ended |= self._fold_all(due, filled, named, ending, shown)

        for number in ended:
            if number in filled:
                self._retire(filled[number])
            else:
                self._delete(empty[number])
                self._datapath.cgroups.forget(number)
                self._over = True
        # rows may have been made for a label set that found no room
        lost = {each for each in (*filled, *empty) if each > RETIRED and each not in self._label_sets}
        for number in ending | lost:
            if number in filled:
                self._retire(filled[number])
            else:
                self._delete(empty[number])
                if self._label_sets.pop(number, None):
                    self._datapath.label_sets.forget(number)
                    self._over = True
        over, self._over = self._over, False
        return over

    def _fold_all(
        self,
        due: list[int],
        filled: Mapping[int, Rows],
        named: Mapping[int, Workload],
        ending: set[int],
        shown: Collection[int],
    ) -> set[int]:
        """Move the sums of cgroups to their label sets'. Where there is no room a label set has to end.

        Add it to *ending*, or return the cgroups whose sums are not kept, if there is none.
        """
        vacant = len(ending)
        oldest = sorted(
            self._label_sets.keys() - ending - set(shown),
            key=lambda number: self._label_sets[number].seen,
            reverse=True,
        )
        staying = {workload for number, workload in named.items() if number not in set(due)}
        ended = set()
        for number in due:
            workload = named[number]
            label_set = label_set_id(workload)
            if self._fold(filled[number], label_set, workload):
                continue
            if vacant:
                vacant -= 1  # at a later flush there is room
                staying.add(workload)
            elif oldest and self._datapath.label_sets.fits(workload):
                self._note_seen(oldest[-1], 0)
                ending.add(oldest.pop())
                staying.add(workload)
            elif workload not in staying and label_set not in self._label_sets:
                self._datapath.cgroups.end(number)
                ended.add(number)
        return ended

    def _fold(self, rows: Rows, label_set: int, workload: Workload) -> bool:
        """Move a cgroup's sums to its label set's; return whether there was room for them."""
        kept = self._datapath.kept
        moves = [(kept[table], key, (label_set, *key[1:])) for table, key in rows]
        if not all(sums.make(target) for sums, _, target in moves):
            return False
        if label_set not in self._label_sets:
            new = KeptLabelSet(self._clock(), workload)
            if not self._datapath.label_sets.make(label_set, new):
                return False
            self._label_sets[label_set] = new
        for sums, key, target in moves:
            sums.move(key, target)
        return True

    def _retire(self, rows: Rows) -> None:
        for table, key in rows:
            sums = self._datapath.kept[table]
            sums.move(key, sums.retired(key))

    def _delete(self, rows: Rows) -> None:
        for table, key in rows:
            self._datapath.kept[table].delete(key)

    def _forget_cgroup(self, number: int, rows: Rows, workload: Workload, left: Counter[Workload]) -> None:
        self._delete(rows)
        left[workload] -= 1
        label_set = label_set_id(workload)
        if not left[workload] and label_set in self._label_sets:
            self._note_seen(label_set, self._clock())
        self._datapath.cgroups.forget(number)

    def _note_seen(self, label_set: int, seen: int) -> None:
        self._label_sets[label_set] = self._label_sets[label_set]._replace(seen=seen)
        self._datapath.label_sets.update(label_set, self._label_sets[label_set])


def _rows(
    tables: Tables, cgroups: Collection[int], shown: Collection[int]
) -> tuple[defaultdict[int, Rows], defaultdict[int, Rows]]:
    """Return the rows of *cgroups*, and of label sets that are not shown: the filled ones, and the empty."""
    filled: defaultdict[int, Rows] = defaultdict(list)
    empty: defaultdict[int, Rows] = defaultdict(list)
    for table, rows in tables.items():
        for key, sums in rows:
            number = key[0]
            if number in cgroups or (number > RETIRED and number not in shown):
                (filled if any(sums) else empty)[number].append((table, key))
    return filled, empty
