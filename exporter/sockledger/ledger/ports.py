"""Ports that listeners of a workload have dropped at: how each one's counter is born, and how it ends.

A counter of a port that nobody listens on any more ends when all scrapers have seen it, so that there are as
many as ports in use, whatever comes and goes. Its sums are moved to where they only count in the sum of
everything, and one like it is born at 0 again. That it ends is written down first, so that a daemon that
begins between any two steps takes them again: what has come meanwhile only counts in the sum of everything.

A row is deleted when no program can add to it: only the end of a listener that a flush has found does so. No
flush has found one for so long, and the last has waited for the ends that were under way.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from sockledger.exposition.family import Series
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.sums import QUEUES
from sockledger.ledger.births import Births
from sockledger.workloads.naming import Workload

GROUP = "sockledger_tcp_listen_drops"
PORTS = "listen_totals"

# Of listeners that came and went between two flushes: it does not end.
ANY = 0

# By cgroup or label set, and port.
Key = tuple[int, ...]


def port_labels(workload: Workload, port: int) -> list[tuple[str, str]]:
    """Return the labels of a port's series."""
    return [*workload.labels(), ("port", str(port))]


class Ports:
    """The counters that are born, and since when nobody has listened for them."""

    def __init__(self, datapath: DataPath, gone: float, births: Births, clock: Callable[[], int]) -> None:
        """*gone*: for so many seconds at least, by *clock*, a counter is shown on."""
        self._datapath = datapath
        self._gone = int(gone * 1e9)
        self._births = births
        self._clock = clock
        self._series: dict[Workload, dict[int, Series]] = births.by_workload()
        self._silent: dict[tuple[Workload, int], int] = {}
        self._busy = -1

    def series(self, workload: Workload, port: int) -> Series:
        """Return the series of a port that has drops."""
        of_workload = self._series.setdefault(workload, {})
        if port not in of_workload:
            labels = port_labels(workload, port)
            of_workload[port] = self._births.series(GROUP, labels, workload, PORTS)
        return of_workload[port]

    def advance(
        self,
        began: int,
        sums: Mapping[str, dict[Key, tuple[int, ...]]],
        busy: int,
        workloads: Mapping[int, Workload],
        removed: Collection[int],
    ) -> None:
        """End what is due, given what the flush that *began* then has found.

        What is deleted is taken out of *sums*. Those of cgroups that are *removed* go another way first.
        *busy* is how often there was no memory, or none at once: then a listener may be missing.
        """
        rows, queues = sums[PORTS], sums[QUEUES]
        heard = {(workloads[number], port) for number, port in queues if number in workloads}
        found: defaultdict[tuple[Workload, int], list[Key]] = defaultdict(list)
        for number, port in rows:
            if number in workloads and port != ANY:
                found[workloads[number], port].append((number, port))
        self._silent = {each: self._silent.get(each, began) for each in found.keys() - heard}
        all_heard = busy == self._busy and len(queues) < self._datapath.maps[QUEUES].max_entries
        self._busy = busy
        for each, keys in found.items():
            labels = port_labels(*each)
            ending = self._births.is_ending(GROUP, labels, PORTS)
            if not ending and any(number in removed for number, _ in keys):
                continue
            due = all_heard and self._is_due(each) and self._births.begin_end(GROUP, labels, PORTS)
            if not (due or ending):
                continue
            self._retire(keys)
            self._end_birth(*each)
            for key in keys:
                if due:
                    self._datapath.kept[PORTS].delete(key)
                    del rows[key]
                else:
                    rows[key] = (0,) * len(rows[key])

    def _is_due(self, each: tuple[Workload, int]) -> bool:
        since = self._silent.get(each)
        return (
            since is not None
            and self._clock() - since >= self._gone
            and self._births.scrapers.have_seen(since)
        )

    def _retire(self, keys: list[Key]) -> None:
        sums = self._datapath.kept[PORTS]
        last, *others = keys
        for key in others:
            sums.move(key, last)
        sums.move(last, sums.retired(last))

    def _end_birth(self, workload: Workload, port: int) -> None:
        self._births.end(GROUP, port_labels(workload, port), PORTS)
        self._series.get(workload, {}).pop(port, None)
