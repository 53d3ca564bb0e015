"""TCP per workload, and of the whole node: connections, who limits them, round trips, retransmission."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import itemgetter

from sockledger.exposition.family import Family, Metric, MetricType, Series, histogram_values
from sockledger.kernel.datapath import Labels, ticks_per_second
from sockledger.kernel.sums import Sums
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger, Record
from sockledger.workloads.naming import Workload

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
    "TCP connections opened, at ESTABLISHED, or at the SYN with fast open (sockops). active: by this side; "
    "passive: by the other; unknown: before the daemon, counted when found. MPTCP: each subflow is one.",
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
    "TCP connections open now.",
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
    "closed the socket before there was an answer, as on a time-out of its own, or could not send the SYN.",
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
# By member of struct tcp_totals, which they are called by.
COUNTERS = {
    name: Metric(f"sockledger_tcp_{name}", MetricType.COUNTER, text, cardinality=_PER_WORKLOAD)
    for name, text in (
        (
            "retransmitted_segments",
            "Segments sent again, SYNs too, and SYN-ACKs of what was opened (tcp_sock.total_retrans).",
        ),
        (
            "retransmission_timeouts",
            "Retransmission timer expirations (sockops RTO_CB); not of connections older than the daemon, "
            "nor where another sockops program clears the flag.",
        ),
        (
            "transmit_segments",
            "Segments sent, from the SYN to the state CLOSE, without SYN-ACKs (tcp_sock.segs_out).",
        ),
        ("receive_segments", "Segments received by connections (tcp_sock.segs_in)."),
        ("out_of_order_segments", "Segments received out of order (tcp_sock.rcv_ooopack)."),
        (
            "acked_bytes",
            "Bytes sent and acknowledged; a FIN is one, and an active side's SYN (tcp_sock.bytes_acked).",
        ),
        (
            "received_bytes",
            "Bytes received in order, without what came twice, a FIN as one (tcp_sock.bytes_received).",
        ),
    )
}
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
        "13 x classes of peers; without networks one, without a name",
    )
    for metric in (RTT, CONNECT_DURATION)
)
NODE_RETRANSMITTED = Metric(
    "sockledger_node_tcp_retransmitted_segments",
    MetricType.COUNTER,
    "Segments sent again by all workloads together.",
    ("peer",),
    "classes of peers; without networks one, without a name",
)
METRICS = (
    *(OPENED, CLOSED, CONNECTIONS, SOCKETS, CONNECT_FAILURES),
    *COUNTERS.values(),
    *(BUSY, LIMITED),
    *MEASURES,
    *(NODE_RTT, NODE_CONNECT_DURATION, NODE_RETRANSMITTED),
)


@dataclass(frozen=True, slots=True)
class _Row:
    """One series of every workload, which one or more metrics share."""

    label: tuple[tuple[str, str], ...]  # its own
    values: tuple[tuple[Metric, Callable[[Record], int | float]], ...]
    shown_by: tuple[int, ...] = ()  # positions, of which one is not 0 when it begins; none: it begins at once


@dataclass(frozen=True, slots=True)
class _NodeSeries:
    """The series of the node that one class of peers has."""

    measured: list[tuple[Series, ...]]
    retransmitted: Series


class TcpCollector:
    """Families from the ledger's sums."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        totals = ledger.datapath.sums["tcp_totals"]
        self._rows = list(_rows(totals, ledger.datapath.labels))
        self._series: dict[Workload, list[Series | None]] = births.by_workload()
        self._distributions = [
            totals.at(f"measured[{measure}].count", f"measured[{measure}].sum")
            for measure in range(len(MEASURES))
        ]
        self._parts: dict[Workload, dict[int, tuple[Series, ...]]] = births.by_workload()
        self._node: dict[str, _NodeSeries] = {}  # by class of peers

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        books = self._ledger.books
        totals = {workload: record for (workload, _), record in books.sums["tcp_totals"].items()}
        families = {metric.name: Family(metric) for row in self._rows for metric, _ in row.values}
        rows = [
            (row, [(families[metric.name].samples, value) for metric, value in row.values])
            for row in self._rows
        ]
        for workload, record in totals.items():
            series = self._series.get(workload)
            if series is None:
                series = self._series[workload] = [None] * len(rows)
            for number, (row, values) in enumerate(rows):
                one = series[number]
                if one is None:
                    if row.shown_by and not any(record[at] for at in row.shown_by):
                        continue
                    one = series[number] = self._new_series(workload, row)
                for samples, value in values:
                    samples.append((one, value(record)))
        yield from families.values()
        yield from self._measures(totals)
        yield from self._of_the_node(books.node)

    def _of_the_node(self, node: Mapping[str, Mapping[str, int]]) -> Iterable[Family]:
        for number, metric in enumerate((NODE_RTT, NODE_CONNECT_DURATION)):
            family = Family(metric)
            for peer, members in node.items():
                figures = _histogram(members, f"histograms.measured[{number}]")
                family.samples += zip(self._node_series(peer).measured[number], figures, strict=True)
            yield family
        samples: list[tuple[Series, int | float]] = [
            (self._node_series(peer).retransmitted, members["retransmitted_segments"])
            for peer, members in node.items()
        ]
        yield Family(NODE_RETRANSMITTED, samples)

    def _node_series(self, peer: str) -> "_NodeSeries":
        if peer not in self._node:
            labels = [("peer", peer)]
            self._node[peer] = _NodeSeries(
                [
                    self._births.histogram(metric.name, labels, BOUNDS, table="node_totals")
                    for metric in (NODE_RTT, NODE_CONNECT_DURATION)
                ],
                self._births.series(NODE_RETRANSMITTED.name, labels, table="node_totals"),
            )
        return self._node[peer]

    def _new_series(self, workload: Workload, row: _Row) -> Series:
        first, _ = row.values[0]
        labels = [*workload.labels(), *row.label]
        group = None if first.type is MetricType.GAUGE else first.name
        return self._births.series(group, labels, workload, "tcp_totals")

    def _measures(self, totals: Mapping[Workload, Record]) -> Iterable[Family]:
        histograms = self._ledger.datapath.sums.get("tcp_histograms")
        for number, metric in enumerate(MEASURES):
            if histograms is None:
                count, total = self._distributions[number]
                family = Family(metric)
                for workload, record in totals.items():
                    parts = self._parts_of(number, workload, ())
                    family.samples += zip(parts, (record[count], record[total] / 1e6), strict=True)
            else:
                family = Family(replace(metric, type=MetricType.HISTOGRAM))
                for (workload, _), record in self._ledger.books.sums["tcp_histograms"].items():
                    parts = self._parts_of(number, workload, BOUNDS)
                    members = dict(zip(histograms.fields, record, strict=True))
                    family.samples += zip(parts, _histogram(members, f"measured[{number}]"), strict=True)
            yield family

    def _parts_of(self, number: int, workload: Workload, bounds: Sequence[float]) -> tuple[Series, ...]:
        of_workload = self._parts.setdefault(workload, {})
        parts = of_workload.get(number)
        if parts is None:
            metric, labels = MEASURES[number], workload.labels()
            if bounds:
                group = f"{metric.name}_histogram"  # its sums begin apart from the summary's
                parts = self._births.histogram(group, labels, bounds, workload, "tcp_histograms")
            else:
                parts = self._births.summary(metric.name, labels, workload, "tcp_totals")
            of_workload[number] = parts
        return parts


def _rows(totals: Sums, labels: Labels) -> Iterable[_Row]:
    """Yield each series that a workload has, those of one metric together."""
    reasons = {reason: totals.at(f"connect_failures[{number}]") for number, reason in labels.failure.items()}
    roles = {
        role: totals.at(f"opened[{number}]", f"closed[{number}]", f"connections[{number}]")
        for number, role in labels.role.items()
    }
    for role, (opened, closed, open_now) in roles.items():
        label = (("role", role),)
        # where all connects fail there is a 0 to divide by
        failed = chain(*reasons.values()) if role == "active" else ()
        shown_by = (opened, closed, open_now, *failed)
        gauge = CONNECTIONS, partial(_at_least_0, open_now)
        yield _Row(label, ((OPENED, itemgetter(opened)), (CLOSED, itemgetter(closed)), gauge), shown_by)
    for number, state in STATES.items():
        (at,) = totals.at(f"sockets[{number}]")
        yield _Row((("state", state),), ((SOCKETS, partial(_at_least_0, at)),), (at,))
    for reason, (at,) in reasons.items():
        yield _Row((("reason", reason),), ((CONNECT_FAILURES, itemgetter(at)),), (at,))
    tick = 1 / ticks_per_second()
    # in the order of enum chrono
    sending, receive_window, send_buffer = totals.at("busy[0]", "busy[1]", "busy[2]")
    busy = partial(_times, tick, (sending, receive_window, send_buffer))
    counters = ((metric, itemgetter(*totals.at(name))) for name, metric in COUNTERS.items())
    yield _Row((), (*counters, (BUSY, busy)))
    for limit, at in (("receive_window", receive_window), ("send_buffer", send_buffer)):
        yield _Row((("by", limit),), ((LIMITED, partial(_times, tick, (at,))),))


def _at_least_0(at: int, record: Record) -> int:
    """Return a gauge, which may be below 0 where a map was busy (kernels up to 6.6): see totals_busy."""
    return record[at] if record[at] < 1 << 63 else 0


def _times(scale: float, positions: tuple[int, ...], record: Record) -> float:
    return scale * sum(record[at] for at in positions)


def _histogram(members: Mapping[str, int], name: str) -> list[int | float]:
    """Return the values of a histogram's series from the struct histogram called *name*."""
    buckets = [members[f"{name}.buckets[{bucket}]"] for bucket in range(len(BOUNDS) + 1)]
    return histogram_values(buckets, members[f"{name}.sum"] / 1e6)
