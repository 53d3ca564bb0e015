"""The exporter's own state, always shown: it can't be switched off, so it is no collector of the registry."""

import platform
from collections.abc import Callable

from sockledger import __version__
from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger

FLUSH_DURATION = Metric(
    "sockledger_flush_duration_seconds",
    MetricType.GAUGE,
    "How long the last flush took: walks over all seats, TCP sockets and tasks, two RCU grace periods, and "
    "reading the totals.",
)
WORKLOADS = Metric(
    "sockledger_workloads",
    MetricType.GAUGE,
    "Workloads that have traffic shown; those not told apart (unknown, other) are one each.",
)
OVER_LIMIT = Metric(
    "sockledger_workloads_over_limit",
    MetricType.GAUGE,
    "Workloads that count as cgroup other, as there are more than limits.workloads.",
)
NAME_SOURCE_UP = Metric(
    "sockledger_name_source_up",
    MetricType.GAUGE,
    "Whether what is configured to be asked for names answers: docker, podman, kubernetes (the API server).",
    ("source",),
    "sources configured",
)
CONFIG_RELOAD = Metric(
    "sockledger_config_last_reload_successful",
    MetricType.GAUGE,
    "Whether the configuration file was valid when it was last read, at start or at SIGHUP, and so was what "
    "networks_file names, and its networks are in use, with room for all classes.",
)
BUILD_INFO = Metric(
    "sockledger_build_info", MetricType.GAUGE, "Always 1.", ("version", "python_version"), "1"
)
LOST_UPDATES = Metric(
    "sockledger_lost_updates",
    MetricType.COUNTER,
    "Updates in the kernel that had to go another way, or could not be made. sockets_full: no seat for the "
    "socket, counted under its cgroup, only slower (limits.sockets is too small, or it was connected to "
    "peers of other classes too often between two flushes). "
    "totals_full: counted under cgroup other (limits.cgroups is too small). "
    "totals_busy: the same, as an interrupt found the map busy (kernels up to 6.6). "
    "udp_sockets_full: no room, or no memory, for a UDP socket that drops datagrams: its drops are missing. "
    "connections_full: no room for a TCP socket (limits.connections is too small): a connection is counted "
    "at its end, role unknown, without its figures; a failed connect or a listener is missing. "
    "connections_busy: the same, for want of memory or as a flush was at the socket's last connection. "
    "end_unseen: a TCP socket was gone without a sign; what it counted since the last flush is missing. "
    "name_full: no room (limits.cgroups is too small), or no memory, for a new cgroup's name, or its path is "
    "longer than 414 bytes: if it is gone before a flush, it is unknown. "
    "task_storage: no memory for a task's counts; counted all the same, only slower. "
    "tag_full: no room (limits.cgroups is too small), or no memory, for a tag: counted as tag other.",
    ("reason",),
    "reasons",
)
METRICS = (FLUSH_DURATION, LOST_UPDATES, WORKLOADS, OVER_LIMIT, NAME_SOURCE_UP, CONFIG_RELOAD, BUILD_INFO)

_NO_LABELS = Series([])


class Exporter:
    """Families about the daemon. *config_ok* tells of the last reload."""

    def __init__(self, ledger: Ledger, births: Births, config_ok: Callable[[], bool]) -> None:
        self._config_ok = config_ok
        self._ledger = ledger
        self._births = births
        self._reasons: dict[str, Series] = {}
        self._build = Series([("version", __version__), ("python_version", platform.python_version())])

    def collect(self) -> list[Family]:
        """Return all families of `METRICS`."""
        books, sources = self._ledger.books, self._ledger.name_sources_up()
        return [
            Family(FLUSH_DURATION, [(_NO_LABELS, books.seconds)]),
            Family(
                LOST_UPDATES,
                [(self._reason(reason), updates) for reason, updates in books.lost_updates.items()],
            ),
            Family(WORKLOADS, [(_NO_LABELS, len({account.workload for account in books.accounts}))]),
            Family(OVER_LIMIT, [(_NO_LABELS, books.over_limit)]),
            Family(NAME_SOURCE_UP, [(Series([("source", name)]), int(up)) for name, up in sources.items()]),
            Family(CONFIG_RELOAD, [(_NO_LABELS, int(self._config_ok()))]),
            Family(BUILD_INFO, [(self._build, 1)]),
        ]

    def _reason(self, reason: str) -> Series:
        if reason not in self._reasons:
            self._reasons[reason] = self._births.series(LOST_UPDATES.name, [("reason", reason)], table="lost")
        return self._reasons[reason]
