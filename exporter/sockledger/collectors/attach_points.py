"""Control totals: what went through each attach point, exact and hierarchical, to check the rest against."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import AttachPoint, Ledger

# One for each member of struct totals, in its order.
METRICS = tuple(
    Metric(
        f"sockledger_attach_point_{name}",
        MetricType.COUNTER,
        f"{text} of a cgroup and all below it, counted at the attach point alone, since its programs were "
        "attached. / is the root.",
        ("attach_point",),
        "1 + cgroups that attach.meters matches",
    )
    for name, text in (
        ("receive_bytes", "Bytes received by sockets"),
        ("receive_packets", "Packets received by sockets"),
        ("transmit_bytes", "Bytes sent by sockets"),
        ("transmit_packets", "Packets sent by sockets"),
    )
)


class AttachPointsCollector:
    """Families from the ledger's attach points. Those that are gone end; under their path others are born."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[AttachPoint, Series] = {}

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        points = self._ledger.books.attach_points
        for point in self._series.keys() - points.keys():
            self._births.end(METRICS[0].name, self._series.pop(point).labels)
        for point in points.keys() - self._series.keys():
            labels = [("attach_point", point.path)]
            self._series[point] = self._births.series(METRICS[0].name, labels, point.cgroup_ids or None)
        for index, metric in enumerate(METRICS):
            yield Family(metric, [(self._series[point], traffic[index]) for point, traffic in points.items()])
