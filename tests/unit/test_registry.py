import logging
from collections.abc import Iterable
from typing import cast

import pytest

from sockledger.collectors import registry
from sockledger.collectors.registry import DURATION, SUCCESS, CollectorSpec, Registry
from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger

GOOD = Metric("good", MetricType.GAUGE, "Good.")


class Good:
    def __init__(self, ledger: Ledger, births: Births) -> None: ...

    def collect(self) -> Iterable[Family]:
        yield Family(GOOD, [(Series([]), 1)])


class Bad(Good):
    """Fails, after a part of its families."""

    def collect(self) -> Iterable[Family]:
        yield Family(GOOD, [(Series([]), 2)])
        raise ZeroDivisionError("by design")


@pytest.fixture(autouse=True)
def collectors(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = (CollectorSpec(made, (GOOD,), "") for made in (Good, Bad))
    specs = {"first": good, "bad": bad, "last": good}
    monkeypatch.setattr(registry, "COLLECTORS", specs)


def collect(*enabled: str) -> list[Family]:
    return Registry(enabled, cast("Ledger", None), Births({})).collect()


def values(families: list[Family], metric: Metric) -> dict[str, float]:
    (family,) = [family for family in families if family.metric is metric]
    return {series.labels[0][1]: value for series, value in family.samples}


def test_only_enabled_ones_run() -> None:
    families = collect("last")
    assert values(families, SUCCESS) == {"last": 1}
    assert values(families, DURATION).keys() == {"last"}


def test_one_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    families = collect("first", "bad", "last")
    assert values(families, SUCCESS) == {"first": 1, "bad": 0, "last": 1}
    assert values(families, DURATION).keys() == {"first", "bad", "last"}
    assert all(seconds >= 0 for seconds in values(families, DURATION).values())
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert vars(record)["collector"] == "bad"
