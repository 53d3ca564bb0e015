"""Traffic per workload, and its proof: what double entry found missing, and which updates failed."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Account, Ledger

_SPLIT = ("protocol", "family")
_PER_WORKLOAD = "workloads x protocols and families in use, typically 2 to 4"

# One for each member of struct totals, in its order.
TRAFFIC = tuple(
    Metric(f"sockledger_{name}", MetricType.COUNTER, text, _SPLIT, _PER_WORKLOAD)
    for name, text in (
        ("receive_bytes", "Bytes received, from the IP header on (skb->len at cgroup_skb ingress)."),
        ("receive_packets", "Packets received, as wire segments (gso_segs at cgroup_skb ingress)."),
        ("transmit_bytes", "Bytes sent, from the IP header on (skb->len at cgroup_skb egress)."),
        ("transmit_packets", "Packets sent, as wire segments (gso_segs at cgroup_skb egress)."),
    )
)
UNATTRIBUTED = Metric(
    "sockledger_unattributed_bytes",
    MetricType.COUNTER,
    "Bytes that passed the root attach point and reached no total. Stays 0, also under load.",
    ("direction",),
    "2",
)
OVERCOUNTED = Metric(
    "sockledger_overcounted_bytes",
    MetricType.COUNTER,
    "Bytes that reached the totals more often than they passed the root attach point. Stays 0.",
    ("direction",),
    "2",
)
LOST_UPDATES = Metric(
    "sockledger_lost_updates",
    MetricType.COUNTER,
    "Updates in the kernel that had to go another way, or could not be made. sockets_full: no seat for the "
    "socket, counted under its cgroup, only slower (limits.sockets is too small). "
    "totals_full: counted under cgroup other (limits.cgroups is too small). "
    "totals_busy: the same, as an interrupt found the map busy (kernels up to 6.6). "
    "udp_sockets_full: no room for a UDP socket that drops datagrams, its drops are missing. "
    "connections_full: no room for a TCP socket (limits.connections is too small): a connection is counted "
    "at its end, role unknown, without its figures; a failed connect or a listener is missing. "
    "connections_busy: the same, for want of memory or as a flush was at the socket's last connection. "
    "end_unseen: a flush found a connection gone; what it counted since the last flush is missing.",
    ("reason",),
    "reasons",
)
METRICS = (*TRAFFIC, UNATTRIBUTED, OVERCOUNTED, LOST_UPDATES)


class TrafficCollector:
    """Families from the ledger's accounts."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[Account, Series] = {}
        self._directions = [births.series([("direction", name)]) for name in ("receive", "transmit")]
        self._reasons: dict[str, Series] = {}

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        rows = [(self._of(account), traffic) for account, traffic in self._ledger.books.accounts.items()]
        for index, metric in enumerate(TRAFFIC):
            yield Family(metric, [(series, traffic[index]) for series, traffic in rows])
        found = self._ledger.reconciliation
        for metric, difference in ((UNATTRIBUTED, found.unattributed), (OVERCOUNTED, found.overcounted)):
            values = (difference.receive_bytes, difference.transmit_bytes)
            yield Family(metric, list(zip(self._directions, values, strict=True)))
        lost = Family(LOST_UPDATES)
        for reason, updates in self._ledger.books.lost_updates.items():
            if reason not in self._reasons:
                self._reasons[reason] = self._births.series([("reason", reason)])
            lost.samples.append((self._reasons[reason], updates))
        yield lost

    def _of(self, account: Account) -> Series:
        series = self._series.get(account)
        if series is None:
            labels = [
                *account.workload._asdict().items(),
                ("protocol", account.protocol),
                ("family", account.family),
            ]
            series = self._series[account] = self._births.series(labels)
        return series
