"""A daemon that pins: what it has counted goes on, whatever becomes of it, until it is uninstalled."""

import signal
import time
from functools import partial
from pathlib import Path

import pytest
from tests.daemon.support import Daemon, Page, Surroundings, existing_links
from tests.daemon.traffic import send_datagrams
from tests.kernel.machine import Netns, new_cgroup, run
from tests.patience import PATIENCE, eventually

from sockledger.daemon import MEND_SECONDS


@pytest.fixture
def pinned(place: Surroundings) -> Surroundings:
    place.pinned = True
    return place


def end(daemon: Daemon, number: signal.Signals) -> None:
    daemon.send(number)
    assert daemon.process.wait(PATIENCE) == (0 if number == signal.SIGTERM else -number)


def sent_by_a(page: Page) -> list[float]:
    return page.values("sockledger_transmit_bytes_total", cgroup="/a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_goes_on(pinned: Surroundings, netns: Netns, number: signal.Signals) -> None:
    """Counters never fall, nor are they shown as new again, and the traffic without a daemon is in them."""
    with new_cgroup(pinned.cgroup.path, "a") as a:
        sent = 0
        for start in range(3):
            daemon = pinned.run()
            if start:
                page = daemon.page("one")
                assert sent_by_a(page) == [sent]
                assert page.sum("attach_point_transmit_bytes_total") == sent
            sent += send_datagrams(netns, a, a)
            page = daemon.settled("one")
            assert sent_by_a(page) == [sent if start else 0]
            page = daemon.page("one")
            assert sent_by_a(page) == [sent]
            assert page.sum("unattributed_bytes_total") == page.sum("overcounted_bytes_total") == 0
            programs = pinned.attached()
            end(daemon, number)
            assert pinned.attached() == programs, "the kernel counts on"
            sent += send_datagrams(netns, a, a)
        assert daemon.lines("stopped: the kernel counts on") == (number == signal.SIGTERM)


def test_born_while_no_daemon_runs(pinned: Surroundings, netns: Netns) -> None:
    with new_cgroup(pinned.cgroup.path, "a") as a:
        daemon = pinned.run()
        daemon.page("one")
        end(daemon, signal.SIGKILL)
        sent = send_datagrams(netns, a, a)
        daemon = pinned.run()
        assert sent_by_a(daemon.page("one")) == [0]
        assert sent_by_a(daemon.page("one")) == [sent]


def counts_anew(daemon: Daemon, before: int) -> bool:
    return daemon.lines("msg=counting") > before


def test_executes_itself_anew(pinned: Surroundings, netns: Netns) -> None:
    """With other limits, too."""
    with new_cgroup(pinned.cgroup.path, "a") as a:
        daemon = pinned.run(pinned.configure("limits: {cgroups: 100}"))
        sent = send_datagrams(netns, a, a)
        daemon.settled("one")
        for cgroups in (100, 200, 50):
            pinned.configure(f"limits: {{cgroups: {cgroups}}}")
            counting = daemon.lines("msg=counting")
            daemon.send(signal.SIGHUP)
            eventually(partial(counts_anew, daemon, counting), "executed anew")
            sent += send_datagrams(netns, a, a)
            page = daemon.wait_until_ready().settled("one")
            assert sent_by_a(page) == [sent]
            assert page.sum("unattributed_bytes_total") == page.sum("overcounted_bytes_total") == 0
        assert daemon.lines("level=WARN") == 0


def test_limits_of_connections_stay(pinned: Surroundings) -> None:
    end(pinned.run(pinned.configure("limits: {connections: 100}")), signal.SIGTERM)
    daemon = pinned.run(pinned.configure("limits: {connections: 200}"))
    assert daemon.lines("level=WARN", "limits.connections", "uninstall", "wanted=200 limit=100") == 1
    assert daemon.page().sum("map_max_entries", map="tcp_sockets") == 100


def test_without_pins_where_there_are_some(pinned: Surroundings) -> None:
    end(pinned.run(), signal.SIGTERM)
    programs = pinned.attached()
    pinned.pinned = False
    daemon = pinned.start()
    assert daemon.process.wait(PATIENCE) == 1
    [line] = daemon.log.splitlines()
    assert "counts are pinned there" in line
    assert "leave out --no-pin, or run sockledger uninstall" in line
    assert pinned.attached() == programs
    pinned.pinned = True


def test_uninstall(pinned: Surroundings) -> None:
    daemon = pinned.run()
    refused = pinned.uninstall()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "sockledger: a daemon runs with what is pinned: stop it first\n"
    links = daemon.links()
    end(daemon, signal.SIGTERM)
    assert pinned.attached()
    done = pinned.uninstall()
    assert done.returncode == 0
    assert done.stdout.endswith(" pins removed\n")
    eventually(lambda: not links & existing_links(), "links gone")
    pinned.assert_clean()
    assert pinned.uninstall().stdout == "nothing is pinned\n"


def test_mended(pinned: Surroundings, netns: Netns) -> None:
    """What another agent or a hand detaches and removes is there again, for the next daemon, too."""
    with new_cgroup(pinned.cgroup.path, "a") as a:
        daemon = pinned.run()
        sent = send_datagrams(netns, a, a)
        home = pinned.bpffs / "sockledger"
        pins = names_in(home)
        run("bpftool", "link", "detach", "pinned", str(home / "v1" / "links" / "sl_receive"))
        run("rm", "-r", str(home))
        time.sleep(1.1)
        page = daemon.page()
        assert page.sum("bpf_program_attached", program="sl_receive") == 0
        assert page.sum("bpf_program_attached") == 7
        time.sleep(MEND_SECONDS)
        eventually(lambda: daemon.page().sum("bpf_program_attached") == 8, "mended")
        assert names_in(home) == pins
        assert daemon.lines("attached again", "link=sl_receive") == 1
        second = pinned.start()
        eventually(lambda: second.lines("another sockledger is attached") == 1, "the lock is there again")
        end(daemon, signal.SIGKILL)
        second.wait_until_ready()
        sent += send_datagrams(netns, a, a)
        assert sent_by_a(second.settled()) == [sent]
        assert second.page().sum("receive_bytes_total", cgroup="/a") == sent


def names_in(folder: Path) -> list[str]:
    return sorted(run("find", str(folder), "-printf", "%P\\n").splitlines())
