"""A daemon that pins: what it has counted goes on, whatever becomes of it, until it is uninstalled."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
from tests.daemon.support import SOCKLEDGER, Daemon, Page, Surroundings, existing_links
from tests.daemon.test_lock import WAITING
from tests.daemon.test_signals import reload
from tests.daemon.traffic import converse, send_datagrams
from tests.kernel.machine import Netns, new_cgroup, run
from tests.patience import PATIENCE, eventually

from sockledger.daemon import MEND_SECONDS
from sockledger.kernel.attachments import hot_paths
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import ATTACHED, DataPath
from sockledger.kernel.lock import Lock
from sockledger.kernel.pins import KINDS


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_gone_before_the_next_daemon(pinned: Surroundings, netns: Netns, number: signal.Signals) -> None:
    """It is shown until scrapers have had the time to come, however short the time that is configured."""
    flag = pinned.configure("persist: {gone: 1s}\nflush: {interval: 100ms}")
    daemon = pinned.run(flag)
    daemon.page("one")
    with new_cgroup(pinned.cgroup.path, "a") as a:
        sent = send_datagrams(netns, a, a)
    if number == signal.SIGHUP:
        reload(daemon)
    else:
        end(daemon, number)
        daemon = pinned.run(flag)
    time.sleep(3)
    assert sent_by_a(daemon.page("one")) == [0]
    time.sleep(3)
    assert sent_by_a(daemon.page("one")) == [sent]


def test_meters_detached_before_the_next_daemon(pinned: Surroundings) -> None:
    """They are attached again, and it is said that they were not."""
    flag = pinned.configure("attach: {meters: [/a]}")
    with new_cgroup(pinned.cgroup.path, "a"):
        end(pinned.run(flag), signal.SIGKILL)
        for link in (pinned.bpffs / "sockledger/v1/links").glob("sl_meter_*"):
            run("bpftool", "link", "detach", "pinned", str(link))
        daemon = pinned.run(flag)
        assert daemon.lines("sl_meter_receive-", "attached anew", "counts are missing") == 1
        assert daemon.lines("level=WARN") == 2


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


def test_without_pins_beside_one_that_pins(pinned: Surroundings) -> None:
    """It would be refused when that one has stopped."""
    daemon = pinned.run()
    pinned.pinned = False
    assert pinned.start().process.wait(PATIENCE) == 1
    pinned.pinned = True
    assert daemon.status("/-/ready") == 200


def test_uninstall(pinned: Surroundings) -> None:
    daemon = pinned.run()
    refused = pinned.uninstall()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr
        == f"sockledger: {pinned.bpffs}: a daemon runs with what is pinned there: stop it first\n"
    )
    links = daemon.links()
    end(daemon, signal.SIGTERM)
    assert pinned.attached()
    done = pinned.uninstall()
    assert done.returncode == 0
    assert done.stdout.endswith(" pins removed\n")
    eventually(lambda: not links & existing_links(), "links gone")
    pinned.assert_clean()
    assert pinned.uninstall().stdout == f"{pinned.bpffs}: nothing is pinned\n"


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
        assert page.sum("bpf_program_attached") == len(ATTACHED) - 1
        time.sleep(MEND_SECONDS)
        eventually(lambda: daemon.page().sum("bpf_program_attached") == len(ATTACHED), "mended")
        assert names_in(home) == pins
        assert daemon.lines("attached again", "link=sl_receive") == 1
        second = pinned.start()
        eventually(
            lambda: second.lines("another sockledger counts in this cgroup") == 1, "the lock is there again"
        )
        end(daemon, signal.SIGKILL)
        second.wait_until_ready()
        sent += send_datagrams(netns, a, a)
        assert sent_by_a(second.settled()) == [sent]
        assert second.page().sum("receive_bytes_total", cgroup="/a") == sent


def test_unpinned_before_it_stops(pinned: Surroundings, netns: Netns) -> None:
    """What a hand has removed would end with the daemon: it is pinned again."""
    with new_cgroup(pinned.cgroup.path, "a") as a:
        daemon = pinned.run()
        sent = send_datagrams(netns, a, a)
        run("rm", "-r", str(pinned.bpffs / "sockledger"))
        end(daemon, signal.SIGTERM)
        sent += send_datagrams(netns, a, a)
        daemon = pinned.run()
        assert sent_by_a(daemon.page()) == [sent]
        assert daemon.lines("level=WARN") == 0


def test_unpinned_before_another_starts(pinned: Surroundings, netns: Netns) -> None:
    """It waits, and leaves the folder to the first, which pins again."""
    with new_cgroup(pinned.cgroup.path, "a") as a:
        daemon = pinned.run()
        sent = send_datagrams(netns, a, a)
        run("rm", "-r", str(pinned.bpffs / "sockledger"))
        second = pinned.start()
        eventually(lambda: second.lines(WAITING, f"cgroup={pinned.cgroup.path}") == 1, "waiting")
        refused = pinned.uninstall()
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"programs are attached at {pinned.cgroup.path}: stop the daemon" in refused.stderr
        end(daemon, signal.SIGTERM)
        assert daemon.lines("stopped: the kernel counts on") == 1
        sent += send_datagrams(netns, a, a)
        second.wait_until_ready()
        assert sent_by_a(second.page()) == [sent]


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_another_has_taken_its_place(pinned: Surroundings, number: signal.Signals, *, attached: bool) -> None:
    """Nothing can be pinned any more: it says so, touches nothing of the other's, nor attaches beside it."""
    daemon = pinned.run()
    run("rm", "-r", str(pinned.bpffs / "sockledger"))
    other = Lock(pinned.bpffs)
    assert other.try_acquire()
    with ExitStack() as counting:
        if attached:
            [ours] = hot_paths(pinned.cgroup.id)
            run("bpftool", "link", "detach", "id", str(ours))
            path = DataPath(CgroupRoot(pinned.cgroup.path), cgroups=10, sockets=10, connections=10)
            counting.callback(path.close)
            path.attach()
        daemon.send(number)
        if number == signal.SIGHUP:
            eventually(lambda: daemon.lines(WAITING, f"lock={pinned.bpffs}") == 1, "waiting")
        else:
            assert daemon.stop() == 0
            assert daemon.lines("stopped: what is not pinned is detached") == 1
        assert daemon.lines("level=ERROR", "another daemon has made it") == 1
        assert daemon.lines("attached again") == 0
    eventually(lambda: not pinned.attached(), "detached")
    other.release()
    if number == signal.SIGHUP:
        daemon.wait_until_ready()


def test_a_map_that_is_not_there_any_more(pinned: Surroundings, netns: Netns) -> None:
    with new_cgroup(pinned.cgroup.path, "a") as a:
        end(pinned.run(), signal.SIGTERM)
        sent = send_datagrams(netns, a, a)
        [path] = (pinned.bpffs / "sockledger/v1/maps").glob("tcp_totals-*")
        path.unlink()
        daemon = pinned.run()
        assert daemon.lines("level=WARN", "begins at 0, as it is not pinned", "tcp_sockets, tcp_totals") == 1
        assert sent_by_a(daemon.page()) == [sent]


def test_what_is_no_pin_is_left_alone(pinned: Surroundings, netns: Netns) -> None:
    with new_cgroup(pinned.cgroup.path, "a") as a:
        end(pinned.run(), signal.SIGTERM)
        sent = send_datagrams(netns, a, a)
        for kind in KINDS:
            (pinned.bpffs / "sockledger/v1" / kind / "sub").mkdir()
            (pinned.bpffs / "sockledger/v1" / kind / "totals-aaaaaaaa").symlink_to("nowhere")
        daemon = pinned.run()
        assert sent_by_a(daemon.page()) == [sent]
        assert daemon.lines("level=WARN") == 0


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        (
            "root",
            lambda path: path.symlink_to("abc"),
            "root names no cgroup: .* sockledger uninstall removes it",
        ),
        (
            "links/sl_receive",
            Path.mkdir,
            "sl_receive: Permission denied: remove it, or run sockledger uninstall",
        ),
        (
            "links/sl_transmit",
            lambda path: path.symlink_to("nowhere"),
            "sl_transmit: is no pin: remove it, or run sockledger uninstall",
        ),
    ],
)
def test_what_cannot_be_understood_is_one_line(
    pinned: Surroundings, name: str, make: Callable[[Path], None], reason: str
) -> None:
    end(pinned.run(), signal.SIGTERM)
    place = pinned.bpffs / "sockledger/v1" / name
    place.unlink()
    make(place)
    attached = len(pinned.attached())
    daemon = pinned.start()
    assert daemon.process.wait(PATIENCE) == 1
    *warnings, line = daemon.log.splitlines()
    assert re.search(reason, line)
    assert all("attached anew" in each for each in warnings)
    assert len(pinned.attached()) == attached


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("make", [lambda root: root.symlink_to("abc"), Path.mkdir])
def test_what_is_not_understood_while_it_runs(
    pinned: Surroundings, number: signal.Signals, make: Callable[[Path], None]
) -> None:
    daemon = pinned.run()
    root = pinned.bpffs / "sockledger/v1/root"
    root.unlink()
    make(root)
    daemon.send(number)
    if number == signal.SIGHUP:
        eventually(lambda: daemon.lines("counting") == 2, "executed anew")
    end(daemon, signal.SIGTERM)
    assert daemon.lines("pinned again") == 1
    assert daemon.lines("stopped: the kernel counts on") == 1
    assert daemon.lines("Traceback") == 0


def test_few_descriptors(pinned: Surroundings, netns: Netns) -> None:
    """Whoever has too few says so, wherever it notices, and leaves what is pinned alone."""
    home = pinned.bpffs / "sockledger"

    def start(limit: int) -> None:
        daemon = pinned.start(prefix=("prlimit", f"--nofile={limit}"))
        eventually(lambda: daemon.process.poll() is not None or counts_anew(daemon, 0), "it counts or ends")
        if daemon.process.poll() is None:
            end(daemon, signal.SIGTERM)
        else:
            line = daemon.log.splitlines()[-1]
            assert daemon.process.returncode == 1, line
            assert re.fullmatch(r"sockledger: .*Too many open files.*: raise the limit .*", line)
        assert "Traceback" not in daemon.log
        assert "uninstall" not in daemon.log
        assert names_in(home) == pins

    with new_cgroup(pinned.cgroup.path, "a") as a:
        end(pinned.run(), signal.SIGTERM)
        pins = names_in(home)
        sent = send_datagrams(netns, a, a)
        for limit in range(20, 124, 4):
            start(limit)
        assert sent_by_a(pinned.run().page()) == [sent]


def test_port_in_use(pinned: Surroundings) -> None:
    """It leaves what was there: nothing at first, and nothing is said of what it has taken off itself."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        busy = f"--web.listen-address=127.0.0.1:{taken.getsockname()[1]}"

        def refused() -> None:
            daemon = pinned.start(busy)
            assert daemon.process.wait(PATIENCE) == 1
            assert daemon.lines("address already in use") == 1
            assert daemon.lines("Traceback") == daemon.lines("counts are missing") == 0

        refused()
        assert not (pinned.bpffs / "sockledger" / "v1").exists()
        end(pinned.run("--no-collector.udp"), signal.SIGTERM)
        for _ in range(2):
            refused()
        daemon = pinned.run()
        assert daemon.lines("counts are missing") == 0
        assert daemon.page().sum("bpf_program_attached") == len(ATTACHED)


def test_bpffs_is_unmounted(pinned: Surroundings, netns: Netns) -> None:
    """While nobody can mount it again, nothing ends; then all goes on."""
    with new_cgroup(pinned.cgroup.path, "a") as a:
        daemon = pinned.run()
        sent = send_datagrams(netns, a, a)
        run("umount", "--lazy", str(pinned.bpffs))
        occupied = pinned.bpffs / "occupied"
        occupied.touch()
        daemon.send(signal.SIGHUP)
        eventually(lambda: daemon.lines("not executed anew", "see --path.bpffs") == 1)
        occupied.unlink()
        daemon.send(signal.SIGHUP)
        eventually(lambda: daemon.lines("counting") == 2, "executed anew")
        assert daemon.lines("pinned again") == 1
        daemon.wait_until_ready()
        assert sent_by_a(daemon.page()) == [sent]


def test_bpffs_is_read_only(pinned: Surroundings, netns: Netns) -> None:
    """As Kubernetes mounts a hostPath that is said to be: one line each."""
    with new_cgroup(pinned.cgroup.path, "a") as a:
        end(pinned.run(), signal.SIGTERM)
        sent = send_datagrams(netns, a, a)
        home = pinned.bpffs / "sockledger"
        reason = f"{home}: Read-only file system: make it writable (mount -o remount,rw {pinned.bpffs}, "
        reason += "ReadWritePaths= in a systemd unit, no readOnly volumeMount)"
        run("mount", "-o", "remount,ro", str(pinned.bpffs))
        daemon = pinned.start()
        assert daemon.process.wait(PATIENCE) == 1
        refused = pinned.uninstall()
        assert (refused.returncode, refused.stdout) == (1, "")
        assert daemon.log == refused.stderr == f"sockledger: {reason}\n"
        paths = (f"--path.cgroupfs={pinned.cgroup.path}", f"--path.bpffs={pinned.bpffs}")
        asked = subprocess.run((SOCKLEDGER, "doctor", *paths), capture_output=True, text=True, check=False)
        assert (asked.returncode, asked.stderr) == (1, "")
        assert [line for line in asked.stdout.splitlines() if line.startswith("FAIL")] == [
            f"FAIL  bpffs: {reason}"
        ]
        run("mount", "-o", "remount,rw", str(pinned.bpffs))
        daemon = pinned.run()
        assert sent_by_a(daemon.page()) == [sent]
        run("mount", "-o", "remount,ro", str(pinned.bpffs))
        daemon.send(signal.SIGHUP)
        eventually(lambda: daemon.lines("not executed anew", "Read-only file system: make it writable") == 1)
        end(daemon, signal.SIGTERM)
        assert daemon.lines("Traceback") == daemon.lines("pinning again failed") == 0
        assert daemon.lines("stopped: the kernel counts on") == 1
        run("mount", "-o", "remount,rw", str(pinned.bpffs))
        assert sent_by_a(pinned.run().page()) == [sent]


def test_uninstall_follows_nobody_s_link(pinned: Surroundings) -> None:
    precious = pinned.folder / "precious"
    (precious / "sub").mkdir(parents=True)
    home = pinned.bpffs / "sockledger"
    home.mkdir(mode=0o700)
    (home / "v2").symlink_to(precious)
    assert pinned.uninstall().stdout == f"{pinned.bpffs}: nothing is pinned\n"
    assert (precious / "sub").exists()
    (home / "v2").unlink()
    home.rmdir()


def test_uninstall_elsewhere(pinned: Surroundings) -> None:
    pinned.bpffs, bpffs = pinned.folder, pinned.bpffs
    refused = pinned.uninstall()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "not a BPF file system" in refused.stderr
    pinned.bpffs = bpffs


def test_a_folder_of_another_user(pinned: Surroundings) -> None:
    home = pinned.bpffs / "sockledger"
    home.mkdir()
    os.chown(home, 65534, 65534)
    daemon = pinned.start()
    assert daemon.process.wait(PATIENCE) == 1
    assert daemon.log == f"sockledger: {home}: belongs to another user: remove it\n"
    home.rmdir()


def test_a_limit_is_warned_of_when_it_is_reached(pinned: Surroundings, netns: Netns) -> None:
    with ExitStack() as stack:
        cgroups = [stack.enter_context(new_cgroup(pinned.cgroup.path, name)) for name in "abc"]
        daemon = pinned.run(pinned.configure("limits: {cgroups: 1, label_sets: 1}"))
        for cgroup in cgroups:
            for family in ("ipv4", "ipv6"):
                send_datagrams(netns, cgroup, cgroup, family=family)
                converse(netns, cgroup, cgroup, size=100, family=family)
        daemon.settled()
        assert daemon.lines("the totals are full") == 1
        end(daemon, signal.SIGTERM)
        daemon = pinned.run(pinned.configure("limits: {cgroups: 100}"))
        daemon.page()
        assert daemon.lines("the totals are full") == 0


def names_in(folder: Path) -> list[str]:
    return sorted(run("find", str(folder), "-printf", "%P\\n").splitlines())
