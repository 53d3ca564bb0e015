"""SIGTERM and SIGINT end the daemon cleanly, scrapes included; SIGHUP makes it execute itself anew."""

import http.client
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from tests.daemon.support import STOP_SECONDS, Daemon, Surroundings, free_port
from tests.daemon.test_lock import waiting
from tests.daemon.traffic import send_datagrams
from tests.kernel.machine import Netns, new_cgroup
from tests.patience import PATIENCE, eventually

DEPTH, LONG_NAME, METERS = 7, "n" * 250, 120


@contextmanager
def crowd(place: Surroundings) -> Iterator[str]:
    """A flag for meters whose paths make a page of about a megabyte, slow to compress."""
    with ExitStack() as stack:
        cgroup = place.cgroup
        for _ in range(DEPTH):
            cgroup = stack.enter_context(new_cgroup(cgroup.path, LONG_NAME))
        for number in range(METERS):
            stack.enter_context(new_cgroup(cgroup.path, str(number)))
        yield place.configure(f"attach: {{meters: ['{'/*' * (DEPTH + 1)}']}}\nflush: {{interval: 1h}}\n")


class Scrape:
    """A request that has been sent, and its answer."""

    def __init__(self, daemon: Daemon) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
        self._connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})

    def answer(self) -> int:
        """Return the status once the whole page is here."""
        with closing(self._connection):
            response = self._connection.getresponse()
            assert response.read()
            return response.status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_scrapes_are_answered(place: Surroundings, number: signal.Signals) -> None:
    with crowd(place) as flag:
        daemon = place.run(flag)
        scrapes = [Scrape(daemon) for _ in range(10)]
        assert scrapes.pop(0).answer() == 200, "then the others have been read, too"
        start = time.monotonic()
        daemon.send(number)
        with ThreadPoolExecutor(len(scrapes)) as threads:
            statuses = list(threads.map(Scrape.answer, scrapes))
        assert daemon.stop() == 0
        assert time.monotonic() - start < STOP_SECONDS
        assert statuses == [200] * len(scrapes)
        assert daemon.lines(f"msg=stopping signal={number.name}") == 1
        assert daemon.lines("stopped: all programs are detached") == 1


def test_more_scrapes_than_a_stop_can_wait_for(place: Surroundings) -> None:
    with crowd(place) as flag:
        daemon = place.run(flag, "--web.max-requests=0")
        scrapes = [Scrape(daemon) for _ in range(300)]
        assert scrapes.pop(0).answer() == 200
        start = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - start < STOP_SECONDS
        assert "Traceback" not in daemon.log
        for scrape in scrapes:
            scrape._connection.close()


def test_repeated_signals(place: Surroundings) -> None:
    daemon = place.run()
    while daemon.process.poll() is None:  # up to the interpreter's own end
        daemon.send(signal.SIGINT)
        daemon.send(signal.SIGTERM)
        time.sleep(0.001)  # Python's own buffer for signals is small
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def reload(daemon: Daemon) -> None:
    """Send SIGHUP and wait for the new one."""
    before = daemon.lines("msg=counting")
    daemon.send(signal.SIGHUP)
    eventually(lambda: daemon.lines("msg=counting") > before, "executed anew")
    daemon.wait_until_ready()


def test_bad_configuration_is_refused(place: Surroundings, netns: Netns) -> None:
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run(place.configure("limits: {cgroups: 100}"))
        sent = send_datagrams(netns, a, a)
        place.configure("limits: {cgroups: none}")
        daemon.send(signal.SIGHUP)
        eventually(lambda: daemon.page().sum("config_last_reload_successful") == 0, "refused")
        assert daemon.lines("level=ERROR", "configuration refused", "config.yml:1: limits.cgroups") == 1
        page = daemon.settled()
        assert page.sum("map_max_entries", map="cgroups") == 100
        assert page.sum("transmit_bytes_total", cgroup="/a") == sent

        place.configure("limits: {cgroups: 200}")
        reload(daemon)
        page = daemon.settled()
        assert page.sum("config_last_reload_successful") == 1
        assert page.sum("map_max_entries", map="cgroups") == 200


class Polling:
    """A client that asks again and again whether the daemon is there; each time on a new connection."""

    def __init__(self, daemon: Daemon) -> None:
        self.answers = 0
        self.failures: list[Exception] = []
        self._daemon = daemon
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def _poll(self) -> None:
        while not self._end.is_set():
            try:
                self._daemon.get("/-/healthy")
                self.answers += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)

    def __enter__(self) -> "Polling":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end.set()
        self._thread.join()


def test_executes_itself_anew(place: Surroundings, netns: Netns) -> None:
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run(place.configure("limits: {cgroups: 100}"))
        second = waiting(place)
        pid, programs = daemon.process.pid, place.attached()
        send_datagrams(netns, a, a)
        assert daemon.settled().sum("transmit_bytes_total") > 0

        place.configure("limits: {cgroups: 200}")
        with Polling(daemon) as polling:
            for _ in range(3):
                reload(daemon)
        assert polling.answers > 3
        assert not [error for error in polling.failures if isinstance(error, ConnectionRefusedError)]
        assert daemon.lines("level=WARN", "without pins all counters start at 0") == 3

        assert daemon.process.poll() is None
        assert daemon.process.pid == pid
        eventually(lambda: len(place.attached()) == len(programs), "only the new one is attached")
        assert not place.attached() & programs
        page = daemon.settled()
        assert page.sum("map_max_entries", map="cgroups") == 200
        assert page.sum("transmit_bytes_total") == 0
        sent = send_datagrams(netns, a, a)
        assert daemon.settled().sum("transmit_bytes_total") == sent

        assert second.lines("msg=counting") == 0, "the lock was free"
        assert daemon.stop() == 0
        second.wait_until_ready()


def test_reload_before_it_is_ready(place: Surroundings) -> None:
    daemon = place.start()
    status = Path(f"/proc/{daemon.process.pid}/status")
    hangup = 1 << signal.SIGHUP - 1

    def ignored() -> bool:
        line = next(line for line in status.read_text().splitlines() if line.startswith("SigIgn:"))
        return bool(int(line.split()[1], 16) & hangup)

    eventually(ignored, "started")
    while not daemon.lines("msg=counting"):
        daemon.send(signal.SIGHUP)
        assert daemon.process.poll() is None
        time.sleep(0.005)
    daemon.wait_until_ready()


def test_no_signal_is_lost_while_it_executes_itself(place: Surroundings) -> None:
    daemon = place.run()
    for _ in range(40):
        daemon.send(signal.SIGHUP)
        time.sleep(0.05)
    eventually(lambda: daemon.lines("msg=counting") > 1, "executed anew")
    daemon.wait_until_ready()


@pytest.mark.parametrize("pause", [0, 0.02, 0.1, 0.2, 0.3, 0.4])
def test_stop_right_after_reload(place: Surroundings, pause: float) -> None:
    """Whenever the stop comes, it is not forgotten and is clean."""
    daemon = place.run()
    daemon.send(signal.SIGHUP)
    time.sleep(pause)
    assert daemon.stop() == 0


def test_listen_address_stays_taken(place: Surroundings) -> None:
    """Two addresses are passed on."""
    other = free_port()
    daemon = place.run(f"--web.listen-address=127.0.0.1:{other}")
    reload(daemon)
    with closing(http.client.HTTPConnection("127.0.0.1", other, timeout=PATIENCE)) as connection:
        connection.request("GET", "/-/ready")
        assert connection.getresponse().status == 200


def ended(daemon: Daemon) -> bool:
    return daemon.process.poll() is not None


def test_a_successor_that_cannot_read_its_configuration(place: Surroundings) -> None:
    """It was good when its predecessor read it; the lock that it inherited does not stay behind."""
    daemon = place.run(place.configure(""))
    daemon.send(signal.SIGHUP)
    eventually(lambda: daemon.lines("executing anew") == 1, "on its way")
    place.configure("limits: {cgroups: none}")
    eventually(lambda: ended(daemon), "ended")
    assert daemon.process.returncode == 1
    assert "config.yml:1: limits.cgroups" in daemon.log.splitlines()[-1]
    assert not (place.bpffs / "sockledger").exists()


def test_a_successor_without_its_cgroup(place: Surroundings) -> None:
    with new_cgroup(place.cgroup.path, "root") as cgroup:
        daemon = place.run(f"--path.cgroupfs={cgroup.path}")
    daemon.send(signal.SIGHUP)
    eventually(lambda: ended(daemon), "ended")
    assert daemon.process.returncode == 1
    assert str(cgroup.path) in daemon.log.splitlines()[-1]
    assert not (place.bpffs / "sockledger").exists()
