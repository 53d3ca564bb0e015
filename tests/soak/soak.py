"""The daemon under many short lives: what it counts, and that it holds no more at the end than before.

Label sets of cgroups that are gone stay for a day, as many as limits.label_sets allows. So that limit is
small here, and the first third of all lives reaches it. Beside what label sets have, what is there at rest,
then and at the end, is what was there before the first cgroup.
"""

import json
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemon.support import Daemon, Surroundings, busy
from tests.kernel.machine import Netns
from tests.patience import PATIENCE

# Whatever is kept for each connection, or each series that was, takes more: in the long form, for 133,000
# connections and 150,000 series. Python's own memory comes and goes by less.
MEMORY = 3 << 20
SCRAPER, INTERVAL = "prometheus", 1.0
# Not filled by label sets: empty whenever nothing lives.
LIVING = ("cgroups", "sockets", "tcp_sockets", "udp_sockets", "listen_queues")
# What a label set has: rows of sums, and counters that a scraper has got.
ROWS = {
    "label_sets": 1,
    "totals": 2,
    "tcp_totals": 1,
    "tcp_histograms": 1,
    "udp_totals": 1,
    "shown": 11,
}
AT_REST = 3  # pages that say the same, one after the other

_SAMPLE = re.compile(r"^sockledger_(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# Of a program or a scrape: not of traffic.
_OWN = re.compile(r"bpf_program_|scrape_")


@dataclass(frozen=True)
class Size:
    cgroups: int
    connections: int
    seconds: int
    label_sets: int


LONG = Size(cgroups=5000, connections=200_000, seconds=570, label_sets=500)
SHORT = Size(cgroups=200, connections=5000, seconds=15, label_sets=20)


@dataclass(frozen=True)
class AtRest:
    """What the daemon holds when nothing lives."""

    entries: dict[str, int]  # of maps, by name
    kernel_bytes: int  # of all maps
    files: int
    resident: int  # bytes


@dataclass
class Report:
    truth: Counter[str]
    increases: Counter[tuple[str, str]]
    wrong: list[str] = field(default_factory=list)  # promises that were broken
    rests: list[AtRest] = field(default_factory=list)  # before all, after a third, at the end
    resident: list[int] = field(default_factory=list)  # at each page
    flushes: list[float] = field(default_factory=list)  # seconds
    label_sets: int = 0  # the most there were

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.wrong.append(f"{what}: {found}, not {wanted}")


class Scraper:
    """One that adds up increases as PromQL's increase() does, by metric and protocol."""

    def __init__(self, daemon: Daemon, report: Report) -> None:
        self._daemon = daemon
        self._report = report
        self._last: dict[tuple[str, str], float] = {}
        self.gauges: dict[tuple[str, str], float] = {}  # of the last page, by name and labels

    def scrape(self) -> None:
        response, body = self._daemon.get(X_Prometheus_Scrape_Timeout_Seconds="10", User_Agent=SCRAPER)
        assert response.status == 200, body
        self.gauges = {}
        for name, labels, text in _SAMPLE.findall(body.decode()):
            if _OWN.match(name):
                continue
            if name.endswith("_total"):
                self._count(name, labels, float(text))
            else:
                self.gauges[name, labels] = float(text)
        self._report.label_sets = max(self._report.label_sets, self.entries()["label_sets"])
        self._report.resident.append(self.resident())
        self._report.flushes.append(self.gauges["flush_duration_seconds", ""])

    def _count(self, name: str, labels: str, value: float) -> None:
        last = self._last.get((name, labels))
        if last is None and value:
            self._report.wrong.append(f"{name}{{{labels}}} was {value} before it was 0")
        since = value - last if last is not None and value >= last else value
        self._report.increases[name, dict(_LABEL.findall(labels)).get("protocol", "")] += int(since)
        self._last[name, labels] = value

    def resident(self) -> int:
        status = Path(f"/proc/{self._daemon.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE)
        assert found
        return int(found[1]) << 10

    def entries(self) -> dict[str, int]:
        return {
            dict(_LABEL.findall(labels))["map"]: int(value)
            for (name, labels), value in self.gauges.items()
            if name == "map_entries"
        }

    def until_rest(self) -> AtRest:
        """Scrape each second until nothing lives and nothing changes any more."""
        deadline = time.monotonic() + PATIENCE
        pages: list[dict[str, int]] = []
        while len(pages) < AT_REST:
            self.scrape()
            now = self.entries()
            if (pages and pages[-1] != now) or any(now[name] for name in LIVING):
                assert time.monotonic() < deadline, f"it does not come to rest: {now}"
                pages = []
            pages.append(now)
            time.sleep(1.1)
        memory = [value for (name, _), value in self.gauges.items() if name == "kernel_memory_bytes"]
        files = len(list(Path(f"/proc/{self._daemon.process.pid}/fd").iterdir()))
        return AtRest(
            now, int(sum(memory)), files, round(statistics.median(self._report.resident[-AT_REST:]))
        )


def soak(place: Surroundings, netns: Netns, size: Size) -> Report:
    report = Report(Counter(), Counter())
    place.pinned = True
    config = place.configure(f"persist: {{gone: 1s}}\nlimits: {{label_sets: {size.label_sets}}}")
    daemon = place.run(config, "--collector.tcp.histograms")
    scraper = Scraper(daemon, report)
    report.rests.append(scraper.until_rest())
    first = Size(size.cgroups // 3, size.connections // 3, size.seconds // 3, size.label_sets)
    for done, part in ((Size(0, 0, 0, 0), first), (first, size)):
        work = part.cgroups - done.cgroups, part.connections - done.connections, part.seconds - done.seconds
        with busy(place, netns, "tests.soak.traffic", done.cgroups, *work) as process:
            due = time.monotonic()
            while process.poll() is None:
                scraper.scrape()
                due += INTERVAL
                time.sleep(max(0, due - time.monotonic()))
            assert process.stdout is not None
            report.truth.update(json.loads(process.stdout.read()))
        report.rests.append(scraper.until_rest())
    compare(report, size)
    report.expect("warnings", [line for line in daemon.log.splitlines() if "level=INFO" not in line], [])
    return report


def compare(report: Report, size: Size) -> None:
    """Note which promises are broken."""
    truth, grown = report.truth, report.increases
    report.expect("connections made", truth["connections"], size.connections)
    report.expect("cgroups made", truth["cgroups"], size.cgroups)
    for direction in ("receive", "transmit"):
        name = f"{direction}_bytes_total"
        report.expect(f"UDP {name}", grown[name, "udp"], truth["udp_bytes"])
        everything = sum(value for (each, _), value in grown.items() if each == name)
        report.expect(f"all {name}", everything, grown[f"attach_point_{name}", ""])
    # both ends are ours; a FIN counts as a byte
    both = 2 * truth["connections"]
    for name, wanted in (
        ("tcp_connections_opened_total", both),
        ("tcp_connections_closed_total", both),
        ("tcp_received_bytes_total", truth["tcp_bytes"] + both),
        ("udp_receive_drops_total", truth["udp_drops"]),
        ("unattributed_bytes_total", 0),
        ("overcounted_bytes_total", 0),
        ("lost_updates_total", 0),
    ):
        report.expect(name, grown[name, ""], wanted)

    start, warm, end = report.rests
    report.expect("most label sets", report.label_sets, size.label_sets)
    for rest in (warm, end):
        rows = {
            name: number + ROWS.get(name, 0) * rest.entries["label_sets"]
            for name, number in start.entries.items()
        }
        report.expect("entries of maps", rest.entries, rows)
    report.expect("open files", end.files, warm.files)
    if end.resident - warm.resident > MEMORY:
        report.wrong.append(f"resident memory: grew from {warm.resident} to {end.resident}")
