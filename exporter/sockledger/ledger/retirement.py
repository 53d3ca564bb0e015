"""What becomes of the sums of cgroups that are gone: they stay with what the cgroup was shown as.

A cgroup that is removed is shown on until nothing has been counted for it for a while, and all scrapers have
seen that. Then, flush by flush:

1. its label set is written to a map, if it is not there;
2. its sums are moved to the label set's rows, each inside the kernel, and it is no longer shown;
3. when the kernel has released it a flush finds its rows empty and deletes them,
4. and then the cgroup.

Sockets and pages in memory may keep it from its release for months, and a release while our tracepoints were
off nobody has seen. So where there is hardly room for new cgroups the oldest go, but for those that have TCP
sockets: no program may add to their rows any more, and those that are empty after a grace period are deleted.
What comes later counts for a cgroup that nobody knows.

A label set is shown as long as it has a cgroup that is shown, as the sum of all rows. If it has none for a
day, it ends the same way: its sums are moved to where they only count in the sum of everything, then its rows
are deleted, then itself. So it may be earlier, the oldest first, where there is no room for another.

All that matters is in the kernel's maps: a daemon that begins between any two steps goes on with the next.
"""

import hashlib
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from sockledger.kernel.datapath import DataPath
from sockledger.kernel.noted import ENDED, KeptLabelSet, NotedCgroup, fits
from sockledger.kernel.sums import RETIRED
from sockledger.ledger.scrapers import RECENT
from sockledger.ledger.splits import SPLITS, NamedRows
from sockledger.workloads.naming import OVERFLOW, Workload

logger = logging.getLogger(__name__)

HOUR = 3600 * 10**9  # in nanoseconds, as all times here

# For so long a label set is kept that has no cgroup.
DAY = 24 * HOUR

# For a cgroup's `released`, when its sums have ended: scrapers have been told.
TOLD = 1

LABEL_SETS = "label_sets"  # the map
CGROUPS = "cgroups"

# One in so many entries is kept free for new cgroups.
SPARE = 8

Key = tuple[int, ...]
# By map: keys, of which the first member is a cgroup's id or a label set's, with their sums.
Tables = Mapping[str, Collection[tuple[Key, tuple[int, ...]]]]
Rows = list[tuple[str, Key, tuple[int, ...]]]
Moves = list[tuple[str, Key, Key]]


def label_set_id(workload: Workload) -> int:
    """Return the id under which the sums of a label set are kept."""
    digest = hashlib.blake2b("\0".join(workload.texts()).encode(), digest_size=8).digest()
    return RETIRED | int.from_bytes(digest, "big")


class Retirement:
    """Takes the steps that each flush allows."""

    def __init__(
        self,
        datapath: DataPath,
        gone: float,
        have_seen: Callable[[int], bool],
        end_births: Callable[[Collection[Workload]], None],
        clock: Callable[[], int],
        name_of: Callable[[int], Workload | None],
        end_name: Callable[[str, Workload, Key], None],
    ) -> None:
        """*gone*: for so many seconds at least a cgroup is shown on.

        *have_seen* tells whether all scrapers have seen what was at a moment of *clock*. *end_births* is told
        whose sums have ended, before these can be shown again, and *end_name* under which name, by its row.
        *name_of* has what a cgroup is shown as.
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
        self._stuck: set[str] = set()  # what could not be done the last time
        self._name_of = name_of
        self._end_name = end_name
        self._named = self._named_rows({}, ())

    @property
    def label_sets(self) -> Collection[KeptLabelSet]:
        """All that are kept."""
        return self._label_sets.values()

    def shown(
        self, named: Mapping[int, Workload], noted: Mapping[int, NotedCgroup], counting: Collection[int]
    ) -> dict[int, Workload]:
        """Return the workloads of all that is shown, by id: of cgroups, and of label sets that have one.

        Or have had one until a while ago. *named* are all cgroups, *counting* are those that have any sums.
        """
        shown = {
            number: workload
            for number, workload in named.items()
            if number in counting or number not in noted or not noted[number].removed
        }
        present = {OVERFLOW, *shown.values()}  # that has sums of its own, beside those of cgroups
        label_sets = {number: Workload(*each.labels) for number, each in self._label_sets.items()}
        return shown | {
            number: each
            for number, each in label_sets.items()
            if each in present or self._label_sets[number].left
        }

    def _have_left(self) -> Iterator[int]:
        """Yield the label sets that cgroups have left, and everybody has seen that."""
        for number, each in self._label_sets.items():
            since = max(each.left, self._start)
            if each.left and self._clock() - since >= self._gone and self._have_seen(each.left):
                yield number

    def leave(self, renamed: Mapping[int, Workload], tables: Tables) -> set[int]:
        """Have the counters of cgroups stay with what they were shown as; return which find no room there."""
        filled, _ = _rows(tables, renamed, self._label_sets)
        self._named = self._named_rows(tables, renamed, sys.maxsize)  # not all may have seen them
        staying = renamed.keys() & filled.keys()
        with self._writing("what is named otherwise keeps its name"):
            for number in list(staying):
                if self._fold(filled[number], renamed[number], left=self._clock()) is None:
                    staying.discard(number)
        no_room = (
            "no room for what cgroups have counted under names of before, which they keep: raise "
            "limits.label_sets"
        )
        if staying:
            self._tell(no_room, cgroups=len(staying))
        else:
            self._stuck.discard(no_room)
        return staying

    def begin_anew(
        self,
        noted: Mapping[int, NotedCgroup],
        shown: dict[int, Workload],
        tables: Tables,
        name_of: Callable[[int, str], Workload],
    ) -> bool:
        """See to it that no counter goes on whose sums have ended; return whether others are to be read anew.

        A label set that has a cgroup again when it had to end may have lost some of its sums before, so all
        end. So do those of one whose cgroup's sums have ended, the last that were shown with them; of these
        nobody has been told yet. Without memory to write that down they would begin anew each time: they
        leave *shown*. *name_of* has what a cgroup was shown as, by its id and path.
        """
        ended = {
            number: each for number, each in noted.items() if each.removed == ENDED and each.released != TOLD
        }
        late = {name_of(number, each.path) for number, each in ended.items()}
        back = [
            number
            for number, each in self._label_sets.items()
            if (number in shown and not each.seen) or (late and Workload(*each.labels) in late)
        ]
        if back:
            filled, _ = _rows(tables, (), shown.keys() - set(back))
            for number in back:
                self._retire(filled[number])
        late |= {Workload(*self._label_sets[number].labels) for number in back}
        if not late:
            return False
        self._end_births(late)
        with self._writing("what begins anew is not shown yet"):
            for number in back:
                self._note(number, seen=self._clock() if number in shown else 0)
            for number, each in ended.items():
                self._datapath.cgroups.end(number, each._replace(released=TOLD))
            late = set()
        for number in [number for number, workload in shown.items() if workload in late]:
            del shown[number]
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
        short = self._shortage(tables, noted)

        due = [
            number
            for number, each in removed.items()
            if number in filled
            and number in shown
            and each.removed != ENDED
            and self._is_due(each, number, filled[number], began, hurry=bool(short))
        ]
        self._changes = {number: change for number, change in self._changes.items() if number in filled}

        hidden = self._label_sets.keys() - shown.keys()
        ending = {
            number
            for number in hidden
            if self._ends(self._label_sets[number], now) and self._mark_end(number)
        }
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

        self._let_go(short, noted, filled, empty)

        # all else writes
        self._named = self._named_rows(tables, due)
        with self._writing("what is gone is shown longer"):
            without_room = self._fold_all(due, filled, shown)
            self._make_room(without_room, hidden & self._label_sets.keys(), filled, empty, noted, shown)
            for number in self._label_sets.keys() & shown.keys():
                if now - self._label_sets[number].seen >= HOUR:
                    self._note(number, seen=now)
            for number in list(self._have_left()):
                self._note(number, left=0)
        self._named = self._named_rows({}, ())  # lets go of the tables
        return over

    @contextmanager
    def _writing(self, failure: str) -> Iterator[None]:
        """There may be no memory for it: tell what that means, once."""
        try:
            yield
            self._stuck.discard(failure)
        except OSError as error:
            self._tell(failure, error=str(error))

    def _tell(self, failure: str, **extra: object) -> None:
        """Say what could not be done, unless it was so the last time."""
        if failure not in self._stuck:
            logger.warning(failure, extra=extra)
        self._stuck.add(failure)

    def _shortage(self, tables: Tables, noted: Mapping[int, NotedCgroup]) -> Counter[str]:
        """Return how many entries are missing to the room that is kept free for new cgroups, by map."""
        room = self._datapath.cgroups.room
        short = Counter({CGROUPS: len(noted) - room + max(room // SPARE, 1)})
        for name, rows in tables.items():
            room = self._datapath.kept[name].room
            short[name] = len(rows) - room + room // SPARE
        return +short

    def _let_go(
        self,
        short: Counter[str],
        noted: Mapping[int, NotedCgroup],
        filled: Mapping[int, Rows],
        empty: defaultdict[int, Rows],
    ) -> None:
        """Forget the oldest cgroups that are shown no more, where there is hardly room for new ones."""
        if not short:
            return
        hidden = [number for number, each in noted.items() if each.removed and number not in filled]
        occupied = {
            number: Counter([CGROUPS, *(table for table, _, _ in empty[number])]) for number in hidden
        }
        for number in hidden:
            if noted[number].released:  # they go anyway
                short.subtract(occupied[number])
        before = self._clock() - self._gone
        unused = [each for each in hidden if not noted[each].released and noted[each].removed < before]
        if not +short or not unused:
            return
        connected = self._datapath.with_tcp_sockets()
        chosen = []
        for number in sorted(unused, key=lambda number: noted[number].removed):
            if number not in connected and +short & occupied[number]:
                short.subtract(occupied[number])
                chosen.append(number)
        at_once = self._datapath.closable
        for some in (chosen[at : at + at_once] for at in range(0, len(chosen), at_once)):
            with self._datapath.closed(some):
                for number in some:
                    self._delete_empty(number, empty[number])

    def _delete_empty(self, number: int, rows: Rows) -> None:
        """Delete rows of a cgroup in which nothing has been counted meanwhile, and if this is all, itself."""
        still = [(table, key, sums) for table, key, sums in rows if self._datapath.kept[table].is_empty(key)]
        self._delete(still)
        if len(still) == len(rows):
            self._datapath.cgroups.forget(number)

    def _mark_end(self, number: int) -> bool:
        """Write down that a label set ends, before its sums do; return whether there was memory for it."""
        try:
            if self._label_sets[number].seen:
                self._note(number, seen=0)
        except OSError:
            return False
        return True

    @staticmethod
    def _ends(label_set: KeptLabelSet, now: int) -> bool:
        """Whether a label set that is not shown has to end."""
        return not label_set.seen or now - label_set.seen >= DAY

    def _is_due(self, cgroup: NotedCgroup, number: int, rows: Rows, began: int, *, hurry: bool) -> bool:
        """Whether a cgroup has counted nothing for long enough.

        In a *hurry*, as new ones would find no room, that is when all that scrape must have come.
        """
        since = cgroup.released
        if not 0 < since < began:
            if number not in self._changes or self._changes[number][0] != rows:
                self._changes[number] = rows, began
            since = self._changes[number][1]
        enough = min(self._gone, RECENT) if hurry else self._gone
        return self._clock() - max(since, self._start) >= enough and self._have_seen(since)

    def _fold_all(
        self, due: list[int], filled: Mapping[int, Rows], shown: Mapping[int, Workload]
    ) -> dict[int, set[str]]:
        """Move the sums of cgroups to their label sets'; return which stay, with what `_fold` returns."""
        results = ((number, self._fold(filled[number], shown[number])) for number in due)
        return {number: full for number, full in results if full is not None}

    def _fold(self, rows: Rows, workload: Workload, *, left: int = 0) -> set[str] | None:
        """Move a cgroup's sums to its label set's.

        Of one that lives on under another name, since it *left*, only counters. Return None, or if it stays
        as it is the maps that are full; none if there is no memory.
        """
        label_set = label_set_id(workload)
        new = label_set not in self._label_sets
        if new and (len(self._label_sets) >= self._datapath.label_sets.room or not fits(workload)):
            return {LABEL_SETS}
        moves = self._moves(rows, workload, label_set)
        if full := self._make_rows(moves):
            return full
        if new:
            made = KeptLabelSet(self._clock(), 0, workload)
            if not self._datapath.label_sets.make(label_set, made):
                return set()
            self._label_sets[label_set] = made
        if left:
            self._note(label_set, left=left)
        self._move(moves, workload, counters=bool(left))
        return None

    def _named_rows(
        self, tables: Tables, leaving: Collection[int], most: int | None = None
    ) -> dict[str, NamedRows]:
        """Return the rows of each split, for as many names as may be kept, or *most*."""

        def name_of(number: int) -> Workload | None:
            kept = self._label_sets.get(number)
            return Workload(*kept.labels) if kept else self._name_of(number)

        return {
            table: NamedRows(
                split, tables.get(table, ()), most or self._datapath.most_names[table], name_of, leaving
            )
            for table, split in SPLITS.items()
        }

    def _moves(self, rows: Rows, workload: Workload, number: int) -> Moves:
        """Return the keys of rows of *workload*, and where their sums go, as a rule to those of *number*."""
        named = self._named
        return [
            (
                table,
                key,
                named[table].target(key, workload, number) if table in named else (number, *key[1:]),
            )
            for table, key, _ in rows
        ]

    def _make_rows(self, moves: Moves) -> set[str]:
        """Make the rows that sums are moved to; return the maps that have no room for one."""
        return {table for table, _, target in moves if not self._datapath.kept[table].make(target)}

    def _move(self, moves: Moves, workload: Workload, *, counters: bool = False) -> None:
        """Move sums, or *counters* alone."""
        for table, key, target in moves:
            sums = self._datapath.kept[table]
            if counters:
                sums.move_counters(key, target)
            else:
                sums.move(key, target)
            if (split := SPLITS.get(table)) and split.name_of(target) != split.name_of(key):
                self._end_name(table, workload, key)

    def _join(self, rows: Rows, workload: Workload, host: int) -> bool:
        """Move a cgroup's sums to those of another that is shown as it is; return whether there was room."""
        moves = self._moves(rows, workload, host)
        if self._make_rows(moves):
            return False
        self._move(moves, workload)
        return True

    def _make_room(
        self,
        without_room: Mapping[int, set[str]],
        hidden: Collection[int],
        filled: Mapping[int, Rows],
        empty: Mapping[int, Rows],
        noted: Mapping[int, NotedCgroup],
        shown: Mapping[int, Workload],
    ) -> None:
        """Let the oldest label sets end, where there are too many or one is in a cgroup's way.

        If there is none in its way, its sums go to another cgroup that is shown as it is; the last one's end.
        """
        excess = len(self._label_sets) - self._datapath.label_sets.room
        if not without_room and excess <= 0:
            return
        # newest first, and by map; those that end already leave room in so many maps
        oldest: defaultdict[str, list[int]] = defaultdict(list)
        leaving: Counter[str] = Counter()
        now, ending = self._clock(), set()
        for number in sorted(hidden, key=lambda number: self._label_sets[number].seen, reverse=True):
            rows = (*filled.get(number, ()), *empty.get(number, ()))
            occupied = {LABEL_SETS, *(table for table, _, _ in rows)}
            if self._ends(self._label_sets[number], now):
                ending.add(number)
                leaving.update(occupied)
            else:
                for table in occupied:
                    oldest[table].append(number)

        def end_one(tables: Collection[str]) -> bool:
            for table in tables:
                while oldest[table]:
                    if (number := oldest[table].pop()) not in ending:
                        self._note(number, seen=0)
                        ending.add(number)
                        return True
            return False

        for _ in range(excess - len(ending)):
            leaving[LABEL_SETS] += end_one({LABEL_SETS})
        cgroups: defaultdict[Workload, set[int]] = defaultdict(set)
        for number in shown.keys() - self._label_sets.keys():
            cgroups[shown[number]].add(number)
        released = {number for number, each in noted.items() if each.released}
        for number, full in without_room.items():
            workload = shown[number]
            # who is not released may count again, and does not end
            others = cgroups[workload] - {number} - (set() if number in released else released)
            short_enough = fits(workload)
            if not full or (short_enough and any(leaving[table] > 0 for table in full)):
                leaving.subtract(full)  # at a later flush there is room
            elif short_enough and end_one(full):
                pass
            elif others:
                # its end has to be noted: best if its name is
                host = max(
                    others,
                    key=lambda other: (other in noted, other not in without_room, other not in released),
                )
                if self._join(filled[number], workload, host):
                    cgroups[workload].remove(number)
            elif number in released and workload != OVERFLOW and not self._have_left_to(workload):
                # its label set, if there is one, ends with it: a part would be a counter that has fallen
                self._datapath.cgroups.end(number, noted[number])

    def _have_left_to(self, workload: Workload) -> bool:
        """Whether a cgroup that lives on has left its sums there lately."""
        label_set = self._label_sets.get(label_set_id(workload))
        return label_set is not None and label_set.left > 0

    def _note(self, label_set: int, *, seen: int | None = None, left: int | None = None) -> None:
        each = self._label_sets[label_set]
        noted = each._replace(
            seen=each.seen if seen is None else seen, left=each.left if left is None else left
        )
        self._datapath.label_sets.update(label_set, noted)
        self._label_sets[label_set] = noted

    def _forget_label_sets(self, ended: Collection[int]) -> None:
        # births first: as long as a label set is there, the next daemon knows that its sums have ended
        self._end_births([Workload(*self._label_sets[number].labels) for number in ended])
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
