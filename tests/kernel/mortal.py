"""Lives of daemons, each in a process of its own that may be killed at any of its system calls.

Runs under strace, which kills a process at its LAST'th call of a kind: who is to be killed at an earlier one
first makes those that are missing, which do nothing. On standard input come lives, a line of JSON each; on
standard output go the pages that a life showed and how it ended.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.kernel.machine import run
from tests.patience import eventually

from sockledger.collectors.exporter import Exporter
from sockledger.collectors.registry import COLLECTORS, Registry
from sockledger.exposition import text
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.libbpf import open_pin
from sockledger.kernel.links import HOT_PATH
from sockledger.kernel.meters import Meters
from sockledger.kernel.noted import NotedCgroup, boottime
from sockledger.kernel.pins import Pins
from sockledger.kernel.shown import ShownMap
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.scrapers import RECENT

LAST = 1200
NOWHERE = Path()
SCRAPERS = ("one", "two", None)

# A call of each kind that does nothing.
IDLE: dict[str, Callable[[], object]] = {
    "bpf": lambda: open_pin(NOWHERE),
    "mkdir": lambda: os.mkdir(""),  # noqa: PTH102
    "symlink": lambda: os.symlink("", ""),  # noqa: PTH211
    "unlink": lambda: os.unlink(""),  # noqa: PTH108
    "rename": lambda: os.rename("", ""),  # noqa: PTH104
    "rmdir": lambda: os.rmdir(""),  # noqa: PTH106
}


@dataclass(frozen=True)
class Life:
    """What a daemon does, a deed after the other, and where it counts."""

    deeds: Sequence[str]
    cgroup: str
    bpffs: str
    cgroups: int = 1000
    sockets: int = 4096
    label_sets: int = 0
    gone: float = 600.0
    image: str | None = None
    meters: Sequence[str] = ()
    deadly: str = ""  # the deed in which it is killed
    call: str = ""  # at a call of this kind
    number: int = 0

    def line(self) -> str:
        return json.dumps(asdict(self))


class Daemon:
    """As sockledger.daemon, without its threads and its server."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._root = CgroupRoot(Path(life.cgroup))
        self._pins = Pins(Path(life.bpffs))

    def start(self) -> None:
        life = self._life
        self._path = DataPath(
            self._root,
            cgroups=life.cgroups,
            sockets=life.sockets,
            connections=1000,
            label_sets=life.label_sets,
            parts=Parts(tcp_histograms=True),
            pins=self._pins,
            lease=86400,
            image=Path(life.image).read_bytes() if life.image else None,
        )
        self._path.attach()
        self._ahead = 0  # of what its scrapers take for the time
        self._births = Births(
            ShownMap(self._path.maps["shown"]), self._path.generations, lambda: boottime() + self._ahead
        )
        meters = Meters(life.meters, self._root, self._path)
        self._ledger = Ledger(self._path, self._root, meters, gone=life.gone, births=self._births)
        enabled = COLLECTORS.keys() - {"programs"}  # it only asks, in 16 calls for each page
        self._registry = Registry(enabled, self._ledger, self._births)
        self._exporter = Exporter(self._ledger, self._births, lambda: True)

    def scrape(self) -> None:
        self._ledger.flush()
        self._births.let_go(self._ledger.books.workloads)
        for scraper in SCRAPERS:
            families = [*self._registry.collect(), *self._exporter.collect()]
            page = text.render(families, seen=self._births.scrapers.seen_by(scraper), openmetrics=False)
            newest = self._births.newest
            say({"scraper": scraper, "page": page.decode()})
            self._births.note_page(scraper, newest, self._ledger.books.began)

    def _removed(self) -> list[NotedCgroup]:
        return [each for each in self._path.cgroups.all().values() if each.removed]

    def wait(self) -> None:
        """The kernel has released what is gone."""
        eventually(lambda: all(each.released for each in self._removed()), "released")

    def fold(self) -> None:
        """Until nothing is left of what is gone; who scraped before has had the time to come."""
        self._ahead = RECENT

        def folded() -> bool:
            self.scrape()
            return not self._removed()

        eventually(folded, "folded")

    def lose_pins(self) -> None:
        self._pins.remove()

    def detach(self) -> None:
        for name in (HOT_PATH, "sl_transmit"):
            run("bpftool", "link", "detach", "id", str(self._path.links.held[name].id))

    def mend(self) -> None:
        self._path.attach_again()
        self._path.pin_again()

    def stop(self) -> None:
        self._path.close()

    def uninstall(self) -> None:
        self._pins.remove()

    def count(self) -> None:
        """So many calls of each kind, and a line after each."""
        for number in range(10):
            for idle in IDLE.values():
                with suppress(OSError):
                    idle()
            say(number)


def say(what: object) -> None:
    os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


def go_on_as_child() -> None:
    """Only the child returns; this process waits and ends as it does."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status)


def live(life: Life) -> None:
    daemon = Daemon(life)
    for deed in life.deeds:
        if deed == life.deadly:
            go_on_as_child()  # no call of this process is counted yet
            for _ in range(LAST - life.number):
                with suppress(OSError):
                    IDLE[life.call]()
        getattr(daemon, deed)()


def main() -> None:
    say("ready")
    for line in sys.stdin:
        life = Life(**json.loads(line))
        child = os.fork()
        if not child:
            try:
                live(life)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say({"end": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()
