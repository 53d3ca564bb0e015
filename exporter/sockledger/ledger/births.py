"""A counter's birth: a scraper first gets a new series at 0, or `increase()` misses what came first.

Series are numbered as they appear. A scraper has the highest number that it has seen; newer counters read
0 in its next page, and their value once it has got that page. So do all parts of a summary or a histogram,
which are born together.

Counts outlive the daemon, so what it has shown must be known to the next one: shown at 0 again, a counter
would seem to have been reset. A page has a series at 0; once that page has gone out the series is written
down as shown; only then may a page have its value. So each time that the daemon is killed, a scraper may
get the 0 once more, but never after a value. Which scraper had got what is not written down: a successor
takes what was shown as seen by all.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain
from typing import Any, Protocol, TypeVar

from sockledger.exposition.family import Series, go_float
from sockledger.kernel.noted import boottime
from sockledger.ledger.scrapers import Scrapers
from sockledger.workloads.naming import Workload

logger = logging.getLogger(__name__)

# Written down in place of an owner: the series' sums are being taken away.
_ENDING = (1 << 64) - 1

# Whose series one is: a workload, or cgroups by their ids.
Owner = tuple[str, ...]

Labels = Sequence[tuple[str, str]]

_T = TypeVar("_T")


class Shown(Protocol):
    """Where what was shown is written down: by a series' hash that of its owner, 0 if it has none.

    A dict is one.
    """

    def items(self) -> Iterable[tuple[int, int]]:
        """Return all entries."""

    def update(self, entries: Mapping[int, int], /) -> None:
        """Add *entries*; OSError if there is no room for all of them."""

    def __delitem__(self, key: int, /) -> None:
        """Delete an entry; KeyError if there is none."""


class Births:
    """The numbering, and what each scraper has seen of it. *clock* is CLOCK_BOOTTIME in nanoseconds.

    A series is known again, by the next daemon and by later versions, by its labels and its *group*: the
    name of the metric that it is of, or of the first of those that share it. A metric that joins them in a
    later version would not be born, and needs a group of its own. Group None is for counters that start at
    0 with each daemon. *owner* is whose series it is, if anybody's.

    *table* is the map whose sums it shows, if that may begin at 0 while others go on: *generations* tell
    apart which time it did, and what was shown of an earlier one is another series.
    """

    def __init__(
        self,
        shown: Shown,
        generations: Mapping[str, str] | None = None,
        clock: Callable[[], int] = boottime,
    ) -> None:
        self._shown = shown
        self._masks = {table: _hash([each]) for table, each in (generations or {}).items()}
        self._count = 0
        self._written = {key for key, _ in shown.items()}
        self.scrapers = Scrapers(clock, others=bool(self._written))
        self._ending = {key for key, owner in shown.items() if owner == _ENDING}
        self._unwritten: dict[int, tuple[int, int]] = {}  # number and owner, by key
        self._full = False
        self._caches: list[dict[Workload, Any]] = []

    def series(
        self, group: str | None, labels: Labels, owner: Owner | None = None, table: str = ""
    ) -> Series:
        """Return a series, numbered if it is new."""
        return Series(labels, self._number(group, labels, owner, table))

    def summary(
        self, group: str, labels: Labels, owner: Owner | None = None, table: str = ""
    ) -> tuple[Series, Series]:
        """Return a summary's series under one number: count, sum."""
        number = self._number(group, labels, owner, table)
        return Series(labels, number, "_count"), Series(labels, number, "_sum")

    def histogram(
        self,
        group: str,
        labels: Labels,
        bounds: Sequence[float],
        owner: Owner | None = None,
        table: str = "",
    ) -> tuple[Series, ...]:
        """Return a histogram's series under one number: buckets, count, sum.

        The buckets are those up to each of *bounds*, which ascend, and one up to infinity.
        `histogram_values` has the values in this order.
        """
        count_and_sum = self.summary(group, labels, owner, table)
        number = count_and_sum[0].number
        buckets = [
            Series([*labels, ("le", go_float(bound))], number, "_bucket") for bound in (*bounds, math.inf)
        ]
        return (*buckets, *count_and_sum)

    def _number(self, group: str | None, labels: Labels, owner: Owner | None, table: str) -> int:
        if group is not None:
            key = self._key(group, labels, table)
            if key in self._written:
                return 0
            if key in self._unwritten:
                return self._unwritten[key][0]
            self._unwritten[key] = self._count + 1, _hash_of(owner) ^ self._masks.get(table, 0)
        self._count += 1
        return self._count

    def _key(self, group: str, labels: Labels, table: str) -> int:
        return _hash((group, *chain.from_iterable(sorted(labels)))) ^ self._masks.get(table, 0)

    def begin_end(self, group: str, labels: Labels, table: str) -> bool:
        """Write down that a counter's sums are taken away next; return whether there was memory for it."""
        key = self._key(group, labels, table)
        try:
            if key in self._written:
                self._shown.update({key: _ENDING})
        except OSError:
            return False
        return True

    def is_ending(self, group: str, labels: Labels, table: str) -> bool:
        """Whether a daemon before was about to take away a counter's sums, and did not come to its `end`."""
        return bool(self._ending) and self._key(group, labels, table) in self._ending

    def end(self, group: str, labels: Labels, table: str = "", owner: Workload | None = None) -> None:
        """Note that a counter is gone: one with its labels is a new one, and starts at 0.

        Collectors' series of its *owner* are made anew.
        """
        key = self._key(group, labels, table)
        self._written.discard(key)
        self._ending.discard(key)
        self._unwritten.pop(key, None)
        with suppress(KeyError):
            del self._shown[key]
        if owner:
            for cache in self._caches:
                cache.pop(owner, None)

    def by_workload(self) -> dict[Workload, _T]:
        """Return a new dict for a collector's series, from which `let_go` deletes workloads."""
        made: dict[Workload, _T] = {}
        self._caches.append(made)
        return made

    def let_go(self, shown: Collection[Workload]) -> None:
        """Free the series of all workloads but those in *shown*; one that comes back goes on as it was."""
        for cache in self._caches:
            for workload in cache.keys() - shown:
                del cache[workload]

    def forget(self, known: Collection[Owner]) -> None:
        """End the series of all owners but those in *known*, whose sums must be gone by then.

        So end those of sums of an earlier generation. Reads all that is written down, so it is nothing for
        every flush.
        """
        keep = self._hashes((*known, None))
        self._drop(lambda owner: owner not in keep)

    def _hashes(self, owners: Iterable[Owner | None]) -> set[int]:
        """Return what may be written down for owners."""
        masks = {0, *self._masks.values()}
        return {owner ^ mask for owner in map(_hash_of, owners) for mask in masks}

    def _drop(self, is_over: Callable[[int], bool]) -> None:
        """Delete what is noted of owners, given by what is written down for them."""
        for key in [key for key, owner in self._shown.items() if is_over(owner)]:
            del self._shown[key]
            self._written.discard(key)
        self._unwritten = {key: each for key, each in self._unwritten.items() if not is_over(each[1])}

    def end_all(self, ended: Collection[Workload]) -> None:
        """Note that the sums of workloads have ended: series with their labels are new ones, and start at 0.

        Reads all that is written down.
        """
        hashes = self._hashes(ended)
        self._drop(lambda owner: owner in hashes)
        for cache in self._caches:
            for workload in ended:
                cache.pop(workload, None)

    @property
    def written(self) -> int:
        """How many are written down as shown."""
        return len(self._written)

    @property
    def newest(self) -> int:
        """The highest number there is."""
        return self._count

    def note_page(self, scraper: str | None, newest: int, began: int) -> None:
        """Note that *scraper*, None is none, has got a page of the flush that *began* then.

        It had all numbers up to *newest*.
        """
        if scraper is not None:
            self._write_down(newest)  # first: from here on a page may have their values
            self.scrapers.note_page(scraper, newest, began)

    def _write_down(self, newest: int) -> None:
        due = {key: owner for key, (number, owner) in self._unwritten.items() if number <= newest}
        if not due:
            return
        try:
            self._shown.update(due)
        except OSError as error:  # values are worth more; tried again with the next page
            if not self._full:
                logger.warning(
                    "not all counters that were shown are noted: after a restart they begin at 0 again",
                    extra={"error": str(error)},
                )
            self._full = True
            written = due.keys() & {key for key, _ in self._shown.items()}
        else:
            self._full = False
            written = set(due)
        for key in written:
            del self._unwritten[key]
        self._written.update(written)


def _hash_of(owner: Owner | None) -> int:
    if owner is None:
        return 0
    return _hash(owner.texts() if isinstance(owner, Workload) else owner) or 1


def _hash(texts: Iterable[str]) -> int:
    """Return a number of 64 bits. The same in every version; no text has a NUL in it."""
    return int.from_bytes(blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest())
