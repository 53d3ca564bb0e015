"""A counter's birth: whoever scrapes sees a new series at 0 once, or `increase()` misses what came first.

Series are numbered as they appear. A scraper has the highest number that it has seen; newer counters read
0 in its next page, and their value from then on.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from sockledger.exposition.family import Series

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

    def show(self, scraper: str | None) -> int | None:
        """Return the highest number *scraper* has seen, and note that it is about to see all there are.

        None, who is no scraper, sees values; so None is returned.
        """
        if scraper is None:
            return None
        fresh = self._clock() - self._start < FRESH_SECONDS
        seen = self._scrapers.pop(scraper, 0 if fresh else self._shown)
        self._scrapers[scraper] = self._shown = self._count
        if len(self._scrapers) > MAX_SCRAPERS:
            self._scrapers.popitem(last=False)
        return seen
