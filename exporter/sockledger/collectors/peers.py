"""Traffic per workload and class of peers: what it exchanges with whom, where networks are configured."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.workloads.naming import Workload

_PER_CLASS = "workloads x classes that they talk to, where networks are configured"
RECEIVE, TRANSMIT = (
    Metric(
        f"sockledger_peer_{name}_bytes",
        MetricType.COUNTER,
        f"{text}, from the IP header on.",
        ("peer",),
        _PER_CLASS,
    )
    for name, text in (
        ("receive", "Bytes received, by the class of networks that the packets' source is in"),
        ("transmit", "Bytes sent, by the class of networks that the packets' destination is in"),
    )
)
METRICS = (RECEIVE, TRANSMIT)


class PeersCollector:
    """Families from the ledger's sums by class."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[Workload, dict[str, Series]] = births.by_workload()

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        rows = [(self._of(*of), traffic) for of, traffic in self._ledger.books.peers.items()]
        yield Family(RECEIVE, [(series, traffic.receive_bytes) for series, traffic in rows])
        yield Family(TRANSMIT, [(series, traffic.transmit_bytes) for series, traffic in rows])

    def _of(self, workload: Workload, peer: str) -> Series:
        of_workload = self._series.setdefault(workload, {})
        if peer not in of_workload:
            labels = [*workload.labels(), ("peer", peer)]
            of_workload[peer] = self._births.series(RECEIVE.name, labels, workload)
        return of_workload[peer]
