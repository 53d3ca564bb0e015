"""TCP per workload, and of the whole node: connections, who limits them, round trips, retransmission."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sockledger.exposition.family import Family, Metric, MetricType, Series, histogram_values
from sockledger.kernel.datapath import ticks_per_second
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger, Record
from sockledger.workloads.names import Workload

# By number, in include/net/tcp_states.h. A time-wait socket has no cgroup, and a closed one is none of TCP's.
STATES = {
    1: "established",
    2: "syn_sent",
    3: "syn_recv",
    4: "fin_wait1",
    5: "fin_wait2",
    8: "close_wait",
    9: "last_ack",
    10: "listen",
    11: "closing",
}

# Upper bounds of the histograms' buckets in seconds: FIRST_BUCKET in bpf/tcp.h, each 4 times the last.
BOUNDS = tuple(100 * 4**power / 1e6 for power in range(10))

_PER_WORKLOAD = "workloads"

OPENED = Metric(
    "sockledger_tcp_connections_opened",
    MetricType.COUNTER,
    "TCP connections opened, at ESTABLISHED (sockops). active: by this side; passive: by the other; unknown: "
    "before the daemon, counted when it found them. MPTCP subflows are one each.",
    ("role",),
    "workloads x roles in use, up to 3",
)
CLOSED = Metric(
    "sockledger_tcp_connections_closed",
    MetricType.COUNTER,
    "TCP connections that are over, at the state CLOSE or TIME_WAIT's begin (sockops, inet_sock_set_state).",
    ("role",),
    "workloads x roles in use, up to 3",
)
CONNECTIONS = Metric(
    "sockledger_tcp_connections",
    MetricType.GAUGE,
    "TCP connections open now: opened less closed.",
    ("role",),
    "workloads x roles in use, up to 3",
)
SOCKETS = Metric(
    "sockledger_tcp_sockets",
    MetricType.GAUGE,
    "TCP sockets by state, as the last flush found them (sk_state).",
    ("state",),
    "workloads x states in use, up to 9",
)
CONNECT_FAILURES = Metric(
    "sockledger_tcp_connect_failures",
    MetricType.COUNTER,
    "Connects that failed after their first SYN, by sk_err at the state CLOSE. aborted: the connecting side "
    "closed the socket before there was an answer, as on a time-out of its own.",
    ("reason",),
    "workloads x reasons seen, up to 7",
)
BUSY = Metric(
    "sockledger_tcp_busy_seconds",
    MetricType.COUNTER,
    "Time in which connections had data to send (tcp_sock.chrono_stat, all of it).",
    cardinality=_PER_WORKLOAD,
)
LIMITED = Metric(
    "sockledger_tcp_limited_seconds",
    MetricType.COUNTER,
    "Part of the busy time in which the receiver's window or this side's send buffer was what held it up "
    "(tcp_sock.chrono_stat).",
    ("by",),
    "workloads x 2",
)
# Name, help and the member of struct tcp_totals.
_COUNTERS = (
    (
        "retransmitted_segments",
        "Segments sent again, SYNs too (tcp_sock.total_retrans).",
        "retransmitted_segments",
    ),
    (
        "retransmission_timeouts",
        "Retransmission timer expirations (sockops RTO_CB); not of connections older than the daemon, nor "
        "where another sockops program clears the flag.",
        "retransmission_timeouts",
    ),
    (
        "transmit_segments",
        "Segments sent, from the SYN to the state CLOSE (tcp_sock.segs_out).",
        "transmit_segments",
    ),
    ("receive_segments", "Segments received by connections (tcp_sock.segs_in).", "receive_segments"),
    (
        "out_of_order_segments",
        "Segments received out of order (tcp_sock.rcv_ooopack).",
        "out_of_order_segments",
    ),
    (
        "acked_bytes",
        "Bytes sent and acknowledged, SYN and FIN as one each (tcp_sock.bytes_acked).",
        "acked_bytes",
    ),
    (
        "received_bytes",
        "Bytes received in order, without what came twice, a FIN as one (tcp_sock.bytes_received).",
        "received_bytes",
    ),
)
COUNTERS = tuple(
    Metric(f"sockledger_tcp_{name}", MetricType.COUNTER, text, cardinality=_PER_WORKLOAD)
    for name, text, _ in _COUNTERS
)
_OR_HISTOGRAM = "workloads x 2; as histograms (--collector.tcp.histograms) x 13"
RTT = Metric(
    "sockledger_tcp_rtt_seconds",
    MetricType.SUMMARY,
    "Smoothed round trip times (tcp_sock.srtt_us): one observation of each connection per 10 s in which it "
    "moved data, at a flush, and one at its end.",
    cardinality=_OR_HISTOGRAM,
)
CONNECT_DURATION = Metric(
    "sockledger_tcp_connect_duration_seconds",
    MetricType.SUMMARY,
    "From the first SYN to ESTABLISHED, of connections opened by this side (sockops).",
    cardinality=_OR_HISTOGRAM,
)
LIFETIME = Metric(
    "sockledger_tcp_connection_lifetime_seconds",
    MetricType.SUMMARY,
    "From ESTABLISHED to the end, of connections that were opened while the daemon ran, and have ended.",
    cardinality=_OR_HISTOGRAM,
)
# In the order of enum measure.
MEASURES = (RTT, CONNECT_DURATION, LIFETIME)
NODE_RTT, NODE_CONNECT_DURATION = (
    Metric(
        metric.name.replace("sockledger_", "sockledger_node_"),
        MetricType.HISTOGRAM,
        f"The same of all workloads together. {metric.help}",
        ("peer",),
        "13",
    )
    for metric in (RTT, CONNECT_DURATION)
)
NODE_RETRANSMITTED = Metric(
    "sockledger_node_tcp_retransmitted_segments",
    MetricType.COUNTER,
    "Segments sent again by all workloads together.",
    ("peer",),
    "1",
)
METRICS = (
    *(OPENED, CLOSED, CONNECTIONS, SOCKETS, CONNECT_FAILURES),
    *COUNTERS,
    *(BUSY, LIMITED),
    *MEASURES,
    *(NODE_RTT, NODE_CONNECT_DURATION, NODE_RETRANSMITTED),
)


@dataclass(frozen=True, slots=True)
class _Row:
    """One series of every workload: its own label, and what it is made of."""

    label: tuple[tuple[str, str], ...]
    plus: tuple[int, ...]  # positions in the record
    minus: tuple[int, ...] = ()
    scale: float | None = None
    shown_by: tuple[
        int, ...
    ] = ()  # positions, of which one is not 0 when the series begins; none: it does at once

    def value(self, record: Record) -> int | float:
        value = sum(record[at] for at in self.plus) - sum(record[at] for at in self.minus)
        return value if self.scale is None else value * self.scale


class TcpCollector:
    """Families from the ledger's sums."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        fields = ledger.datapath.sums["tcp_totals"].fields
        self._rows = list(_rows(fields, ledger))
        self._series: dict[tuple[int, Workload], Series] = {}
        self._distributions = [
            (fields.index(f"measured[{measure}].count"), fields.index(f"measured[{measure}].sum"))
            for measure in range(len(MEASURES))
        ]
        self._parts: dict[tuple[int, Workload], tuple[Series, ...]] = {}
        node = [("peer", "")]  # its class; empty until there are any
        self._node = [births.histogram(node, BOUNDS) for _ in (NODE_RTT, NODE_CONNECT_DURATION)]
        self._node_retransmitted = births.series(node)
        self._retransmitted = fields.index("retransmitted_segments")

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        books = self._ledger.books
        totals = {workload: record for (workload, _), record in books.sums["tcp_totals"].items()}
        families: dict[str, Family] = {}
        for number, (metric, row) in enumerate(self._rows):
            family = families.setdefault(metric.name, Family(metric))
            for workload, record in totals.items():
                value = row.value(record)
                series = self._series.get((number, workload))
                if series is None:
                    if row.shown_by and not any(record[at] for at in row.shown_by):
                        continue
                    labels = [*workload._asdict().items(), *row.label]
                    series = self._series[number, workload] = self._births.series(labels)
                family.samples.append((series, value))
        yield from families.values()
        yield from self._measures(totals)
        for number, metric in enumerate((NODE_RTT, NODE_CONNECT_DURATION)):
            yield Family(
                metric, list(zip(self._node[number], _histogram(books.node_histograms, number), strict=True))
            )
        retransmitted = sum(record[self._retransmitted] for record in totals.values())
        yield Family(NODE_RETRANSMITTED, [(self._node_retransmitted, retransmitted)])

    def _measures(self, totals: Mapping[Workload, Record]) -> Iterable[Family]:
        histograms = self._ledger.books.sums.get("tcp_histograms")
        for number, metric in enumerate(MEASURES):
            if histograms is None:
                count, total = self._distributions[number]
                family = Family(metric)
                for workload, record in totals.items():
                    parts = self._parts_of(number, workload, ())
                    family.samples += zip(parts, (record[count], record[total] / 1e6), strict=True)
            else:
                family = Family(replace(metric, type=MetricType.HISTOGRAM))
                for (workload, _), record in histograms.items():
                    parts = self._parts_of(number, workload, BOUNDS)
                    family.samples += zip(parts, _histogram(record, number), strict=True)
            yield family

    def _parts_of(self, number: int, workload: Workload, bounds: Sequence[float]) -> tuple[Series, ...]:
        parts = self._parts.get((number, workload))
        if parts is None:
            labels = list(workload._asdict().items())
            parts = self._births.histogram(labels, bounds) if bounds else self._births.summary(labels)
            self._parts[number, workload] = parts
        return parts


def _rows(fields: Sequence[str], ledger: Ledger) -> Iterable[tuple[Metric, _Row]]:
    """Yield the metrics with each series that they have for a workload."""
    labels = ledger.datapath.labels
    failures = {
        reason: fields.index(f"connect_failures[{number}]") for number, reason in labels.failure.items()
    }
    for number, role in labels.role.items():
        opened, closed = (fields.index(f"{name}[{number}]") for name in ("opened", "closed"))
        label = (("role", role),)
        # where all connects fail there is a 0 to divide by
        shown_by = (opened, *failures.values()) if role == "active" else (opened,)
        yield OPENED, _Row(label, (opened,), shown_by=shown_by)
        yield CLOSED, _Row(label, (closed,), shown_by=shown_by)
        yield CONNECTIONS, _Row(label, (opened,), (closed,), shown_by=shown_by)
    for number, state in STATES.items():
        at = fields.index(f"sockets[{number}]")
        yield SOCKETS, _Row((("state", state),), (at,), shown_by=(at,))
    for reason, at in failures.items():
        yield CONNECT_FAILURES, _Row((("reason", reason),), (at,), shown_by=(at,))
    for metric, (_, _, field) in zip(COUNTERS, _COUNTERS, strict=True):
        yield metric, _Row((), (fields.index(field),))
    busy = [fields.index(f"busy[{number}]") for number in range(3)]
    tick = 1 / ticks_per_second()
    yield BUSY, _Row((), tuple(busy), scale=tick)
    # in the order of enum chrono
    for at, name in zip(busy[1:], ("receive_window", "send_buffer"), strict=True):
        yield LIMITED, _Row((("by", name),), (at,), scale=tick)


def _histogram(record: Record, measure: int) -> list[int | float]:
    """Return the values of a histogram's series from a record of struct tcp_histograms."""
    size = 2 + len(BOUNDS)  # the sum, and a bucket more than bounds
    total, *buckets = record[measure * size : (measure + 1) * size]
    return histogram_values(buckets, total / 1e6)
