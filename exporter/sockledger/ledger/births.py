"""A counter's birth: a scraper first gets a new series at 0, or `increase()` misses what came first.

Series are numbered as they appear. A scraper has the highest number that it has seen; newer counters read
0 in its next page, and their value once it has got that page. So do all parts of a summary or a histogram,
which are born together.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from sockledger.exposition.family import Series, go_float

MAX_SCRAPERS = 256

# Scrapers that come first within this time see everything as new, so that of a pair none is worse off.
FRESH_SECONDS = 300.0


class Births:
    """The numbering, and what each scraper has seen of it. *clock* is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._count = 0
        self._shown = 0  # the highest number that any scraper has seen
        self._scrapers: OrderedDict[str, int] = OrderedDict()

    def series(self, labels: Sequence[tuple[str, str]]) -> Series:
        """Return a new series, numbered."""
        self._count += 1
        return Series(labels, self._count)

    def summary(self, labels: Sequence[tuple[str, str]]) -> tuple[Series, Series]:
        """Return a new summary's series under one number: count, sum."""
        self._count += 1
        return Series(labels, self._count, "_count"), Series(labels, self._count, "_sum")

    def histogram(self, labels: Sequence[tuple[str, str]], bounds: Sequence[float]) -> tuple[Series, ...]:
        """Return a new histogram's series under one number: buckets, count, sum.

        The buckets are those up to each of *bounds*, which ascend, and one up to infinity.
        `histogram_values` has the values in this order.
        """
        count_and_sum = self.summary(labels)
        buckets = [
            Series([*labels, ("le", go_float(bound))], self._count, "_bucket")
            for bound in (*bounds, math.inf)
        ]
        return (*buckets, *count_and_sum)

    @property
    def newest(self) -> int:
        """The highest number there is."""
        return self._count

    def seen_by(self, scraper: str | None) -> int | None:
        """Return the highest number *scraper* has seen. None, who is no scraper, sees values: None."""
        if scraper is None:
            return None
        fresh = self._clock() - self._start < FRESH_SECONDS
        return self._scrapers.get(scraper, 0 if fresh else self._shown)

    def note_seen(self, scraper: str | None, newest: int) -> None:
        """Note that *scraper* has got a page with all numbers up to *newest*."""
        if scraper is None:
            return
        self._scrapers[scraper] = max(newest, self._scrapers.get(scraper, 0))
        self._scrapers.move_to_end(scraper)
        self._shown = max(newest, self._shown)
        if len(self._scrapers) > MAX_SCRAPERS:
            self._scrapers.popitem(last=False)
