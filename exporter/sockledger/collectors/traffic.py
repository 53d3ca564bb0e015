"""Traffic per workload, and its proof: what double entry found missing."""

from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.kernel.sums import Traffic
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Account, Ledger
from sockledger.workloads.naming import Workload

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
METRICS = (*TRAFFIC, UNATTRIBUTED, OVERCOUNTED)


class TrafficCollector:
    """Families from the ledger's accounts.

    Where protocol or family is hidden a series shows several accounts. Births are the accounts', so what was
    shown is known, whichever of both is hidden the next time.
    """

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._accounts: dict[Workload, dict[Account, Series]] = births.by_workload()
        self._sums: dict[Workload, dict[Account, Series]] = births.by_workload()
        self._directions = [
            births.series(UNATTRIBUTED.name, [("direction", name)], table="reconciliation")
            for name in ("receive", "transmit")
        ]

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        rows = [(self._of(account), traffic) for account, traffic in self._ledger.books.accounts.items()]
        if self._ledger.hidden:
            rows = self._summed(rows)
        for index, metric in enumerate(TRAFFIC):
            yield Family(metric, [(series, traffic[index]) for series, traffic in rows])
        found = self._ledger.reconciliation
        for metric, difference in ((UNATTRIBUTED, found.unattributed), (OVERCOUNTED, found.overcounted)):
            values = (difference.receive_bytes, difference.transmit_bytes)
            yield Family(metric, list(zip(self._directions, values, strict=True)))

    def _of(self, account: Account) -> Series:
        of_workload = self._accounts.setdefault(account.workload, {})
        series = of_workload.get(account)
        if series is None:
            series = self._births.series(TRAFFIC[0].name, _labels(account), account.workload)
            of_workload[account] = series
        return series

    def _summed(self, rows: list[tuple[Series, Traffic]]) -> list[tuple[Series, Traffic]]:
        """Return one row for all accounts that are shown alike: as young as the oldest of them."""
        hidden = self._ledger.hidden
        sums: dict[Account, Traffic] = {}
        oldest: dict[Account, int] = {}
        for account, (series, traffic) in zip(self._ledger.books.accounts, rows, strict=True):
            shown = Account(
                account.workload,
                "" if "protocol" in hidden else account.protocol,
                "" if "family" in hidden else account.family,
            )
            sums[shown] = traffic.plus(sums[shown]) if shown in sums else traffic
            oldest[shown] = min(series.number, oldest.get(shown, series.number))
        for shown, number in oldest.items():
            of_workload = self._sums.setdefault(shown.workload, {})
            if shown not in of_workload:
                of_workload[shown] = Series(_labels(shown), number)
        return [(self._sums[shown.workload][shown], traffic) for shown, traffic in sums.items()]


def _labels(account: Account) -> list[tuple[str, str]]:
    return [*account.workload.labels(), ("protocol", account.protocol), ("family", account.family)]
