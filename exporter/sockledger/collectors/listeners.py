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
    "SYNs and handshakes' last segments that listeners dropped, mostly for a full queue (sk_drops).",
    ("port",),
    _PER_PORT,
)
METRICS = (QUEUE_LENGTH, QUEUE_LIMIT, DROPS)


class ListenersCollector:
    """Families from the ledger's sums. A port ends with its last listener, but for drops."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[tuple[Workload, int], Series] = {}
        fields = ledger.datapath.sums["listen_totals"].fields
        self._listeners = fields.index("listeners")
        self._gauges = [
            (QUEUE_LENGTH, fields.index("queue_length")),
            (QUEUE_LIMIT, fields.index("queue_limit")),
        ]
        self._drops = fields.index("drops")

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        rows = [
            (self._of(workload, port), record)
            for (workload, (port,)), record in self._ledger.books.sums["listen_totals"].items()
            if record[self._listeners] or record[self._drops]
        ]
        for metric, at in self._gauges:
            yield Family(metric, [(series, record[at]) for series, record in rows if record[self._listeners]])
        yield Family(DROPS, [(series, record[self._drops]) for series, record in rows])

    def _of(self, workload: Workload, port: int) -> Series:
        series = self._series.get((workload, port))
        if series is None:
            labels = [*workload._asdict().items(), ("port", str(port))]
            series = self._series[workload, port] = self._births.series(labels)
        return series
