from hypothesis import given
from hypothesis import strategies as st

from sockledger.exposition.family import Series, histogram_values
from sockledger.ledger.births import FRESH_SECONDS, MAX_SCRAPERS, Births

SERIES_AND_SCRAPES = st.lists(st.one_of(st.just(None), st.sampled_from(["one", "two", "three"])))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def young(births: Births, scraper: str | None, *series: Series) -> list[bool]:
    """Which of *series* a page that *scraper* gets shows as 0."""
    seen = births.seen_by(scraper)
    births.note_seen(scraper, births.newest)
    return [seen is not None and each.number > seen for each in series]


def test_zero_once_then_values() -> None:
    births = Births()
    first = births.series([("a", "1")])
    assert young(births, "one", first) == [True]
    assert young(births, "one", first) == [False]
    second = births.series([("a", "2")])
    assert young(births, "one", first, second) == [False, True]
    assert young(births, "one", first, second) == [False, False]


def test_scrapers_are_independent() -> None:
    births = Births()
    series = births.series([])
    assert young(births, "one", series) == [True]
    assert young(births, "two", series) == [True]
    assert young(births, "one", series) == [False]


def test_a_page_that_never_arrived_was_not_seen() -> None:
    births = Births()
    series = births.series([])
    assert births.seen_by("one") == 0
    assert young(births, "one", series) == [True]


def test_pages_that_arrive_in_another_order() -> None:
    births = Births()
    births.series([("a", "1")])
    second = births.series([("a", "2")])
    births.note_seen("one", 2)
    births.note_seen("one", 1)
    assert young(births, "one", second) == [False]


def test_nobody_sees_values_and_uses_nothing_up() -> None:
    births = Births()
    series = births.series([])
    assert young(births, None, series) == [False]
    assert young(births, "one", series) == [True]


def test_number_0_is_never_young() -> None:
    births = Births()
    births.series([])
    assert young(births, "one", Series([])) == [False]


def test_parts_of_a_summary_are_born_together() -> None:
    births = Births()
    births.series([])
    parts = births.summary([("a", "1")])
    assert [part.text for part in parts] == ['_count{a="1"} ', '_sum{a="1"} ']
    assert [part.number for part in parts] == [2, 2]
    assert births.newest == 2
    assert young(births, "one", *parts) == [True, True]
    assert young(births, "one", *parts, births.series([])) == [False, False, True]


def test_parts_of_a_histogram_are_born_together_and_its_values_have_their_order() -> None:
    births = Births()
    births.series([])
    parts = births.histogram([("a", "1"), ("z", "2")], [0.001, 1, 2.5e7])
    values = histogram_values([1, 0, 2, 4], 0.25)
    assert [(part.text, value) for part, value in zip(parts, values, strict=True)] == [
        ('_bucket{a="1",le="0.001",z="2"} ', 1),
        ('_bucket{a="1",le="1.0",z="2"} ', 1),
        ('_bucket{a="1",le="2.5e+07",z="2"} ', 3),
        ('_bucket{a="1",le="+Inf",z="2"} ', 7),
        ('_count{a="1",z="2"} ', 7),
        ('_sum{a="1",z="2"} ', 0.25),
    ]
    assert [part.number for part in parts] == [2] * 6
    assert births.newest == 2
    assert young(births, "one", *parts) == [True] * 6
    assert young(births, "one", *parts, births.series([])) == [*[False] * 6, True]


def test_a_late_scraper_is_spared_what_others_have_seen() -> None:
    """After a while a new one, or one with a new address, must not make everything fall to 0."""
    clock = Clock()
    births = Births(clock)
    old = births.series([("a", "1")])
    clock.now += FRESH_SECONDS - 1
    assert young(births, "one", old) == [True]
    clock.now += 1
    new = births.series([("a", "2")])
    assert young(births, "two", old, new) == [False, True]
    assert young(births, "two", old, new) == [False, False]
    assert young(births, "one", old, new) == [False, True]


def test_of_a_pair_neither_is_worse_off() -> None:
    clock = Clock()
    births = Births(clock)
    series = births.series([])
    assert young(births, "one", series) == [True]
    clock.now += FRESH_SECONDS - 1
    assert young(births, "two", series) == [True]


def test_scrapers_are_bounded_and_the_one_unseen_longest_goes() -> None:
    clock = Clock()
    births = Births(clock)
    series = births.series([])
    for number in range(MAX_SCRAPERS):
        young(births, f"scraper {number}")
    young(births, "scraper 0")
    young(births, "one more")
    assert young(births, "scraper 0", series) == [False]
    assert young(births, "scraper 1", series) == [True], "forgotten, and everything is fresh still"


@given(SERIES_AND_SCRAPES)
def test_every_scraper_sees_every_series_at_zero_exactly_once(events: list[str | None]) -> None:
    """None stands for a new series, a name for a scrape."""
    births = Births(Clock())
    series: list[Series] = []
    zeros: dict[tuple[str, Series], int] = {}
    for event in [*events, "one", "two", "three"]:
        if event is None:
            series.append(births.series([]))
            continue
        for each, zero in zip(series, young(births, event, *series), strict=True):
            zeros[event, each] = zeros.get((event, each), 0) + zero
    assert all(times == 1 for times in zeros.values())
