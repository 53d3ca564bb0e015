"""AF_UNIX per workload: what its processes exchange on the same machine, which no packet hook sees."""

from collections import defaultdict
from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.kernel.sums import TASK_TOTALS
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.workloads.naming import Workload

_PER_WORKLOAD = "workloads that use AF_UNIX"
SENT, RECEIVED = (
    Metric(f"sockledger_unix_{name}_bytes", MetricType.COUNTER, text, cardinality=_PER_WORKLOAD)
    for name, text in (
        ("sent", "Bytes that calls on AF_UNIX sockets sent (tracepoint sock_send_length)."),
        ("received", "Bytes that calls on AF_UNIX sockets received, MSG_PEEK apart (sock_recv_length)."),
    )
)
METRICS = (SENT, RECEIVED)


class UnixCollector:
    """Families from the ledger's sums of tasks."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[Workload, Series] = births.by_workload()
        self._members = ledger.datapath.sums[TASK_TOTALS].at("sent_bytes", "received_bytes")
        families = ledger.datapath.labels.socket_family
        self._unix = next(number for number, name in families.items() if name == "unix")

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        sums: defaultdict[Workload, list[int]] = defaultdict(lambda: [0] * len(self._members))
        for (workload, (*_, family, _unused)), record in self._ledger.books.sums[TASK_TOTALS].items():
            if family == self._unix:
                for index, member in enumerate(self._members):
                    sums[workload][index] += record[member]
        rows = [(self._of(workload), values) for workload, values in sums.items()]
        for index, metric in enumerate(METRICS):
            yield Family(metric, [(series, values[index]) for series, values in rows])

    def _of(self, workload: Workload) -> Series:
        if workload not in self._series:
            self._series[workload] = self._births.series(SENT.name, workload.labels(), workload, TASK_TOTALS)
        return self._series[workload]
