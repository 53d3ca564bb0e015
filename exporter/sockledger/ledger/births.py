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
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain
from typing import Any, Protocol, TypeVar

from sockledger.exposition.family import Series, go_float
from sockledger.workloads.names import Workload

logger = logging.getLogger(__name__)

MAX_SCRAPERS = 256

# Scrapers that come first within this time see everything as new, so that of a pair none is worse off.
FRESH_SECONDS = 300.0

Labels = Sequence[tuple[str, str]]

_T = TypeVar("_T")


class Shown(Protocol):
    """Where what was shown is written down: by a series' hash that of its workload, 0 if it is of none.

    A dict is one.
    """

    def items(self) -> Iterable[tuple[int, int]]:
        """Return all entries."""

    def update(self, entries: Mapping[int, int], /) -> None:
        """Add *entries*; OSError if there is no room for all of them."""

    def __delitem__(self, key: int, /) -> None:
        """Delete an entry; KeyError if there is none."""


class Births:
    """The numbering, and what each scraper has seen of it. *clock* is monotonic, in seconds.

    A series is known again, by the next daemon and by later versions, by its labels and its *group*: the
    name of the metric that it is of, or of the first of those that share it. A metric that joins them in a
    later version would not be born, and needs a group of its own. Group None is for counters that start at
    0 with each daemon. *workload* is the one whose series it is, if any.
    """

    def __init__(self, shown: Shown, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown = shown
        self._clock = clock
        self._start = clock()
        self._count = 0
        self._newest_seen = 0  # the highest number that any scraper has seen
        self._scrapers: OrderedDict[str, int] = OrderedDict()
        self._written = {key for key, _ in shown.items()}
        self._unwritten: dict[int, tuple[int, int]] = {}  # number and workload, by key
        self._anew: set[str] = set()  # groups
        self._of_others: set[int] = set()  # in these: what was shown of sums that are gone
        self._full = False
        self._caches: list[dict[Workload, Any]] = []

    def series(self, group: str | None, labels: Labels, workload: Workload | None = None) -> Series:
        """Return a series, numbered if it is new."""
        return Series(labels, self._number(group, labels, workload))

    def summary(self, group: str, labels: Labels, workload: Workload | None = None) -> tuple[Series, Series]:
        """Return a summary's series under one number: count, sum."""
        number = self._number(group, labels, workload)
        return Series(labels, number, "_count"), Series(labels, number, "_sum")

    def histogram(
        self, group: str, labels: Labels, bounds: Sequence[float], workload: Workload | None = None
    ) -> tuple[Series, ...]:
        """Return a histogram's series under one number: buckets, count, sum.

        The buckets are those up to each of *bounds*, which ascend, and one up to infinity.
        `histogram_values` has the values in this order.
        """
        count_and_sum = self.summary(group, labels, workload)
        number = count_and_sum[0].number
        buckets = [
            Series([*labels, ("le", go_float(bound))], number, "_bucket") for bound in (*bounds, math.inf)
        ]
        return (*buckets, *count_and_sum)

    def _number(self, group: str | None, labels: Labels, workload: Workload | None) -> int:
        if group is not None:
            key = _key(group, labels)
            if group in self._anew and key in self._of_others:
                self._of_others.remove(key)
                self._end(key)
            if key in self._written:
                return 0
            if key in self._unwritten:
                return self._unwritten[key][0]
            self._unwritten[key] = self._count + 1, _hash_of(workload)
        self._count += 1
        return self._count

    def end(self, group: str, labels: Labels) -> None:
        """Note that a counter is gone: one with its labels is a new one, and starts at 0."""
        self._end(_key(group, labels))

    def _end(self, key: int) -> None:
        self._written.discard(key)
        self._unwritten.pop(key, None)
        with suppress(KeyError):
            del self._shown[key]

    def begin_anew(self, groups: Iterable[str]) -> None:
        """Note that this daemon's sums of *groups* began at 0: what was shown of them before was of others.

        Before any of their series is made.
        """
        self._anew.update(groups)
        self._of_others |= self._written

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

    def forget(self, known: Collection[Workload]) -> None:
        """End the series of all workloads but those in *known*, whose sums must be gone by then.

        Reads all that is written down, so it is nothing for every flush.
        """
        keep = {_hash_of(workload) for workload in (*known, None)}
        self._drop(lambda workload: workload not in keep)

    def _drop(self, is_over: Callable[[int], bool]) -> None:
        """Delete what is noted of workloads, given by their hashes."""
        for key in [key for key, workload in self._shown.items() if is_over(workload)]:
            del self._shown[key]
            self._written.discard(key)
        self._unwritten = {key: each for key, each in self._unwritten.items() if not is_over(each[1])}

    def end_all(self, ended: Collection[Workload]) -> None:
        """Note that the sums of workloads have ended: series with their labels are new ones, and start at 0.

        Reads all that is written down.
        """
        hashes = {_hash_of(workload) for workload in ended}
        self._drop(lambda workload: workload in hashes)
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

    def seen_by(self, scraper: str | None) -> int | None:
        """Return the highest number *scraper* has seen. None, who is no scraper, sees values: None."""
        if scraper is None:
            return None
        fresh = self._clock() - self._start < FRESH_SECONDS
        return self._scrapers.get(scraper, 0 if fresh else self._newest_seen)

    def note_seen(self, scraper: str | None, newest: int) -> None:
        """Note that *scraper* has got a page with all numbers up to *newest*."""
        if scraper is None:
            return
        self._write_down(newest)  # first: from here on a page may have their values
        self._scrapers[scraper] = max(newest, self._scrapers.get(scraper, 0))
        self._scrapers.move_to_end(scraper)
        self._newest_seen = max(newest, self._newest_seen)
        if len(self._scrapers) > MAX_SCRAPERS:
            self._scrapers.popitem(last=False)

    def _write_down(self, newest: int) -> None:
        due = {key: workload for key, (number, workload) in self._unwritten.items() if number <= newest}
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


def _key(group: str, labels: Labels) -> int:
    return _hash((group, *chain.from_iterable(sorted(labels))))


def _hash_of(workload: Workload | None) -> int:
    return 0 if workload is None else _hash(workload) or 1


def _hash(texts: Iterable[str]) -> int:
    """Return a number of 64 bits. The same in every version; no text has a NUL in it."""
    return int.from_bytes(blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest())
