"""One daemon at a time: a second one waits, and takes over when the first is gone, however it ended."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest
from tests.daemon.support import Daemon, Surroundings, existing_links, free_port
from tests.daemon.traffic import send_datagrams
from tests.kernel.ledger import attached
from tests.kernel.machine import Netns, new_cgroup, run
from tests.patience import eventually

from sockledger.daemon import ATTACHMENTS_POLL_SECONDS
from sockledger.errors import UserError
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.lock import Lock

WAITING = "another sockledger counts in this cgroup or holds the lock: waiting"


def _starts(daemons: list[Daemon], number: int) -> bool:
    return sum(daemon.lines("msg=counting") for daemon in daemons) == number


def waiting(place: Surroundings, *flags: str) -> Daemon:
    daemon = place.start(*flags)
    eventually(lambda: daemon.lines(WAITING) == 1, "waiting")
    return daemon


def test_second_waits_then_serves(place: Surroundings, netns: Netns) -> None:
    with new_cgroup(place.cgroup.path, "a") as a, new_cgroup(place.cgroup.path, "b") as b:
        first = place.run()
        programs = place.attached()
        second = waiting(place)
        sent = send_datagrams(netns, a, b)
        assert place.attached() == programs
        assert not second.links()
        assert second.status("/-/ready") == 0, "it listens only when it counts"
        assert first.settled().sum("transmit_bytes_total", cgroup="/a") == sent

        assert first.stop() == 0
        second.wait_until_ready()
        assert len(place.attached()) == len(programs)
        assert second.log.count(WAITING) == 1
        sent = send_datagrams(netns, a, b)
        assert second.settled().sum("transmit_bytes_total", cgroup="/a") == sent


def test_killed_first(place: Surroundings) -> None:
    first = place.run()
    links, programs = first.links(), place.attached()
    second = waiting(place)
    first.process.kill()
    first.process.wait()
    eventually(lambda: not links & existing_links(), "links vanish")
    second.wait_until_ready()
    eventually(lambda: not programs & place.attached(), "programs vanish")
    assert second.page().sum("config_last_reload_successful") == 1


def test_killed_alone(place: Surroundings) -> None:
    first = place.run()
    first.process.kill()
    first.process.wait()
    eventually(lambda: not place.attached(), "programs vanish")
    assert place.run().lines(WAITING) == 0, "its folder is left, its lock is not"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_one_can_be_stopped(place: Surroundings, number: signal.Signals) -> None:
    first = place.run()
    second = waiting(place)
    second.send(signal.SIGHUP)
    assert second.stop(number) == 0
    assert first.status("/-/ready") == 200


def test_third_takes_its_turn(place: Surroundings) -> None:
    """Of several that wait one gets in, each time: the folder comes and goes between their looks."""
    daemons = [place.run(), *(waiting(place) for _ in range(3))]
    while len(daemons) > 1:
        counting = [daemon for daemon in daemons if daemon.lines("msg=counting")]
        assert len(counting) == 1
        assert counting[0].stop() == 0
        daemons.remove(counting[0])
        eventually(lambda: any(daemon.status("/-/ready") == 200 for daemon in daemons), "another one")


def test_folder_removed_before_it_is_locked(place: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a folder that is gone would be no lock: the next one makes a new folder."""
    first, second = Lock(place.bpffs), Lock(place.bpffs)
    assert first.try_acquire()
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        first.release()
        flock(fd, operation)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", late)
        assert not second.try_acquire()
    assert second.try_acquire()
    assert not first.try_acquire()
    second.release()


def test_folder_of_another_daemon_stays(place: Surroundings) -> None:
    """Somebody has removed the first one's folder, and a second one has made another."""
    first, second, third = (Lock(place.bpffs) for _ in range(3))
    assert first.try_acquire()
    (place.bpffs / "sockledger").rmdir()
    assert second.try_acquire()
    with pytest.raises(UserError, match="another daemon has made it"):
        first.renew()
    first.release()
    assert not third.try_acquire()
    second.release()


def test_folder_that_is_removed_is_made_again(place: Surroundings) -> None:
    lock, other = Lock(place.bpffs), Lock(place.bpffs)
    assert lock.try_acquire()
    (place.bpffs / "sockledger").rmdir()
    lock.renew()
    assert not other.try_acquire()
    lock.release()


def test_folder_of_others_stays(place: Surroundings) -> None:
    daemon = place.run()
    other = place.bpffs / "sockledger" / "other"
    other.mkdir()
    assert daemon.stop() == 0
    other.rmdir()
    other.parent.rmdir()


@pytest.fixture
def other_bpffs(place: Surroundings) -> Iterator[str]:
    """The flag that names a BPF file system of its own, as a pod has that does not see the host's."""
    folder = place.folder / "other-bpf"
    folder.mkdir()
    run("mount", "-t", "bpf", "bpf", str(folder))
    yield f"--path.bpffs={folder}"
    eventually(lambda: not (folder / "sockledger").exists(), "the lock is released")
    run("umount", str(folder))


def test_another_bpffs(place: Surroundings, other_bpffs: str) -> None:
    first = place.run()
    programs = place.attached()
    second = waiting(place, other_bpffs)
    assert second.lines(WAITING, f"cgroup={place.cgroup.path}") == 1
    time.sleep(1.5 * ATTACHMENTS_POLL_SECONDS)
    assert second.status("/-/healthy") == 0
    assert place.attached() == programs
    assert first.stop() == 0
    second.wait_until_ready()
    assert second.lines(WAITING) == 1
    second.stop()


@pytest.mark.parametrize("_round", range(5))
def test_two_start_at_once_with_another_bpffs(place: Surroundings, other_bpffs: str, _round: int) -> None:
    address = f"--web.listen-address=127.0.0.1:{free_port()}"
    pair = [place.start(address), place.start(address, other_bpffs)]
    eventually(lambda: any(daemon.lines("msg=counting") for daemon in pair), "one counts")
    eventually(lambda: any(daemon.lines(WAITING) for daemon in pair), "one waits")
    [counting] = [daemon for daemon in pair if daemon.lines("msg=counting")]
    assert not any(daemon.links() for daemon in pair if daemon is not counting)
    for daemon in pair:
        daemon.stop()


def test_reload_beside_another_hot_path(place: Surroundings) -> None:
    """What it finds attached when it comes back is another daemon's; until that goes it does not listen."""
    daemon = place.run()
    root = CgroupRoot(place.cgroup.path)
    with attached(root):
        daemon.send(signal.SIGHUP)
        eventually(lambda: daemon.lines(WAITING, f"cgroup={place.cgroup.path}") == 1, "waiting")
        assert daemon.status("/-/healthy") == 0
    daemon.wait_until_ready()
    os.close(root.fd)


def test_reload_is_no_end(place: Surroundings, other_bpffs: str) -> None:
    """Who executes itself anew is not gone, also to one that waits with the same address."""
    address = f"--web.listen-address=127.0.0.1:{free_port()}"
    first = place.start(address)
    eventually(lambda: first.lines("msg=counting") == 1, "counting")
    second = waiting(place, address, other_bpffs)
    for reloads in range(1, 6):
        first.send(signal.SIGHUP)
        eventually(partial(_starts, [first], reloads + 1), "counting anew")
        time.sleep(ATTACHMENTS_POLL_SECONDS * (1.1 + reloads / 10))  # a look falls between two reloads
    assert second.process.poll() is None
    assert second.lines("msg=counting") == 0
    first.stop()
    eventually(lambda: second.lines("msg=counting") == 1, "its turn")
    second.stop()


def refuse_reload(place: Surroundings, daemon: Daemon) -> None:
    place.configure("limits: {cgroups: none}")
    daemon.send(signal.SIGHUP)
    eventually(lambda: daemon.lines("configuration refused") == 1, "refused")


def test_reload_while_waiting(place: Surroundings) -> None:
    first = place.run()
    second = waiting(place, place.configure("limits: {cgroups: 100}"))
    refuse_reload(place, second)
    place.configure("limits: {cgroups: 200}")
    second.send(signal.SIGHUP)
    first.stop()
    second.wait_until_ready()
    assert second.page().sum("map_max_entries", map="cgroups") == 200
    assert second.page().sum("config_last_reload_successful") == 1


def test_refused_reload_while_waiting(place: Surroundings) -> None:
    first = place.run()
    second = waiting(place, place.configure(""))
    refuse_reload(place, second)
    first.stop()
    second.wait_until_ready()
    assert second.page().sum("config_last_reload_successful") == 0
