"""The BPF programs and maps themselves: attachment, what the kernel counts for them, how full, how big."""

from collections.abc import Iterable
from pathlib import Path

from sockledger.exposition.family import Family, Metric, MetricType, Series
from sockledger.kernel.features import counts_runs
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger

ATTACHED = Metric(
    "sockledger_bpf_program_attached",
    MetricType.GAUGE,
    "Whether the kernel still runs a program that the daemon attached (the meters' are not among them).",
    ("program",),
    "programs",
)
RUN_SECONDS = Metric(
    "sockledger_bpf_program_run_seconds",
    MetricType.COUNTER,
    "Time spent in a program (bpf_prog_info.run_time_ns); only while kernel.bpf_stats_enabled is 1.",
    ("program",),
    "programs",
)
RUNS = Metric(
    "sockledger_bpf_program_runs",
    MetricType.COUNTER,
    "Runs of a program (bpf_prog_info.run_cnt); only while kernel.bpf_stats_enabled is 1.",
    ("program",),
    "programs",
)
RECURSION_MISSES = Metric(
    "sockledger_bpf_program_recursion_misses",
    MetricType.COUNTER,
    "Runs that the kernel left out as the program was running on that CPU already; never at cgroups.",
    ("program",),
    "programs",
)
MAP_ENTRIES = Metric(
    "sockledger_map_entries",
    MetricType.GAUGE,
    "Entries in use at the last flush. sockets: seats; tcp_sockets: those that are followed; udp_sockets: "
    "those that have dropped datagrams; cgroups: those that live or are still shown, and in up to seven "
    "eighths of the room those that the kernel has not released; label_sets: of cgroups that are gone; "
    "shown: counters that scrapers have got; task_comms, tag_names: names of processes and tags; "
    "the others: sums of cgroups and label sets.",
    ("map",),
    "bounded maps, up to 19",
)
MAP_MAX_ENTRIES = Metric(
    "sockledger_map_max_entries",
    MetricType.GAUGE,
    "Entries that fit. Beyond: sockets are counted more slowly, TCP sockets are not followed, drops of UDP "
    "sockets are not counted, cgroups are named only if they live long enough, for a label set the oldest "
    "ends, counters that were shown begin at 0 again after a restart, sums are those of cgroup other.",
    ("map",),
    "bounded maps, up to 19",
)
KERNEL_MEMORY = Metric(
    "sockledger_kernel_memory_bytes",
    MetricType.GAUGE,
    "Kernel memory of a map (memlock in its fdinfo).",
    ("map",),
    "maps",
)
METRICS = (ATTACHED, RUN_SECONDS, RUNS, RECURSION_MISSES, MAP_ENTRIES, MAP_MAX_ENTRIES, KERNEL_MEMORY)


class ProgramsCollector:
    """Families from the kernel's own information about what the daemon loaded."""

    def __init__(self, ledger: Ledger, births: Births) -> None:
        self._ledger = ledger
        self._births = births
        datapath = ledger.datapath
        self._programs = {name: births.series(None, [("program", name)]) for name in datapath.links.held}
        self._maps = {name: Series([("map", name)]) for name in datapath.maps}

    def collect(self) -> Iterable[Family]:
        """Return the families of `METRICS`, without the run figures where the kernel does not count them."""
        datapath, books = self._ledger.datapath, self._ledger.books
        detached = datapath.detached()
        yield Family(
            ATTACHED, [(series, int(name not in detached)) for name, series in self._programs.items()]
        )
        stats = [(series, datapath.stats(name)) for name, series in self._programs.items()]
        if counts_runs():
            yield Family(RUN_SECONDS, [(series, figures.run_seconds) for series, figures in stats])
            yield Family(RUNS, [(series, figures.runs) for series, figures in stats])
        yield Family(RECURSION_MISSES, [(series, figures.recursion_misses) for series, figures in stats])
        entries = books.entries | {"shown": self._births.written}
        yield Family(MAP_ENTRIES, [(self._maps[name], used) for name, used in entries.items()])
        yield Family(
            MAP_MAX_ENTRIES, [(self._maps[name], datapath.maps[name].max_entries) for name in entries]
        )
        yield Family(KERNEL_MEMORY, [(series, self._memory(name)) for name, series in self._maps.items()])

    def _memory(self, name: str) -> int:
        fdinfo = Path(f"/proc/self/fdinfo/{self._ledger.datapath.maps[name].fd}").read_text()
        return next(int(line.split()[1]) for line in fdinfo.splitlines() if line.startswith("memlock:"))
