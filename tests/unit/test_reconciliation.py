from hypothesis import given
from hypothesis import strategies as st

from sockledger.kernel.sums import Traffic
from sockledger.ledger.ledger import sum_up
from sockledger.ledger.reconciliation import NO_TRAFFIC, Reconciliation

COUNTS = st.integers(0, 2**64)
TRAFFIC = st.builds(Traffic, COUNTS, COUNTS, COUNTS, COUNTS)


def test_balanced() -> None:
    found = Reconciliation()
    assert not found.compare(Traffic(1, 1, 2, 2), Traffic(1, 1, 3, 3), Traffic(5, 5, 3, 3))
    assert found == Reconciliation(NO_TRAFFIC, NO_TRAFFIC)


def test_loss() -> None:
    found = Reconciliation()
    assert found.compare(Traffic(100, 3, 50, 1), Traffic(90, 2, 50, 1), Traffic(100, 3, 50, 1))
    assert found.unattributed == Traffic(10, 1, 0, 0)
    assert found.overcounted == NO_TRAFFIC


def test_double_count() -> None:
    found = Reconciliation()
    assert found.compare(Traffic(0, 0, 0, 0), Traffic(90, 2, 70, 1), Traffic(80, 1, 70, 1))
    assert found.unattributed == NO_TRAFFIC
    assert found.overcounted == Traffic(10, 1, 0, 0)


def test_the_same_difference_is_no_news() -> None:
    found = Reconciliation()
    lost = Traffic(10, 1, 0, 0), NO_TRAFFIC, Traffic(10, 1, 0, 0)
    assert found.compare(*lost)
    assert not found.compare(*lost)
    assert not found.compare(NO_TRAFFIC, NO_TRAFFIC, NO_TRAFFIC), "less is no news"
    assert found.unattributed == Traffic(10, 1, 0, 0), "and it never falls"
    assert found.compare(Traffic(11, 1, 0, 0), NO_TRAFFIC, Traffic(11, 1, 0, 0))


@given(st.lists(st.tuples(TRAFFIC, TRAFFIC, TRAFFIC)))
def test_counters_only_rise(flushes: list[tuple[Traffic, Traffic, Traffic]]) -> None:
    found = Reconciliation()
    for before, totals, after in flushes:
        last = found.unattributed, found.overcounted
        news = found.compare(before, totals, after)
        assert news == ((found.unattributed, found.overcounted) != last)
        for old, new in zip(last, (found.unattributed, found.overcounted), strict=True):
            assert all(a <= b for a, b in zip(old, new, strict=True))


@given(TRAFFIC, TRAFFIC, TRAFFIC)
def test_between_the_bounds_nothing_is_found(a: Traffic, b: Traffic, c: Traffic) -> None:
    found = Reconciliation()
    assert not found.compare(a, a.plus(b), a.plus(b).plus(c))


def test_sum_up() -> None:
    assert sum_up([]) == NO_TRAFFIC
    assert sum_up([Traffic(1, 2, 3, 4), Traffic(10, 20, 30, 40)]) == Traffic(11, 22, 33, 44)
