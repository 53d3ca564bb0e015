"""Who scrapes, and what they have got: an end may be hidden only when all have seen it."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sockledger.kernel.noted import boottime

MOST = 256

# Who has not scraped for so long is none any more: nanoseconds.
RECENT = 300 * 10**9


@dataclass(slots=True)
class _Pages:
    """When the flushes of a scraper's last two pages began, and when it got the last."""

    before_last: int
    last: int
    sent: int


class Scrapers:
    """The scrapers of the last five minutes. *clock* is CLOCK_BOOTTIME in nanoseconds."""

    def __init__(self, clock: Callable[[], int] = boottime) -> None:
        self._clock = clock
        self._pages: OrderedDict[str, _Pages] = OrderedDict()

    def note_page(self, scraper: str | None, began: int) -> None:
        """Note that *scraper* has got a page of the flush that began then; None is no scraper."""
        if scraper is None:
            return
        known = self._pages.get(scraper)
        self._pages[scraper] = _Pages(known.last if known else 0, began, self._clock())
        self._pages.move_to_end(scraper)
        if len(self._pages) > MOST:
            self._pages.popitem(last=False)

    def have_seen(self, moment: int) -> bool:
        """Whether all have got two pages of flushes that began after *moment*.

        Two, for in the first one a series that is new is at 0.
        """
        recent = self._clock() - RECENT
        return all(pages.before_last > moment for pages in tuple(self._pages.values()) if pages.sent > recent)
