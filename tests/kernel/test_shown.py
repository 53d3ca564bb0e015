"""What outlives the daemon of its own: the counters that were shown, and what double entry has found."""

from collections.abc import Iterator

import pytest
from tests.kernel.ledger import CGROUPS, CONNECTIONS, SOCKETS, attached

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.meters import Meters
from sockledger.kernel.shown import ShownMap
from sockledger.kernel.sums import Traffic
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.reconciliation import NO_TRAFFIC, Reconciliation
from sockledger.workloads.naming import Workload


@pytest.fixture
def path(root: CgroupRoot) -> Iterator[DataPath]:
    path = DataPath(root, cgroups=CGROUPS, sockets=SOCKETS, connections=CONNECTIONS)
    yield path
    path.close()


NUMBERS = {0: 0, 1: 1 << 63, (1 << 64) - 1: (1 << 64) - 1, **{number << 32: number for number in range(5000)}}


def test_map_is_a_dict(path: DataPath) -> None:
    shown = ShownMap(path.maps["shown"])
    assert dict(shown.items()) == {}
    shown.update(NUMBERS)
    assert dict(shown.items()) == NUMBERS
    shown.update({1: 2, 3: 4})
    assert dict(shown.items()) == {**NUMBERS, 1: 2, 3: 4}
    for key in [*NUMBERS, 3]:
        del shown[key]
    assert dict(shown.items()) == {}
    with pytest.raises(KeyError):
        del shown[3]


def test_full_map(path: DataPath, caplog: pytest.LogCaptureFixture) -> None:
    table = path.maps["shown"]
    shown = ShownMap(table)
    shown.update(dict.fromkeys(range(table.max_entries - 1), 7))
    births = Births(shown)
    births.series("m", [("a", "1")])
    births.note_page("one", births.newest, 0)
    assert not caplog.records
    second = births.series("m", [("a", "2")])
    births.note_page("one", births.newest, 0)
    assert len(caplog.records) == 1
    seen = births.scrapers.seen_by("one")
    assert seen is not None
    assert second.number <= seen, "it has its value all the same"
    assert Births(shown).series("m", [("a", "1")]).number == 0
    assert Births(shown).series("m", [("a", "2")]).number == 1


def test_births_of_daemons_one_after_another(path: DataPath) -> None:
    shown = ShownMap(path.maps["shown"])
    workloads = [Workload(cgroup=f"/{number}") for number in range(10_000)]
    births = Births(shown)
    for workload in workloads:
        births.series("m", workload.labels(), workload)
    births.note_page("one", births.newest, 0)

    births = Births(shown)
    for workload in workloads:
        assert births.series("m", workload.labels(), workload).number == 0
    assert births.series("m", []).number == 1
    births.note_page("one", births.newest, 0)
    births.forget(workloads[:10])

    births = Births(shown)
    numbers = [births.series("m", each.labels(), each).number for each in workloads]
    assert numbers == [*[0] * 10, *range(1, 9_991)]
    assert births.series("m", []).number == 0


def test_reconciliation_goes_on(below: CgroupRoot) -> None:
    """Totals of nobody's packets stand for a double count: found by one daemon, kept for the next."""
    wrong = Traffic(1 << 40, 1 << 32, 1 << 41, 1 << 33)
    with attached(below) as path:
        overflow = path.maps["overflow"]
        first = Ledger(path, below, Meters((), below, path))
        first.flush()
        assert path.reconciliation() == (NO_TRAFFIC, NO_TRAFFIC)
        overflow.update(bytes(overflow.key_size), overflow.value.struct.pack(*wrong))
        first.flush()
        assert first.reconciliation == Reconciliation(NO_TRAFFIC, wrong)
        assert path.reconciliation() == (NO_TRAFFIC, wrong)
        overflow.update(bytes(overflow.key_size), bytes(overflow.value_size))
        first.flush()

        second = Ledger(path, below, Meters((), below, path))
        assert second.reconciliation == Reconciliation(NO_TRAFFIC, wrong)
        second.flush()
        assert path.reconciliation() == (NO_TRAFFIC, wrong)
        path.keep_reconciliation(wrong, NO_TRAFFIC)
        assert path.reconciliation() == (wrong, NO_TRAFFIC)
