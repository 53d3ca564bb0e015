"""The real daemon as a subprocess, in surroundings of its own, and what tests do to it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.kernel.machine import Cgroup, Netns, new_cgroup, run
from tests.patience import PATIENCE, eventually

SOCKLEDGER = str(Path(sys.executable).with_name("sockledger"))
STOP_SECONDS = 6.0  # a stop takes 2 at most; the rest is for machines that are slow at times

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
_numbers = count()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


class Page:
    """A parsed page. No sample may be there twice."""

    def __init__(self, text: str, *, openmetrics: bool = False) -> None:
        self.text = text
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in (parse_openmetrics if openmetrics else parse_text)(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, f"twice on one page: {sample}"
                self.samples[key] = sample.value

    def values(self, name: str, **labels: str) -> list[float]:
        """The samples of *name* that have these labels among theirs."""
        return [
            value for (found, has), value in self.samples.items() if found == name and labels.items() <= has
        ]

    def sum(self, name: str, **labels: str) -> int:
        return int(sum(self.values(f"sockledger_{name}", **labels)))

    def labels(self, name: str, label: str) -> set[str]:
        """All values that *label* has in the samples of *name*."""
        return {dict(has)[label] for found, has in self.samples if found == f"sockledger_{name}"}


class Daemon:
    """`sockledger run` on a port of its own. *prefix* is a command that runs it, as setpriv."""

    def __init__(self, surroundings: "Surroundings", *flags: str, prefix: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self._log = surroundings.folder / f"log-{next(_numbers)}"
        with self._log.open("wb") as stderr:
            self.process = subprocess.Popen(
                (*prefix, SOCKLEDGER, *surroundings.flags(self.port), *flags), stderr=stderr
            )
        self._links: set[int] = set()
        self._pinned = surroundings.pinned

    @property
    def log(self) -> str:
        return self._log.read_text()

    def lines(self, *texts: str) -> int:
        """How many lines of the log have all of *texts*."""
        return sum(all(text in line for text in texts) for line in self.log.splitlines())

    def status(self, path: str) -> int:
        """The status of an answer; 0 if there is none."""
        try:
            return self.get(path)[0].status
        except OSError:
            return 0

    def wait_until_ready(self) -> "Daemon":
        def ready() -> bool:
            assert self.process.poll() is None, f"the daemon has ended: {self.log}"
            return self.status("/-/ready") == 200

        eventually(ready, "ready")
        self._links |= self.links()
        return self

    def get(self, path: str = "/metrics", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response, response.read()

    def page(self, scraper: str | None = None, *, openmetrics: bool = False) -> Page:
        """Scrape, as the Prometheus server called *scraper* or as nobody in particular."""
        headers = {"Accept": OPENMETRICS} if openmetrics else {}
        if scraper is not None:
            headers |= {"X_Prometheus_Scrape_Timeout_Seconds": "10", "User_Agent": scraper}
        response, body = self.get(**headers)
        assert response.status == 200, body
        return Page(body.decode(), openmetrics=openmetrics)

    def settled(self, scraper: str | None = None) -> Page:
        """Scrape when all traffic up to now is certain to be on the page."""
        time.sleep(1.3)  # what a scrape shows may be a second old
        return self.page(scraper)

    def links(self) -> set[int]:
        """The ids of the BPF links it holds."""
        found = set()
        for info in Path(f"/proc/{self.process.pid}/fdinfo").iterdir():
            try:
                text = info.read_text()
            except OSError:
                continue  # closed meanwhile
            found |= {int(line.split()[1]) for line in text.splitlines() if line.startswith("link_id:")}
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and return its exit status. Without pins none of its links is left."""
        if self.process.poll() is None:
            self._links |= self.links()
            self.send(number)
        status = self.process.wait(PATIENCE)
        if not self._pinned:
            eventually(lambda: not self._links & existing_links(), "links gone")
        return status


def existing_links() -> set[int]:
    return {link["id"] for link in json.loads(run("bpftool", "-j", "link", "show"))}


@dataclass
class Surroundings:
    """A cgroup that stands for the hierarchy's root, a BPF file system, and the daemons started in them."""

    cgroup: Cgroup
    bpffs: Path
    folder: Path
    daemons: list[Daemon] = field(default_factory=list)
    pinned: bool = False

    def flags(self, port: int) -> tuple[str, ...]:
        return (
            "run",
            *(() if self.pinned else ("--no-pin",)),
            f"--path.cgroupfs={self.cgroup.path}",
            f"--path.bpffs={self.bpffs}",
            f"--web.listen-address=127.0.0.1:{port}",
        )

    def configure(self, text: str) -> str:
        """Write the configuration file and return the flag that names it."""
        file = self.folder / "config.yml"
        file.write_text(text)
        return f"--config.file={file}"

    def start(self, *flags: str, prefix: tuple[str, ...] = ()) -> Daemon:
        daemon = Daemon(self, *flags, prefix=prefix)
        self.daemons.append(daemon)
        return daemon

    def run(self, *flags: str, prefix: tuple[str, ...] = ()) -> Daemon:
        return self.start(*flags, prefix=prefix).wait_until_ready()

    def uninstall(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SOCKLEDGER, "uninstall", f"--path.cgroupfs={self.cgroup.path}", f"--path.bpffs={self.bpffs}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def attached(self) -> set[int]:
        """The ids of all programs attached to the cgroup and those below it."""
        return {program for programs in self.attached_by_cgroup().values() for program in programs}

    def attached_by_cgroup(self) -> dict[Path, list[int]]:
        found = json.loads(run("bpftool", "-j", "cgroup", "tree", str(self.cgroup.path)) or "[]")
        return {Path(cgroup["cgroup"]): [program["id"] for program in cgroup["programs"]] for cgroup in found}

    def assert_clean(self) -> None:
        """Nothing is attached and there is no lock."""
        eventually(lambda: not self.attached(), "all detached")
        assert not (self.bpffs / "sockledger").exists()


@contextmanager
def surroundings(root: Path, folder: Path) -> Iterator[Surroundings]:
    """New ones below the cgroup *root*. At the end every daemon is stopped, and all must be clean."""
    with ExitStack() as stack:
        cgroup = stack.enter_context(new_cgroup(root, f"sockledger-daemon-{os.getpid()}-{next(_numbers)}"))
        bpffs = folder / "bpf"
        bpffs.mkdir()
        run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(bpffs))
        stack.callback(run, "umount", str(bpffs))
        made = Surroundings(cgroup, bpffs, folder)
        stack.callback(_kill, made)
        yield made
        for daemon in made.daemons:
            daemon.stop()
        assert made.uninstall().returncode == 0
        made.assert_clean()


@contextmanager
def busy(place: Surroundings, netns: Netns, module: str, *numbers: int) -> Iterator[subprocess.Popen[str]]:
    """A process that makes traffic in cgroups of its own; what it leaves of these is removed."""
    command = [sys.executable, "-m", module, str(place.cgroup.path), netns.name, *map(str, numbers)]
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        for left in place.cgroup.path.glob("*/"):
            left.rmdir()


def _kill(made: Surroundings) -> None:
    for daemon in made.daemons:
        daemon.process.kill()
        daemon.process.wait()
