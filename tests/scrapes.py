"""What several scrapers have got from all daemons of one test: no counter may ever fall."""

import re

# Of a program, a process or a scrape: each daemon's own.
_OWN = re.compile(r"sockledger_(bpf_program|scrape)_|process_|python_")
_COUNTER = re.compile(r"^(\w+_(?:total|count|sum|bucket))(?:\{.*\})? (\S+)$", re.MULTILINE)


def counters(page: str) -> dict[str, float]:
    """Return the values that may not fall, whichever daemon shows them, by the sample as it is written.

    `Page` knows more, and is 20 times slower.
    """
    return {
        match[0].removesuffix(f" {match[2]}"): float(match[2])
        for match in _COUNTER.finditer(page)
        if not _OWN.match(match[1])
    }


class Scrapes:
    """Pages in the order in which scrapers got them; None is nobody in particular, who sees values."""

    def __init__(self, *, ending: bool = False) -> None:
        """*ending*: counters may go, and begin again, which a scraper sees at 0."""
        self._ending = ending
        self._last: dict[str | None, dict[str, float]] = {}
        self._seen: set[str] = set()
        self._increases: dict[str | None, dict[str, float]] = {}

    def take(self, scraper: str | None, page: str) -> None:
        """Compare with all that *scraper* has got before. What is new begins at 0; double entry agrees."""
        last = self._last.setdefault(scraper, {})
        now = counters(page)
        fallen = [
            f"{name}: {value} after {last[name]}"
            for name, value in now.items()
            if value < last.get(name, 0) and not (self._ending and (not value or scraper is None))
        ]
        assert not fallen, f"{scraper} saw {len(fallen)} counters fall: {fallen[:5]}"
        gone = [f"{name}: {value}" for name, value in last.items() if value and name not in now]
        assert not gone or self._ending, f"{scraper} misses {len(gone)} counters: {gone[:5]}"
        if scraper is not None:
            # that a daemon before has shown it to anybody is all that the next one knows
            born = [f"{name}: {now[name]}" for name in now.keys() - self._seen if now[name]]
            assert not born, f"{scraper} saw {len(born)} counters that were never 0: {born[:5]}"
            self._seen |= now.keys()
        increases = self._increases.setdefault(scraper, {})
        for name, value in now.items():
            before = last.get(name, 0)
            increases[name] = increases.get(name, 0) + (value - before if value >= before else value)
        last |= now
        wrong = [
            name for name in now if re.match("sockledger_(unattributed|overcounted)_", name) and now[name]
        ]
        assert not wrong, f"the books do not balance: {wrong}"

    def increases(self, scraper: str) -> str:
        """Return what PromQL's increase() makes of all that *scraper* has got, as a page."""
        return "".join(f"{name} {value}\n" for name, value in self._increases[scraper].items())
