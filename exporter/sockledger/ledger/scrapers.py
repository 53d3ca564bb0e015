"""Who scrapes, and what they have got: of births by their numbers, and of ends by their moment."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sockledger.kernel.noted import boottime

MOST = 256

# Nanoseconds. Who has not scraped for so long is none any more. Scrapers that come first within this time see
# everything as new, so that of a pair none is worse off.
RECENT = 300 * 10**9


@dataclass(slots=True)
class _Pages:
    """A scraper's highest number, when the flushes of its last two pages began, and when it got the last."""

    newest: int
    before_last: int
    last: int
    sent: int


class Scrapers:
    """The scrapers of late. *clock* is CLOCK_BOOTTIME in nanoseconds.

    Where a predecessor has shown something, *others* may have scraped it, and have yet to come.
    """

    def __init__(self, clock: Callable[[], int] = boottime, *, others: bool = False) -> None:
        self._clock = clock
        self._others = others
        self._start = clock()
        self._newest = 0  # that any has seen
        self._pages: OrderedDict[str, _Pages] = OrderedDict()

    def note_page(self, scraper: str, newest: int, began: int) -> None:
        """Note that *scraper* has got a page of the flush that *began* then, with numbers up to *newest*."""
        known = self._pages.get(scraper, _Pages(0, 0, 0, 0))
        self._pages[scraper] = _Pages(max(newest, known.newest), known.last, began, self._clock())
        self._pages.move_to_end(scraper)
        self._newest = max(newest, self._newest)
        if len(self._pages) > MOST:
            self._pages.popitem(last=False)

    def seen_by(self, scraper: str | None) -> int | None:
        """Return the highest number *scraper* has seen. None, who is no scraper, sees values: None."""
        if scraper is None:
            return None
        if scraper in self._pages:
            return self._pages[scraper].newest
        return 0 if self._clock() - self._start < RECENT else self._newest

    def have_seen(self, moment: int) -> bool:
        """Whether all have got two pages of flushes that began after *moment*.

        Two, for in the first one a series that is new is at 0.
        """
        recent = self._clock() - RECENT
        if self._others and self._start > recent:
            return False
        return all(pages.before_last > moment for pages in tuple(self._pages.values()) if pages.sent > recent)
