"""What several scrapers have seen of all daemons of one test: no counter may ever fall."""

import re

from tests.daemon.support import Page

# Of a program or a process; and a daemon's own work.
_EACH_DAEMONS_OWN = re.compile(r"sockledger_(bpf_program|scrape)_|process_|python_")
_COUNTER = re.compile(r".*_(total|count|sum|bucket)$")

Sample = tuple[str, frozenset[tuple[str, str]]]


def counters(page: Page) -> dict[Sample, float]:
    """Return the samples that may not fall, whichever daemon shows them."""
    return {
        sample: value
        for sample, value in page.samples.items()
        if _COUNTER.match(sample[0]) and not _EACH_DAEMONS_OWN.match(sample[0])
    }


class Scrapes:
    """Pages in the order in which scrapers got them; None is nobody in particular, who sees values."""

    def __init__(self) -> None:
        self._last: dict[str | None, dict[Sample, float]] = {}
        self._seen: set[Sample] = set()

    def take(self, scraper: str | None, page: Page) -> None:
        """Compare with all that *scraper* has got before; what is new begins at 0, and all is proven."""
        last = self._last.setdefault(scraper, {})
        now = counters(page)
        fallen = {
            sample: (last[sample], value) for sample, value in now.items() if value < last.get(sample, 0)
        }
        assert not fallen, f"{scraper} saw counters fall: {fallen}"
        gone = {sample: value for sample, value in last.items() if value and sample not in now}
        assert not gone, f"{scraper} misses counters: {gone}"
        if scraper is not None:
            # that a daemon before has shown it to anybody is all that the next one knows
            born = {sample: now[sample] for sample in now.keys() - self._seen if now[sample]}
            assert not born, f"{scraper} saw counters that were never 0: {born}"
            self._seen |= now.keys()
        last |= now
        for name in ("unattributed", "overcounted"):
            assert not any(page.values(f"sockledger_{name}_bytes_total")), page.text
            assert not any(page.values(f"sockledger_{name}_packets_total")), page.text
