import math
import runpy
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client import generate_latest as generate_text
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric as PrometheusMetric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sockledger.exposition.family import Family, Metric, MetricType, Series, histogram_values
from sockledger.exposition.text import add_registry, negotiate, render
from sockledger.ledger.births import Births

BYTES = Metric("sockledger_bytes", MetricType.COUNTER, 'Bytes "seen",\nby \\ side.')
RTT = Metric("sockledger_rtt_seconds", MetricType.SUMMARY, "Round trips.")
LIFETIME = Metric("sockledger_lifetime_seconds", MetricType.HISTOGRAM, 'How "long".')
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
# Surrogates have a test of their own: prometheus_client fails on them.
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text('\\"\n{},= ')
INTS = st.integers(0, 2**64) | st.integers(0, 20).map(lambda n: 10**n) | st.sampled_from([2**53 - 1, 2**53])
FLOATS = st.floats() | st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 1e6, 123456789.5])
COUNTS = INTS | st.floats(0)
VALUES = COUNTS | FLOATS | st.integers(-(2**70), 2**70)
LABELS = st.lists(st.tuples(NAMES, TEXT), unique_by=lambda pair: pair[0], max_size=5)
SUMS = st.floats(0, 1e12)
BOUNDS = st.lists(st.floats(1e-9, 1e9), unique=True, max_size=5).map(sorted)
SUFFIXES = {MetricType.SUMMARY: ["_count", "_sum"], MetricType.HISTOGRAM: ["_bucket", "_count", "_sum"]}
MADE = {
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.GAUGE: GaugeMetricFamily,
    MetricType.SUMMARY: SummaryMetricFamily,
    MetricType.HISTOGRAM: HistogramMetricFamily,
}


@st.composite
def families(draw: st.DrawFn) -> list[Family]:
    made = []
    for name in draw(st.lists(NAMES, unique=True, max_size=3)):
        kind = draw(st.sampled_from(MetricType))
        values = VALUES if kind is MetricType.GAUGE else COUNTS
        series = st.builds(Series, LABELS, st.integers(0, 9), st.sampled_from(SUFFIXES.get(kind, [""])))
        samples = draw(st.lists(st.tuples(series, values), max_size=8))
        made.append(Family(Metric(f"sockledger_{name}", kind, draw(TEXT)), samples))
    return made


class Reference(Collector):
    """The same families in prometheus_client's types."""

    def __init__(self, families: Iterable[Family]) -> None:
        self.families = families

    def collect(self) -> Iterable[PrometheusMetric]:
        for family in self.families:
            metric = family.metric
            made = MADE[metric.type](metric.name, metric.help)
            for series, value in family.samples:
                made.add_sample(metric.sample_name + series.suffix, dict(series.labels), value)
            yield made


class Given(Collector):
    """A family of prometheus_client's."""

    def __init__(self, family: PrometheusMetric) -> None:
        self.family = family

    def collect(self) -> Iterable[PrometheusMetric]:
        yield self.family


def generated(collector: Collector, *, openmetrics: bool) -> bytes:
    generate = generate_openmetrics if openmetrics else generate_text
    page: bytes = generate(collector)
    return page


def reference(made: Iterable[Family], *, openmetrics: bool) -> bytes:
    return generated(Reference(made), openmetrics=openmetrics)


def counter(*samples: tuple[Series, int | float]) -> Family:
    return Family(BYTES, list(samples))


@pytest.mark.parametrize("openmetrics", [False, True])
@given(families=families())
def test_bytes_are_those_of_prometheus_client(families: list[Family], openmetrics: bool) -> None:
    assert render(families, seen=None, openmetrics=openmetrics) == reference(
        families, openmetrics=openmetrics
    )


ROWS = st.lists(
    st.tuples(TEXT, TEXT, st.lists(st.integers(0, 2**60), min_size=6, max_size=6), SUMS), max_size=4
)


@pytest.mark.parametrize("openmetrics", [False, True])
@given(rows=ROWS)
def test_summaries_are_those_of_prometheus_client(
    rows: list[tuple[str, str, list[int], float]], openmetrics: bool
) -> None:
    births, ours = Births({}), Family(RTT)
    theirs = SummaryMetricFamily(RTT.name, RTT.help, labels=["role", "family"])
    for role, family, [count, *_], total in rows:
        series = births.summary(RTT.name, [("role", role), ("family", family)])
        ours.samples += zip(series, (count, total), strict=True)
        theirs.add_metric([role, family], count, total)
    page = render([ours], seen=None, openmetrics=openmetrics)
    assert page == generated(Given(theirs), openmetrics=openmetrics)


@pytest.mark.parametrize("openmetrics", [False, True])
@given(rows=ROWS, bounds=BOUNDS)
def test_histograms_are_those_of_prometheus_client(
    rows: list[tuple[str, str, list[int], float]], bounds: list[float], openmetrics: bool
) -> None:
    births, ours = Births({}), Family(LIFETIME)
    theirs = HistogramMetricFamily(LIFETIME.name, LIFETIME.help, labels=["role", "family"])
    for role, family, six, total in rows:
        counts = six[: len(bounds) + 1]
        series = births.histogram(LIFETIME.name, [("role", role), ("family", family)], bounds)
        ours.samples += zip(series, histogram_values(counts, total), strict=True)
        buckets = [floatToGoString(bound) for bound in (*bounds, math.inf)]  # type: ignore[no-untyped-call]
        theirs.add_metric([role, family], list(zip(buckets, accumulate(counts), strict=True)), total)
    page = render([ours], seen=None, openmetrics=openmetrics)
    assert page == generated(Given(theirs), openmetrics=openmetrics)


@pytest.mark.parametrize("escaping", ["allow-utf-8", "underscores"])
@given(families=families())
def test_an_escaping_scheme_that_is_offered_changes_no_byte(families: list[Family], escaping: str) -> None:
    text, openmetrics = (render(families, seen=None, openmetrics=wanted) for wanted in (False, True))
    assert text == generate_text(Reference(families), escaping)
    assert openmetrics == generate_openmetrics(Reference(families), escaping)  # type: ignore[no-untyped-call]


@given(value=VALUES)
def test_gauge_values_of_all_kinds(value: float) -> None:
    family = Family(Metric("sockledger_x", MetricType.GAUGE, ""), [(Series([]), value)])
    assert render([family], seen=None, openmetrics=False) == reference([family], openmetrics=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0"),
        (12, "12.0"),
        (999_999, "999999.0"),
        (1_000_000, "1e+06"),
        (1_200_000, "1.2e+06"),
        (123456789, "1.23456789e+08"),
        (2**53 - 1, "9.007199254740991e+15"),
        (2**53 + 1, "9.007199254740992e+15"),
        (2**64, "1.8446744073709552e+19"),
        (0.5, "0.5"),
        (1234567.5, "1.2345675e+06"),
    ],
)
def test_values_are_written_as_go_writes_them(value: float, text: str) -> None:
    page = render([counter((Series([("a", "b")]), value))], seen=None, openmetrics=False)
    assert page.decode().splitlines()[-1] == f'sockledger_bytes_total{{a="b"}} {text}'


@pytest.mark.parametrize("openmetrics", [False, True])
@given(labels=LABELS, value=st.integers(0, 2**53))
def test_a_parser_reads_back_what_was_rendered(
    labels: list[tuple[str, str]], value: int, openmetrics: bool
) -> None:
    page = render([counter((Series(labels), value))], seen=None, openmetrics=openmetrics).decode()
    parsed = parse_openmetrics(page) if openmetrics else parse_text(page)  # type: ignore[no-untyped-call]
    [family] = parsed
    assert family.type == "counter"
    [sample] = family.samples
    assert (sample.name, sample.labels, sample.value) == ("sockledger_bytes_total", dict(labels), value)


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_parser_reads_back_a_summary_and_a_histogram(openmetrics: bool) -> None:
    births = Births({})
    labels = [("role", "active")]
    summary = Family(RTT, list(zip(births.summary(RTT.name, labels), (3, 0.5), strict=True)))
    values = histogram_values([2, 0, 1], 61.5)
    histogram = Family(
        LIFETIME, list(zip(births.histogram(LIFETIME.name, labels, [0.1, 60]), values, strict=True))
    )
    page = render([summary, histogram], seen=None, openmetrics=openmetrics).decode()
    parsed = parse_openmetrics(page) if openmetrics else parse_text(page)  # type: ignore[no-untyped-call]
    first, second = parsed
    assert (first.name, first.type) == ("sockledger_rtt_seconds", "summary")
    assert [(sample.name, sample.labels, sample.value) for sample in first.samples] == [
        ("sockledger_rtt_seconds_count", {"role": "active"}, 3),
        ("sockledger_rtt_seconds_sum", {"role": "active"}, 0.5),
    ]
    assert (second.name, second.type) == ("sockledger_lifetime_seconds", "histogram")
    assert [(sample.name, sample.labels, sample.value) for sample in second.samples] == [
        ("sockledger_lifetime_seconds_bucket", {"role": "active", "le": "0.1"}, 2),
        ("sockledger_lifetime_seconds_bucket", {"role": "active", "le": "60.0"}, 2),
        ("sockledger_lifetime_seconds_bucket", {"role": "active", "le": "+Inf"}, 3),
        ("sockledger_lifetime_seconds_count", {"role": "active"}, 3),
        ("sockledger_lifetime_seconds_sum", {"role": "active"}, 61.5),
    ]


@pytest.mark.parametrize("openmetrics", [False, True])
@given(families=families(), seen=st.integers(0, 9))
def test_young_series_are_shown_as_zero_but_for_gauges(
    families: list[Family], seen: int, openmetrics: bool
) -> None:
    zeroed = [
        Family(
            f.metric, [(s, 0 if f.metric.type != "gauge" and s.number > seen else v) for s, v in f.samples]
        )
        for f in families
    ]
    assert render(families, seen=seen, openmetrics=openmetrics) == reference(zeroed, openmetrics=openmetrics)


def test_a_series_is_young_until_its_number_has_been_seen() -> None:
    family = counter((Series([("a", "old")], 3), 7), (Series([("a", "young")], 4), 7))
    lines = render([family], seen=3, openmetrics=False).decode().splitlines()
    assert lines[-2:] == ['sockledger_bytes_total{a="old"} 7.0', 'sockledger_bytes_total{a="young"} 0.0']


def test_all_parts_of_a_young_histogram_are_zero() -> None:
    births = Births({})
    family = Family(LIFETIME)
    for role in ("old", "young"):
        series = births.histogram(LIFETIME.name, [("role", role)], [60])
        family.samples += zip(series, histogram_values([1, 2], 99.5), strict=True)
    lines = render([family], seen=1, openmetrics=False).decode().splitlines()
    values = [line.split()[-1] for line in lines[2:]]
    assert values == ["1.0", "3.0", "3.0", "99.5", "0.0", "0.0", "0.0", "0.0"]


def test_more_samples_than_are_joined_at_a_time() -> None:
    family = counter(*((Series([("i", f"{i:04}")], i), i * 1000) for i in range(2500)))
    assert render([family], seen=None, openmetrics=True) == reference([family], openmetrics=True)


def test_lone_surrogates_become_valid_utf8() -> None:
    page = render([counter((Series([("path", "a\udc80b")]), 1))], seen=None, openmetrics=True)
    [family] = parse_openmetrics(page.decode("utf-8", "strict"))  # type: ignore[no-untyped-call]
    assert family.samples[0].labels["path"].startswith("a")


@pytest.mark.parametrize("openmetrics", [False, True])
def test_registry_and_page_become_one_page(openmetrics: bool) -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    ours = render([counter((Series([]), 1))], seen=None, openmetrics=openmetrics)
    page = add_registry(ours, registry, openmetrics=openmetrics).decode()
    parsed = parse_openmetrics(page) if openmetrics else parse_text(page)  # type: ignore[no-untyped-call]
    names = {family.name for family in parsed}
    assert {"process_cpu_seconds", "process_open_fds", "sockledger_bytes"} <= names
    assert page.count("# EOF") == page.endswith("# EOF\n") == openmetrics


def test_an_empty_page() -> None:
    assert render([], seen=None, openmetrics=False) == b""
    assert render([], seen=None, openmetrics=True) == b"# EOF\n"


def test_the_docs_name_the_parts_of_summaries_and_histograms() -> None:
    table = runpy.run_path(str(Path(__file__).parents[2] / "docs/generate_metrics.py"))["_table"]
    names = [line.split(" | ")[0] for line in table((BYTES, RTT, LIFETIME)).splitlines() if "`" in line]
    assert names == [
        "| `sockledger_bytes_total`",
        "| `sockledger_rtt_seconds` (`_count`, `_sum`)",
        "| `sockledger_lifetime_seconds` (`_bucket`, `_count`, `_sum`)",
    ]


TEXT_0_0_4 = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1_0_0 = "text/plain; version=1.0.0; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics", "content_type"),
    [
        (None, False, TEXT_0_0_4),
        ("", False, TEXT_0_0_4),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False, TEXT_0_0_4),
        (PROMETHEUS_2, True, f"{OPENMETRICS}; escaping=underscores"),
        (PROMETHEUS_3, True, f"{OPENMETRICS}; escaping=allow-utf-8"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", False, f"{TEXT_1_0_0}; escaping=allow-utf-8"),
        ("text/plain;version=1.0.0", False, f"{TEXT_1_0_0}; escaping=underscores"),
        ("application/openmetrics-text", True, OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", False, TEXT_0_0_4),
        ("application/openmetrics-text;version=2.0.0", True, f"{OPENMETRICS}; escaping=underscores"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=dots",
            True,
            f"{OPENMETRICS}; escaping=underscores",
        ),
        ("text/plain;version=1.0.0;escaping=values", False, f"{TEXT_1_0_0}; escaping=underscores"),
        ("application/openmetrics-text;version=1.0.0;q=0,text/plain", False, TEXT_0_0_4),
        ("application/openmetrics-text;q=0.000", False, TEXT_0_0_4),
        ("text/plain;q=1, application/openmetrics-text;version=1.0.0;q=0.1", False, TEXT_0_0_4),
        (
            "text/plain;version=1.0.0;q=0.9,application/openmetrics-text;Q=0.1",
            False,
            f"{TEXT_1_0_0}; escaping=underscores",
        ),
        ("text/plain;q=0.5,application/openmetrics-text;q=0.5", True, OPENMETRICS),
        ("text/plain;q=abc,application/openmetrics-text;q=abc", True, OPENMETRICS),
        ("application/openmetrics-text;version=1.x", False, TEXT_0_0_4),
        ("application/openmetrics-text;version=new", False, TEXT_0_0_4),
    ],
)
def test_negotiation(accept: str | None, openmetrics: bool, content_type: str) -> None:
    assert negotiate(accept) == (openmetrics, content_type)


@given(accept=st.text() | st.from_regex(r"(application/openmetrics-text|text/plain);version=.*;escaping=.*"))
def test_no_accept_header_gets_more_than_a_known_content_type(accept: str) -> None:
    openmetrics, content_type = negotiate(accept)
    base, _, escaping = content_type.partition("; escaping=")
    assert base in ({OPENMETRICS} if openmetrics else {TEXT_0_0_4, TEXT_1_0_0})
    assert escaping in {"", "underscores", "allow-utf-8"}
