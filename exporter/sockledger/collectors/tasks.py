"""What processes send and receive, by their names, over sockets of any family."""

from collections import defaultdict
from collections.abc import Iterable

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.kernel.sums import TASK_TOTALS
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.splits import COMMS
from sockledger.workloads.naming import Workload

_SPLIT = ("comm", "family")
_PER_COMM = "cgroups x names of processes in each (limits.comms) x families in use; off by default"

# In the order of struct task_totals.
METRICS = tuple(
    Metric(f"sockledger_task_{name}", MetricType.COUNTER, text, _SPLIT, _PER_COMM)
    for name, text in (
        (
            "received_bytes",
            "Bytes that calls on sockets received, MSG_PEEK apart (tracepoint sock_recv_length).",
        ),
        (
            "receive_calls",
            "Calls that received on sockets and did not fail, MSG_PEEK apart (sock_recv_length).",
        ),
        ("sent_bytes", "Bytes that calls on sockets sent (tracepoint sock_send_length)."),
        ("send_calls", "Calls that sent on sockets and did not fail (sock_send_length)."),
    )
)


class TasksCollector:
    """Families from the ledger's sums of tasks."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        self._series: dict[Workload, dict[tuple[str, int], Series]] = births.by_workload()
        self._families = ledger.datapath.labels.socket_family

    def collect(self) -> Iterable[Family]:
        """Return all families of `METRICS`."""
        sums: defaultdict[tuple[Workload, str, int], list[int]] = defaultdict(lambda: [0] * len(METRICS))
        for (workload, (*comm, family, _)), record in self._ledger.books.sums[TASK_TOTALS].items():
            name = COMMS.shown_as(workload, tuple(comm))
            if name and any(record[: len(METRICS)]):
                of = sums[workload, name, family]
                of[:] = map(int.__add__, of, record[: len(METRICS)])
        rows = [(self._of(*of), values) for of, values in sums.items()]
        for index, metric in enumerate(METRICS):
            yield Family(metric, [(series, values[index]) for series, values in rows])

    def _of(self, workload: Workload, comm: str, family: int) -> Series:
        of_workload = self._series.setdefault(workload, {})
        if (comm, family) not in of_workload:
            labels = COMMS.labels(workload, comm, self._families[family])
            of_workload[comm, family] = self._births.series(COMMS.group, labels, workload, TASK_TOTALS)
        return of_workload[comm, family]
