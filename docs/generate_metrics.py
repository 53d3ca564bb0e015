"""Writes docs/metrics.md from the tables that the code exports by: `make docs`."""

import sys
from pathlib import Path

from sockledger.collectors import exporter
from sockledger.collectors.registry import COLLECTORS, DURATION, SUCCESS
from sockledger.exposition.family import Metric, MetricType

PAGE = Path(__file__).with_name("metrics.md")

HEAD = """# Metrics

Made by `make docs` from the tables in `exporter/sockledger/collectors/`: do not edit.

What is counted per workload bears the workload's labels `namespace`, `pod`, `container`, `unit` and `cgroup`,
empty where they do not apply, beside their own. [workloads.md](workloads.md) says how they come about.
`cgroup` is the path below the cgroup v2 root, where nothing else names a workload; `other` takes what found
the totals full (`limits.cgroups`), `unknown` is for cgroups that were gone before they could be named, as
there was no room for their names, and for what comes from sockets of cgroups that are long gone and have made
room for others. A cgroup that is gone is shown for `persist.gone` more. Counters, summaries and histograms
are born at 0: a Prometheus server sees a new series at 0 until it has got a page with it, then its value, so
that `increase()` misses nothing.
"""

# Behind the name of a summary or a histogram, which has samples of several names.
SUFFIXES = {
    MetricType.SUMMARY: " (`_count`, `_sum`)",
    MetricType.HISTOGRAM: " (`_bucket`, `_count`, `_sum`)",
}


def page() -> str:
    """Return the whole page."""
    sections = [HEAD]
    for name, spec in COLLECTORS.items():
        sections.append(f"\n## Collector `{name}`: {spec.help}\n\n{_table(spec.metrics)}")
    sections.append(f"\n## The exporter itself\n\n{_table((*exporter.METRICS, DURATION, SUCCESS))}")
    sections.append(
        "`process_*` come from prometheus-client; `--web.disable-exporter-metrics` leaves them out.\n"
    )
    return "".join(sections)


def _table(metrics: tuple[Metric, ...]) -> str:
    rows = ["| metric | type | own labels | series | what |\n| --- | --- | --- | --- | --- |\n"]
    for metric in metrics:
        name = f"`{metric.sample_name}`{SUFFIXES.get(metric.type, '')}"
        labels = ", ".join(metric.labels)
        rows.append(f"| {name} | {metric.type} | {labels} | {metric.cardinality} | {metric.help} |\n")
    return "".join([*rows, "\n"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text() != page() and f"{PAGE} is not what the code exports: run make docs")
    PAGE.write_text(page())
