from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockledger.exposition.family import Series, histogram_values
from sockledger.ledger.births import Births
from sockledger.ledger.scrapers import RECENT
from sockledger.workloads.naming import Workload

SERIES_AND_SCRAPES = st.lists(st.one_of(st.just(None), st.sampled_from(["one", "two", "three"])))
A, B = Workload(cgroup="/a"), Workload(cgroup="/b")


class Clock:
    def __init__(self) -> None:
        self.now = 10 * RECENT

    def __call__(self) -> int:
        return self.now


class Bounded(dict[int, int]):
    """A store with room for so many."""

    def __init__(self, room: int) -> None:
        self.room = room

    def update(self, entries: Mapping[int, int]) -> None:  # type: ignore[override]
        for key, value in entries.items():
            if key not in self and len(self) >= self.room:
                raise OSError(7, "Argument list too long")
            self[key] = value


def young(births: Births, scraper: str | None, *series: Series) -> list[bool]:
    """Which of *series* a page that *scraper* gets shows as 0."""
    seen = births.scrapers.seen_by(scraper)
    births.note_page(scraper, births.newest, 0)
    return [seen is not None and each.number > seen for each in series]


def test_zero_once_then_values() -> None:
    births = Births({})
    first = births.series("m", [("a", "1")])
    assert young(births, "one", first) == [True]
    assert young(births, "one", first) == [False]
    second = births.series("m", [("a", "2")])
    assert young(births, "one", first, second) == [False, True]
    assert young(births, "one", first, second) == [False, False]


def test_scrapers_are_independent() -> None:
    births = Births({})
    series = births.series("m", [])
    assert young(births, "one", series) == [True]
    assert young(births, "two", series) == [True]
    assert young(births, "one", series) == [False]


def test_a_page_that_never_arrived_was_not_seen() -> None:
    births = Births({})
    series = births.series("m", [])
    assert births.scrapers.seen_by("one") == 0
    assert young(births, "one", series) == [True]


def test_pages_that_arrive_in_another_order() -> None:
    births = Births({})
    births.series("m", [("a", "1")])
    second = births.series("m", [("a", "2")])
    births.note_page("one", 2, 0)
    births.note_page("one", 1, 0)
    assert young(births, "one", second) == [False]


def test_nobody_sees_values_and_uses_nothing_up() -> None:
    births = Births({})
    series = births.series("m", [])
    assert young(births, None, series) == [False]
    assert young(births, "one", series) == [True]


def test_number_0_is_never_young() -> None:
    births = Births({})
    births.series("m", [])
    assert young(births, "one", Series([])) == [False]


def test_parts_of_a_summary_are_born_together() -> None:
    births = Births({})
    births.series("m", [])
    parts = births.summary("s", [("a", "1")])
    assert [part.text for part in parts] == ['_count{a="1"} ', '_sum{a="1"} ']
    assert [part.number for part in parts] == [2, 2]
    assert births.newest == 2
    assert young(births, "one", *parts) == [True, True]
    assert young(births, "one", *parts, births.series("n", [])) == [False, False, True]


def test_parts_of_a_histogram_are_born_together_and_its_values_have_their_order() -> None:
    births = Births({})
    births.series("m", [])
    parts = births.histogram("h", [("a", "1"), ("z", "2")], [0.001, 1, 2.5e7])
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
    assert young(births, "one", *parts, births.series("n", [])) == [*[False] * 6, True]


def test_a_late_scraper_is_spared_what_others_have_seen() -> None:
    """After a while a new one, or one with a new address, must not make everything fall to 0."""
    clock = Clock()
    births = Births({}, clock=clock)
    old = births.series("m", [("a", "1")])
    clock.now += RECENT - 1
    assert young(births, "one", old) == [True]
    clock.now += 1
    new = births.series("m", [("a", "2")])
    assert young(births, "two", old, new) == [False, True]
    assert young(births, "two", old, new) == [False, False]
    assert young(births, "one", old, new) == [False, True]


def test_of_a_pair_neither_is_worse_off() -> None:
    clock = Clock()
    births = Births({}, clock=clock)
    series = births.series("m", [])
    assert young(births, "one", series) == [True]
    clock.now += RECENT - 1
    assert young(births, "two", series) == [True]


@given(SERIES_AND_SCRAPES)
def test_every_scraper_sees_every_series_at_zero_exactly_once(events: list[str | None]) -> None:
    """None stands for a new series, a name for a scrape."""
    births = Births({}, clock=Clock())
    series: list[Series] = []
    zeros: dict[tuple[str, Series], int] = {}
    for event in [*events, "one", "two", "three"]:
        if event is None:
            series.append(births.series("m", [("number", str(len(series)))]))
            continue
        for each, zero in zip(series, young(births, event, *series), strict=True):
            zeros[event, each] = zeros.get((event, each), 0) + zero
    assert all(times == 1 for times in zeros.values())


# ---- daemons one after another


def test_what_was_shown_is_never_young_again() -> None:
    shown: dict[int, int] = {}
    births = Births(shown)
    old = [births.series("m", [("a", "1")]), *births.summary("s", []), *births.histogram("h", [], [1.0])]
    assert young(births, "one", *old) == [True] * 7
    births.series("m", [("a", "2")])

    births = Births(shown)
    old = [births.series("m", [("a", "1")]), *births.summary("s", []), *births.histogram("h", [], [1.0])]
    new = births.series("m", [("a", "2")])
    assert young(births, "one", *old, new) == [*[False] * 7, True]
    assert young(births, "two", *old, new) == [*[False] * 7, True]
    assert young(Births(shown), "one", births.series("m", [("a", "3")])) == [True], "its number is another's"


@pytest.mark.parametrize(
    "other",
    [
        lambda births: births.series("other", [("a", "1"), ("b", "2")], A),
        lambda births: births.series("m", [("a", "1"), ("b", "3")], A),
        lambda births: births.series("m", [("a", "1"), ("c", "2")], A),
        lambda births: births.series("m", [("a", "2"), ("b", "1")], A),
        lambda births: births.series("m", [("a", "1")], A),
    ],
)
def test_group_and_labels_are_what_a_series_is_known_by(other: Callable[[Births], Series]) -> None:
    shown: dict[int, int] = {}
    births = Births(shown)
    births.series("m", [("a", "1"), ("b", "2")], A)
    births.note_page("one", births.newest, 0)
    births = Births(shown)
    assert births.series("m", [("b", "2"), ("a", "1")], B).number == 0, "neither order nor workload"
    assert other(births).number == 1


def test_keys_are_the_same_in_every_version() -> None:
    shown: dict[int, int] = {}
    births = Births(shown)
    births.series("sockledger_receive_bytes", [("cgroup", "/a"), ("protocol", "tcp")], A)
    births.series("sockledger_unattributed_bytes", [("direction", "receive")])
    births.note_page("one", births.newest, 0)
    assert shown == {12491204507902394705: 12518318215959013367, 17865052655880960880: 0}


def test_nothing_is_written_down_before_a_scraper_has_it() -> None:
    shown: dict[int, int] = {}
    births = Births(shown)
    births.series("m", [("a", "1")])
    newest = births.newest
    births.series("m", [("a", "2")])
    births.note_page(None, newest, 0)
    assert not shown
    births.note_page("one", newest, 0)
    assert Births(shown).series("m", [("a", "1")]).number == 0
    assert Births(shown).series("m", [("a", "2")]).number == 1
    shown.clear()
    births.note_page("one", newest, 0)
    assert not shown, "once"


def test_values_only_after_it_is_written_down() -> None:
    class Failing(dict[int, int]):
        def update(self, entries: Mapping[int, int]) -> None:  # type: ignore[override]
            raise ZeroDivisionError("killed here")

    births = Births(Failing())
    series = births.series("m", [])
    with pytest.raises(ZeroDivisionError):
        births.note_page("one", births.newest, 0)
    seen = births.scrapers.seen_by("one")
    assert seen is not None
    assert series.number > seen


def test_what_begins_anew_with_each_daemon() -> None:
    shown: dict[int, int] = {}
    for _ in range(2):
        births = Births(shown)
        assert young(births, "one", births.series(None, [("a", "1")])) == [True]
    assert not shown


def test_a_full_store_hinders_nobody(caplog: pytest.LogCaptureFixture) -> None:
    shown = Bounded(1)
    births = Births(shown)
    series = [births.series("m", [("a", str(number))]) for number in range(3)]
    assert young(births, "one", *series) == [True] * 3
    assert young(births, "one", *series) == [False] * 3
    assert births.written == len(shown) == 1
    assert len(caplog.records) == 1
    shown.room = 3
    assert young(births, "one", *series) == [False] * 3
    assert births.written == len(shown) == 3, "tried again"
    shown.room = 0
    births.series("m", [("a", "more")])
    births.note_page("one", births.newest, 0)
    assert len(caplog.records) == 2


def test_sums_that_began_anew() -> None:
    """Each series is born again, once, whichever daemon is first to have it; another map's are not."""
    shown: dict[int, int] = {}

    def page(births: Births, *names: str) -> list[bool]:
        each = [
            births.series(group, [("a", name)], owner, table)
            for name in names
            for group, owner, table in (("m", A, "a table"), ("n", A, ""), ("o", None, "a table"))
        ]
        return young(births, "one", *each)

    assert page(Births(shown), "1", "2") == [True] * 6, "of a version that knows no generations"
    for generations in ({"a table": "first"}, {"a table": "second", "another": "third"}):
        assert page(Births(shown, generations), "1") == [True, False, True]
        births = Births(shown, generations)
        assert page(births, "2") == [True, False, True]
        assert page(births, "1", "2") == [False] * 6
        assert page(Births(shown, generations), "1", "2") == [False] * 6
        births = Births(shown, generations)
        births.forget([A])
        assert page(births, "1", "2") == [False] * 6
        assert len(shown) == births.written == 10, "without those of the last generation"
        births.end("m", [("a", "1")], "a table")
        assert page(births, "1") == [True, False, False]
        assert Births(shown, generations).written == 10
    births.end_all([A])
    assert page(births, "1", "2") == [True, True, False] * 2


def test_one_that_ended_is_born_again() -> None:
    shown: dict[int, int] = {}
    for births in (Births(shown), Births(shown)):
        for _ in range(2):
            assert young(births, "one", births.series("m", [("a", "1")])) == [True]
            births.end("m", [("a", "1")])
            assert not shown
    births.series("m", [("a", "2")])
    births.note_page("one", births.newest, 0)
    births = Births(shown)
    assert births.series("m", [("a", "2")]).number == 0
    births.end("m", [("a", "2")])
    assert young(births, "one", births.series("m", [("a", "2")])) == [True]
    births.end("m", [("a", "2")])
    births.series("m", [("a", "1")])
    births.end("m", [("a", "1")])  # no page had it
    births.note_page("one", births.newest, 0)
    assert not shown


def test_forgotten_workloads_are_born_again() -> None:
    shown: dict[int, int] = {}
    births = Births(shown)
    births.series("before", [("cgroup", "/a")], A)
    births.note_page("one", births.newest, 0)

    births = Births(shown)
    for workload in (A, B):
        births.series("m", [("cgroup", workload.cgroup)], workload)
    births.series("m", [])
    births.note_page("one", births.newest, 0)
    for workload in (A, B):
        births.series("unwritten", [("cgroup", workload.cgroup)], workload)
    births.forget([B])
    births.note_page("one", births.newest, 0)
    for later in (births, Births(shown)):
        assert later.series("before", [("cgroup", "/a")], A).number > 0
    later = Births(shown)
    assert later.series("m", [("cgroup", "/a")], A).number > 0
    assert later.series("unwritten", [("cgroup", "/a")], A).number > 0
    assert later.series("m", [("cgroup", "/b")], B).number == 0
    assert later.series("unwritten", [("cgroup", "/b")], B).number == 0
    assert later.series("m", []).number == 0


def test_sums_that_ended_are_born_again() -> None:
    shown: dict[int, int] = {}
    births = Births(shown)
    cache: dict[Workload, list[Series]] = births.by_workload()
    for workload in (A, B):
        cache[workload] = [births.series("m", [("cgroup", workload.cgroup)], workload)]
    births.note_page("one", births.newest, 0)
    for workload in (A, B):
        births.series("unwritten", [("cgroup", workload.cgroup)], workload)
    births.end_all([A])
    assert cache.keys() == {B}
    assert births.written == len(shown) == 1
    births.note_page("one", births.newest, 0)
    assert births.written == len(shown) == 2
    for later in (births, Births(shown)):
        assert later.written == 2
        for group in ("m", "unwritten"):
            assert later.series(group, [("cgroup", "/a")], A).number > 0
            assert later.series(group, [("cgroup", "/b")], B).number == 0


def test_one_that_comes_back_is_not_born_again() -> None:
    births = Births({})
    cache: dict[Workload, list[Series]] = births.by_workload()

    def made() -> list[Series]:
        for workload in (A, B):
            if workload not in cache:
                cache[workload] = [births.series("m", [("cgroup", workload.cgroup)], workload)]
        return [*cache[A], *cache[B]]

    assert [series.number for series in made()] == [1, 2]
    births.let_go({B})
    assert cache.keys() == {B}
    assert [series.number for series in made()] == [1, 2], "nobody has got it"
    assert young(births, "one", *made()) == [True, True]
    births.let_go({B})
    assert young(births, "one", *made()) == [False, False]
    assert young(births, "two", *made()) == [False, True]


@dataclass
class Machine:
    """Counters that outlive their daemons, and what scrapers got of them, in the order of the pages."""

    shown: dict[int, int] = field(default_factory=dict)
    counters: int = 0
    time: int = 0  # what each counter shows, if it is not young
    got: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    pages: list[tuple[str, int]] = field(default_factory=list)  # that no daemon knows the arrival of

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A daemon ends, in any way, and another one starts."""
        self.births = Births(self.shown, clock=Clock())
        self.series: list[Series] = []
        self.pages.clear()

    def page(self, scraper: str) -> None:
        """A scraper gets a page. That it has it is known later, or never."""
        self.time += 1
        self.series += [
            self.births.series("m", [("number", str(number))])
            for number in range(len(self.series), self.counters)
        ]
        seen = self.births.scrapers.seen_by(scraper)
        assert seen is not None
        for number, series in enumerate(self.series):
            value = 0 if series.number > seen else self.time
            self.got.setdefault((scraper, number), []).append(value)
        self.pages.append((scraper, self.births.newest))

    def note(self) -> None:
        """The daemon learns that the oldest page has gone out."""
        if self.pages:
            self.births.note_page(*self.pages.pop(0), 0)

    def happens(self, event: str) -> None:
        """Do what *event* says."""
        match event.split():
            case ["counter"]:
                self.counters += 1
            case ["page", scraper]:
                self.page(scraper)
            case ["restart"]:
                self.restart()
            case ["note"]:
                self.note()


EVENTS = st.lists(
    st.sampled_from(["counter", "restart", "note", "page one", "page two", "page three"]), max_size=60
)


@given(EVENTS)
def test_no_value_ever_falls(events: list[str]) -> None:
    machine = Machine()
    for event in events:
        machine.happens(event)
    for values in machine.got.values():
        assert values == sorted(values)


@given(EVENTS)
def test_whoever_is_first_to_get_a_counter_gets_a_zero(events: list[str]) -> None:
    """What appeared while there was no daemon, too, and what a daemon never came to show."""
    machine = Machine()
    for event in events:
        before = {number for _, number in machine.got}
        machine.happens(event)
        for (_, number), values in machine.got.items():
            assert number in before or values == [0]
