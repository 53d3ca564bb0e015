"""Control totals: what went through each attach point, exact and hierarchical, to check the rest against."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger

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
    """Families from the ledger's attach points. Those that are gone end."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[str, Series] = {}

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        points = self._ledger.books.attach_points
        for path in self._series.keys() - points.keys():
            self._births.end(METRICS[0].name, self._series.pop(path).labels)
        for path in points.keys() - self._series.keys():
            self._series[path] = self._births.series(METRICS[0].name, [("attach_point", path)])
        for index, metric in enumerate(METRICS):
            yield Family(metric, [(self._series[path], traffic[index]) for path, traffic in points.items()])
