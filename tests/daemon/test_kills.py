"""The daemon is killed at any moment, again and again: nobody sees a counter fall, and all is counted."""

import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from http.client import HTTPException

from tests.daemon.bustle import CGROUPS, PAIRS
from tests.daemon.support import Daemon, Page, Surroundings, busy
from tests.daemon.test_faults import assert_balanced
from tests.kernel.machine import Netns
from tests.patience import SCALE
from tests.scrapes import Scrapes

KILLS = 100 if os.environ.get("SOCKLEDGER_TEST_FULL") else 25
LONGEST_LIFE = 1.6 if SCALE == 1 else 40.0  # in seconds: half of them are killed before they are ready
SCRAPERS = ("one", "two")


class Bustle:
    """The process that makes the traffic."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._read() == "ready\n"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def stop(self) -> dict[str, Counter[str]]:
        """Stop the traffic, and return what there was of it by path; what is open stays so."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return {path: Counter(books) for path, books in json.loads(self._read()).items()}


def live(daemon: Daemon, scrapes: Scrapes, seconds: float) -> None:
    """Scrape a daemon until it is killed."""
    killing = threading.Timer(seconds, daemon.process.kill)
    killing.start()
    while daemon.process.poll() is None:
        for scraper in SCRAPERS:
            try:
                page = daemon.page(scraper)
            except (OSError, HTTPException):
                continue  # not there yet, or not any more
            scrapes.take(scraper, page.text)
        time.sleep(0.02)
    killing.join()


def counted(page: Page) -> dict[str, Counter[str]]:
    """What a page says of each path, by the names of the traffic's own books."""
    return {
        path: Counter(
            {
                f"{protocol}_{direction}_bytes": page.sum(
                    f"{direction}_bytes_total", cgroup=path, protocol=protocol
                )
                for protocol in ("tcp", "udp")
                for direction in ("receive", "transmit")
            }
            | {name: page.sum(f"tcp_connections_{name}_total", cgroup=path) for name in ("opened", "closed")}
        )
        for path in sorted(page.labels("transmit_bytes_total", "cgroup"))
    }


def test_killed_at_any_moment(place: Surroundings, netns: Netns) -> None:
    """Cgroups that are removed keep their name, also if they came and went while no daemon ran."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    scrapes = Scrapes()
    place.pinned = True
    # no daemon lives for so long that it could forget a name
    flag = place.configure(
        f"flush: {{interval: 100ms}}\nlimits: {{cgroups: {8192 if SCALE == 1 else 65536}}}"
    )
    daemon = place.run(flag)
    with busy(place, netns, "tests.daemon.bustle", seed) as process:
        bustle = Bustle(process)
        for _ in range(KILLS):
            live(daemon, scrapes, moments.uniform(0, LONGEST_LIFE))
            daemon = place.start(flag)
        truth = bustle.stop()
        daemon.wait_until_ready()
        for _ in range(2):
            for scraper in (*SCRAPERS, None):
                page = daemon.settled(scraper)
                scrapes.take(scraper, page.text)
                assert_balanced(page)
                assert page.sum("tcp_connections") == 2 * PAIRS * CGROUPS
        assert page.sum("tcp_connections_opened_total") - page.sum("tcp_connections_closed_total") == (
            2 * PAIRS * CGROUPS
        )
        reasons = page.labels("lost_updates_total", "reason")
        lost = {reason: page.sum("lost_updates_total", reason=reason) for reason in sorted(reasons)}
        if SCALE > 1:
            # no daemon has flushed for minutes: what found no seat was written through, and is not missing
            del lost["sockets_full"]
        assert not any(lost.values()), lost
        assert counted(page) == truth
