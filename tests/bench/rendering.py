"""Rendering of 100,000 series against `prometheus_client`, which must yield the same bytes."""

import gc
import random
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric as ClientMetric
from prometheus_client.registry import Collector
from tests.bench.support import Spread, print_table, verdict

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.exposition.text import render
from sockledger.workloads.naming import Workload

ROUNDS = 9
LABEL_SETS = 25_000
TIMES_FASTER = 15  # the target

NAMES = ("receive_bytes", "receive_packets", "transmit_bytes", "transmit_packets")
LABELS = (*Workload._fields, "protocol", "family")


class _Ready(Collector):
    """Hands out families that were made before."""

    def __init__(self, families: list[ClientMetric]) -> None:
        self._families = families

    def collect(self) -> Iterable[ClientMetric]:
        return self._families


def _label_values(number: int) -> tuple[str, ...]:
    workload = Workload(cgroup=f"/system.slice/service-{number // 4:05}.service")
    return *workload, ("tcp", "udp")[number % 2], ("ipv4", "ipv6")[number // 2 % 2]


def _families() -> tuple[list[Family], list[ClientMetric]]:
    """Make the same families for both. Ours come with labels rendered, as in the daemon."""
    numbers = random.Random(0)
    labels = [_label_values(number) for number in range(LABEL_SETS)]
    series = [Series(list(zip(LABELS, values, strict=True))) for values in labels]
    ours: list[Family] = []
    theirs: list[ClientMetric] = []
    for name in NAMES:
        metric = Metric(f"sockledger_{name}", MetricType.COUNTER, f"Measured: {name}.", LABELS)
        values = [numbers.randrange(10 ** numbers.randrange(1, 14)) for _ in labels]
        ours.append(Family(metric, list(zip(series, values, strict=True))))
        client = CounterMetricFamily(metric.name, metric.help, labels=LABELS)
        for label_values, value in zip(labels, values, strict=True):
            client.add_metric(label_values, value)
        theirs.append(client)
    return ours, theirs


def _timed(action: Callable[[], bytes], seconds: list[float]) -> bytes:
    gc.collect()
    begin = time.perf_counter()
    page = action()
    seconds.append(time.perf_counter() - begin)
    return page


def run() -> None:
    """Measure, and print a table."""
    ours, theirs = _families()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Ready(theirs))
    own_seconds: list[float] = []
    client_seconds: list[float] = []
    for _ in range(ROUNDS):
        page = _timed(lambda: render(ours, seen=None, openmetrics=False), own_seconds)
        assert page == _timed(lambda: generate_latest(registry), client_seconds), "the pages differ"
    count = LABEL_SETS * len(NAMES)
    print_table(
        f"Rendering of {count} series, {len(page) / 1e6:.1f} MB, the same bytes: {ROUNDS} rounds",
        ("min / median / max", "ms"),
        [
            ("sockledger", f"{Spread([1e3 * value for value in own_seconds]):.0f}"),
            ("prometheus_client", f"{Spread([1e3 * value for value in client_seconds]):.0f}"),
        ],
    )
    faster = Spread([theirs / ours for theirs, ours in zip(client_seconds, own_seconds, strict=True)])
    met = faster.median >= TIMES_FASTER
    print(f"  {faster:.1f} times as fast; " + verdict(f"target: {TIMES_FASTER} times", met=met))
