"""Traffic per workload and tag: what its sockets are for, as their users call it."""

from collections import defaultdict
from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.kernel.sums import TAGGED_TOTALS
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.splits import TAGS
from sockledger.workloads.naming import Workload

_PER_TAG = "workloads x tags that their sockets have (limits.tags); none without tags"

# In the order of struct tagged_totals.
METRICS = tuple(
    Metric(
        f"sockledger_tagged_{name}_bytes",
        MetricType.COUNTER,
        f"Bytes {verb} by sockets that have this tag, from the IP header on; also in {name}_bytes.",
        ("tag",),
        _PER_TAG,
    )
    for name, verb in (("receive", "received"), ("transmit", "sent"))
)


class TagsCollector:
    """Families from the ledger's sums of tags."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[Workload, dict[str, Series]] = births.by_workload()

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        sums: defaultdict[tuple[Workload, str], list[int]] = defaultdict(lambda: [0] * len(METRICS))
        for (workload, name), record in self._ledger.books.sums[TAGGED_TOTALS].items():
            if tag := TAGS.shown_as(workload, name):
                of = sums[workload, tag]
                of[:] = map(int.__add__, of, record)
        rows = [(self._of(*of), values) for of, values in sums.items()]
        for index, metric in enumerate(METRICS):
            yield Family(metric, [(series, values[index]) for series, values in rows])

    def _of(self, workload: Workload, tag: str) -> Series:
        of_workload = self._series.setdefault(workload, {})
        if tag not in of_workload:
            labels = TAGS.labels(workload, tag)
            of_workload[tag] = self._births.series(TAGS.group, labels, workload, TAGGED_TOTALS)
        return of_workload[tag]
