"""UDP per workload: datagrams that reached a socket and were dropped there."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.workloads.naming import Workload

RECEIVE_DROPS = Metric(
    "sockledger_udp_receive_drops",
    MetricType.COUNTER,
    "Datagrams that UDP sockets received and dropped, mostly for a full receive buffer (sk_drops, since "
    "Linux 6.18 sk_drop_counters).",
    cardinality="workloads whose UDP sockets dropped any",
)
METRICS = (RECEIVE_DROPS,)


class UdpCollector:
    """The family from the ledger's sums."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[Workload, Series] = births.by_workload()
        (self._drops,) = ledger.datapath.sums["udp_totals"].at("receive_drops")

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        family = Family(RECEIVE_DROPS)
        for (workload, _), record in self._ledger.books.sums["udp_totals"].items():
            series = self._series.get(workload)
            if series is None:
                series = self._series[workload] = self._births.series(
                    RECEIVE_DROPS.name, workload.labels(), workload, "udp_totals"
                )
            family.samples.append((series, record[self._drops]))
        yield family
