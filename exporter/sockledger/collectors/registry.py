"""The collectors there are, and the runner that times each and keeps a fault in one from the others."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sockledger.collectors import (
    attach_points,
    listeners,
    peers,
    programs,
    tags,
    tasks,
    tcp,
    traffic,
    udp,
    unix,
)
from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.kernel.sums import TAGGED_TOTALS, TASK_TOTALS
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger

logger = logging.getLogger(__name__)


class Collector(Protocol):
    """Turns what the ledger's last flush found into families. May raise: the others go on."""

    def collect(self) -> Iterable[Family]:
        """Return the families, fresh."""


@dataclass(frozen=True, slots=True)
class CollectorSpec:
    """A collector's entry: `--[no-]collector.NAME`. It is made if the kernel lets its *sums* be counted."""

    make: Callable[[Ledger, Births], Collector]
    metrics: tuple[Metric, ...]
    help: str
    default: bool = True
    sums: str = ""  # a map


PEERS = "peers"
TAGS, TASKS, UNIX = "tags", "tasks", "unix"

COLLECTORS: Mapping[str, CollectorSpec] = {
    "traffic": CollectorSpec(
        traffic.TrafficCollector, traffic.METRICS, "bytes and packets per workload, and the proof of them"
    ),
    "attach_points": CollectorSpec(
        attach_points.AttachPointsCollector,
        attach_points.METRICS,
        "control totals of the root and of the configured meters",
    ),
    "tcp": CollectorSpec(
        tcp.TcpCollector, tcp.METRICS, "TCP connections per workload: how many, how fast, who limits them"
    ),
    "listeners": CollectorSpec(
        listeners.ListenersCollector, listeners.METRICS, "queues and drops of listening TCP sockets, by port"
    ),
    "udp": CollectorSpec(udp.UdpCollector, udp.METRICS, "datagrams that UDP sockets dropped, per workload"),
    PEERS: CollectorSpec(
        peers.PeersCollector,
        peers.METRICS,
        "bytes per workload by the class of the other end's network, where networks are configured",
    ),
    UNIX: CollectorSpec(
        unix.UnixCollector,
        unix.METRICS,
        "bytes over AF_UNIX sockets per workload (Linux 6.3 or later)",
        sums=TASK_TOTALS,
    ),
    TASKS: CollectorSpec(
        tasks.TasksCollector,
        tasks.METRICS,
        "bytes and calls per process name, sockets of all families (Linux 6.3 or later)",
        default=False,
        sums=TASK_TOTALS,
    ),
    TAGS: CollectorSpec(
        tags.TagsCollector,
        tags.METRICS,
        "bytes per workload and tag, of sockets that somebody has tagged",
        sums=TAGGED_TOTALS,
    ),
    "programs": CollectorSpec(
        programs.ProgramsCollector, programs.METRICS, "the BPF programs and maps: runs, attachment, how full"
    ),
}

DURATION = Metric(
    "sockledger_scrape_collector_duration_seconds",
    MetricType.GAUGE,
    "How long a collector took in this scrape.",
    ("collector",),
    "collectors",
)
SUCCESS = Metric(
    "sockledger_scrape_collector_success",
    MetricType.GAUGE,
    "Whether a collector succeeded in this scrape.",
    ("collector",),
    "collectors",
)


class Registry:
    """The enabled collectors of one daemon."""

    def __init__(self, enabled: Collection[str], ledger: Ledger, births: Births) -> None:
        self._collectors = {
            name: (spec.make(ledger, births), Series([("collector", name)]))
            for name, spec in COLLECTORS.items()
            if name in enabled and (not spec.sums or spec.sums in ledger.datapath.sums)
        }

    def collect(self) -> list[Family]:
        """Run all collectors. One that fails is logged and shows as success 0."""
        families: list[Family] = []
        duration, success = Family(DURATION), Family(SUCCESS)
        for name, (collector, series) in self._collectors.items():
            start = time.perf_counter()
            try:
                families += collector.collect()
            except Exception:
                logger.exception("collector failed", extra={"collector": name})
                success.samples.append((series, 0))
            else:
                success.samples.append((series, 1))
            duration.samples.append((series, time.perf_counter() - start))
        return [*families, duration, success]
