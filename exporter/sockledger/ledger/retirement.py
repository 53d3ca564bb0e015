"""What becomes of the sums of cgroups that are gone: they stay with what the cgroup was shown as.

A cgroup that is removed is shown on until nothing has been counted for it for a while, and all scrapers have
seen that. Then, flush by flush:

1. its label set is written to a map, if it is not there;
2. its sums are moved to the label set's rows, each inside the kernel, and it is no longer shown;
3. when the kernel has released it a flush finds its rows empty and deletes them,
4. and then the cgroup.

A label set is shown as long as it has a cgroup that is shown, as the sum of all rows. If it has none for a
day, it ends the same way: its sums are moved to where they only count in the sum of everything, then its rows
are deleted, then itself. So it may be earlier, the oldest first, where there is no room for another.

All that matters is in the kernel's maps: a daemon that begins between any two steps goes on with the next.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from sockledger.kernel.datapath import LABEL_SET, RETIRED, DataPath
from sockledger.kernel.noted import ENDED, KeptLabelSet, NotedCgroup
from sockledger.workloads.names import Workload, workload_of

HOUR = 3600 * 10**9  # in nanoseconds, as all times here

# For so long a label set is kept that has no cgroup.
DAY = 24 * HOUR

Key = tuple[int, ...]
# By map: keys, of which the first member is a cgroup's id or a label set's, with their sums.
Tables = Mapping[str, Iterable[tuple[Key, tuple[int, ...]]]]
Rows = list[tuple[str, Key, tuple[int, ...]]]


def label_set_id(workload: Workload) -> int:
    """Return the id under which the sums of a label set are kept."""
    digest = hashlib.blake2b("\0".join(workload).encode(), digest_size=8).digest()
    return LABEL_SET | int.from_bytes(digest, "big")


class Retirement:
    """Takes the steps that each flush allows."""

    def __init__(
        self,
        datapath: DataPath,
        gone: float,
        have_seen: Callable[[int], bool],
        end_births: Callable[[Collection[Workload]], None],
        clock: Callable[[], int],
    ) -> None:
        """*gone*: for so many seconds at least a cgroup is shown on.

        *have_seen* tells whether all scrapers have seen what was at a moment of *clock*. *end_births* is told
        whose sums have ended, before these can be shown again.
        """
        self._datapath = datapath
        self._gone = int(gone * 1e9)
        self._have_seen = have_seen
        self._end_births = end_births
        self._clock = clock
        self._start = clock()  # who scraped before is not known
        self._label_sets = datapath.label_sets.all()  # only this changes them
        # of cgroups that are removed, but not released: the last change of their sums, and when it was seen
        self._changes: dict[int, tuple[Rows, int]] = {}

    @property
    def label_sets(self) -> Collection[KeptLabelSet]:
        """All that are kept."""
        return self._label_sets.values()

    def shown(
        self, named: Mapping[int, Workload], noted: Mapping[int, NotedCgroup], counting: Collection[int]
    ) -> dict[int, Workload]:
        """Return the workloads of all that is shown, by id: of cgroups, and of label sets that have one.

        *named* are all cgroups, *counting* are those that have any sums.
        """
        shown = {
            number: workload
            for number, workload in named.items()
            if number in counting or number not in noted or not noted[number].removed
        }
        present = set(shown.values())
        label_sets = {number: Workload._make(each.labels) for number, each in self._label_sets.items()}
        return shown | {number: each for number, each in label_sets.items() if each in present}

    def begin_anew(
        self, noted: Mapping[int, NotedCgroup], shown: Mapping[int, Workload], tables: Tables
    ) -> bool:
        """See to it that no counter goes on whose sums have ended; return whether others are to be read anew.

        A label set that has a cgroup again when it had to end may have lost some of its sums before, so all
        end. Cgroups' sums that were not kept have not been shown since: those with path are not told of yet.
        """
        ended = {number: each for number, each in noted.items() if each.removed == ENDED and each.path}
        back = [number for number, each in self._label_sets.items() if number in shown and not each.seen]
        if back:
            filled, _ = _rows(tables, (), shown.keys() - set(back))
            for number in back:
                self._retire(filled[number])
        if ended or back:
            labels = [workload_of(each.path) for each in ended.values()]
            self._end_births([*labels, *(shown[number] for number in back)])
        for number, each in ended.items():
            self._datapath.cgroups.end(number, each._replace(path=""))
        for number in back:
            self._note_seen(number, self._clock())
        return bool(back)

    def advance(
        self,
        began: int,
        tables: Tables,
        noted: Mapping[int, NotedCgroup],
        shown: Mapping[int, Workload],
    ) -> bool:
        """Take steps, given what the flush that *began* then has found; return whether any sums have ended.

        What a cgroup has counted is final when it had been released before.
        """
        now, over = self._clock(), False
        removed = {number: each for number, each in noted.items() if each.removed}
        filled, empty = _rows(tables, removed, shown)

        due = [
            number
            for number, each in removed.items()
            if number in filled
            and each.removed != ENDED
            and self._is_due(each, number, filled[number], began)
        ]
        self._changes = {number: change for number, change in self._changes.items() if number in filled}

        hidden = {number: each for number, each in self._label_sets.items() if number not in shown}
        ending = {number for number, each in hidden.items() if not each.seen or now - each.seen >= DAY}
        for number in ending:
            if self._label_sets[number].seen:
                self._note_seen(number, 0)
        self._fold_all(due, filled, noted, shown, hidden.keys(), ending)

        for number, each in removed.items():
            if each.removed == ENDED and number in filled:
                self._retire(filled[number])
            elif number not in filled and 0 < each.released < began:
                self._delete(empty[number])
                self._datapath.cgroups.forget(number)
                over |= each.removed == ENDED
        # rows may have been made for a label set that found no room
        lost = {number for number in (*filled, *empty) if number > RETIRED} - self._label_sets.keys()
        for number in ending | lost:
            if number in filled:
                self._retire(filled[number])
            else:
                self._delete(empty[number])
        if ended := ending - filled.keys():
            self._forget_label_sets(ended)
            over = True
        for number in self._label_sets.keys() & shown.keys():
            if now - self._label_sets[number].seen >= HOUR:
                self._note_seen(number, now)
        return over

    def _is_due(self, cgroup: NotedCgroup, number: int, rows: Rows, began: int) -> bool:
        """Whether a cgroup has counted nothing for long enough."""
        since = cgroup.released
        if not 0 < since < began:
            if number not in self._changes or self._changes[number][0] != rows:
                self._changes[number] = rows, began
            since = self._changes[number][1]
        return self._clock() - max(since, self._start) >= self._gone and self._have_seen(since)

    def _fold_all(
        self,
        due: list[int],
        filled: Mapping[int, Rows],
        noted: Mapping[int, NotedCgroup],
        shown: Mapping[int, Workload],
        hidden: Collection[int],
        ending: set[int],
    ) -> None:
        """Move the sums of cgroups to their label sets'. Where there is no room for them another has to end.

        It is added to *ending*; if there is none, the cgroup's sums end.
        """
        vacant = len(ending)
        oldest = sorted(set(hidden) - ending, key=lambda number: self._label_sets[number].seen, reverse=True)
        staying = {shown[number] for number in shown.keys() - self._label_sets.keys() - set(due)}
        for number in due:
            workload = shown[number]
            label_set = label_set_id(workload)
            if self._fold(filled[number], label_set, workload):
                continue
            if vacant:
                vacant -= 1  # at a later flush there is room
                staying.add(workload)
            elif oldest and self._datapath.label_sets.fits(workload):
                last = oldest.pop()
                self._note_seen(last, 0)
                ending.add(last)
                staying.add(workload)
            elif noted[number].released and workload not in staying and label_set not in self._label_sets:
                self._datapath.cgroups.end(number, noted[number])

    def _fold(self, rows: Rows, label_set: int, workload: Workload) -> bool:
        """Move a cgroup's sums to its label set's; return whether there was room for them."""
        kept = self._datapath.kept
        moves = [(kept[table], key, (label_set, *key[1:])) for table, key, _ in rows]
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

    def _note_seen(self, label_set: int, seen: int) -> None:
        self._label_sets[label_set] = self._label_sets[label_set]._replace(seen=seen)
        self._datapath.label_sets.update(label_set, self._label_sets[label_set])

    def _forget_label_sets(self, ended: Collection[int]) -> None:
        # births first: as long as a label set is there, the next daemon knows that its sums have ended
        self._end_births([Workload._make(self._label_sets[number].labels) for number in ended])
        for number in ended:
            del self._label_sets[number]
            self._datapath.label_sets.forget(number)

    def _retire(self, rows: Rows) -> None:
        for table, key, _ in rows:
            sums = self._datapath.kept[table]
            sums.move(key, sums.retired(key))

    def _delete(self, rows: Rows) -> None:
        for table, key, _ in rows:
            self._datapath.kept[table].delete(key)


def _rows(
    tables: Tables, cgroups: Collection[int], shown: Collection[int]
) -> tuple[defaultdict[int, Rows], defaultdict[int, Rows]]:
    """Return the rows of *cgroups*, and of label sets that are not *shown*: filled ones, and empty ones."""
    filled: defaultdict[int, Rows] = defaultdict(list)
    empty: defaultdict[int, Rows] = defaultdict(list)
    for table, rows in tables.items():
        for key, sums in rows:
            number = key[0]
            if number in cgroups or (number > RETIRED and number not in shown):
                (filled if any(sums) else empty)[number].append((table, key, sums))
    return filled, empty
