"""Listening TCP sockets by port: how long the queue of connections to accept is, and what it dropped."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.ports import GROUP, PORTS, port_labels
from sockledger.workloads.naming import Workload

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
    GROUP,
    MetricType.COUNTER,
    "Segments that listeners dropped: SYNs and handshakes' last ones, for a full queue, and stray ones, as "
    "bare resets (sk_drops). They end when nobody has listened on the port for persist.gone.",
    ("port",),
    _PER_PORT,
)
METRICS = (QUEUE_LENGTH, QUEUE_LIMIT, DROPS)


class ListenersCollector:
    """Families from the ledger's sums. A port's queue ends with its last listener, its drops later."""

    def __init__(self, ledger: Ledger, _births: Births) -> None:
        self._ledger = ledger
        self._series: dict[tuple[Workload, int], Series] = {}
        sums = ledger.datapath.sums
        self._length, self._limit = sums["listen_queues"].at("length", "limit")
        (self._drops,) = sums[PORTS].at("drops")

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        sums = self._ledger.books.sums
        queues = {(workload, port): record for (workload, (port,)), record in sums["listen_queues"].items()}
        drops = {
            (workload, port): record[self._drops]
            for (workload, (port,)), record in sums[PORTS].items()
            if record[self._drops]
        }
        self._series = {each: self._series.get(each) or Series(port_labels(*each)) for each in queues}
        for metric, at in ((QUEUE_LENGTH, self._length), (QUEUE_LIMIT, self._limit)):
            yield Family(metric, [(self._series[port], record[at]) for port, record in queues.items()])
        # born with the first drop: before it a port shows the 0 that it has, to everybody
        dropped = [(self._ledger.ports.series(*port), number) for port, number in drops.items()]
        others = [(series, 0) for port, series in self._series.items() if port not in drops]
        yield Family(DROPS, [*dropped, *others])
