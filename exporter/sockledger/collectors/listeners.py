"""Listening TCP sockets by port: how long the queue of connections to accept is, and what it dropped."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.workloads.names import Workload

_PER_PORT = "workloads x ports that they listen on"

QUEUE_LENGTH = Metric(
    "sockledger_tcp_listen_queue_length",
    MetricType.GAUGE,
    "Connections that wait to be accepted, at the last flush (sk_ack_backlog), of all listeners on the port.",
    ("port",),
    _PER_PORT,
)
QUEUE_LIMIT = Metric(
    "sockledger_tcp_listen_queue_limit",
    MetricType.GAUGE,
    "How many may wait: the backlog given to listen(), bounded by net.core.somaxconn (sk_max_ack_backlog).",
    ("port",),
    _PER_PORT,
)
DROPS = Metric(
    "sockledger_tcp_listen_drops",
    MetricType.COUNTER,
    "Segments that listeners dropped: SYNs and handshakes' last ones, for a full queue, and stray ones, as "
    "bare resets (sk_drops).",
    ("port",),
    _PER_PORT,
)
METRICS = (QUEUE_LENGTH, QUEUE_LIMIT, DROPS)


class ListenersCollector:
    """Families from the ledger's sums. A port's queue ends with its last listener, its drops stay."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[Workload, dict[int, Series]] = births.by_workload()
        sums = ledger.datapath.sums
        self._length, self._limit = sums["listen_queues"].at("length", "limit")
        (self._drops,) = sums["listen_totals"].at("drops")

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        sums = self._ledger.books.sums
        queues = {(workload, port): record for (workload, (port,)), record in sums["listen_queues"].items()}
        drops = {
            (workload, port): record[self._drops]
            for (workload, (port,)), record in sums["listen_totals"].items()
        }
        ports = queues.keys() | drops.keys()
        for workload, by_port in self._series.items():
            for port in [port for port in by_port if (workload, port) not in ports]:
                self._births.end(DROPS.name, by_port.pop(port).labels, "listen_totals")
        series = {port: self._of(*port) for port in ports}
        for metric, at in ((QUEUE_LENGTH, self._length), (QUEUE_LIMIT, self._limit)):
            yield Family(metric, [(series[port], record[at]) for port, record in queues.items()])
        yield Family(DROPS, [(each, drops.get(port, 0)) for port, each in series.items()])

    def _of(self, workload: Workload, port: int) -> Series:
        by_port = self._series.setdefault(workload, {})
        if port not in by_port:
            labels = [*workload._asdict().items(), ("port", str(port))]
            by_port[port] = self._births.series(DROPS.name, labels, workload, "listen_totals")
        return by_port[port]
