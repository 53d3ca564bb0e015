"""What processes send and receive, up to the page: born at 0, kept over SIGKILL and their cgroups' ends."""

import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.daemon.support import SOCKLEDGER, Daemon, Page, Surroundings
from tests.daemon.test_bad_input import in_mounts
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.kernel.test_tasks import Key, Moved, by_family, call, talk_under_names
from tests.patience import eventually
from tests.scrapes import Scrapes

from sockledger.kernel.features import BTF, tells_calls

pytestmark = pytest.mark.skipif(not tells_calls(), reason="this kernel has no sock_send_length (before 6.3)")

# in the order of `Moved`
TASKS = ("task_sent_bytes", "task_send_calls", "task_received_bytes", "task_receive_calls")


def figures(page: Page, cgroup: str) -> dict[Key, Moved]:
    """What processes of a cgroup have moved, by comm and family."""
    found: defaultdict[Key, list[int]] = defaultdict(lambda: [0] * len(TASKS))
    for (name, labels), value in page.samples.items():
        of = dict(labels)
        for index, metric in enumerate(TASKS):
            if name == f"sockledger_{metric}_total" and of["cgroup"] == cgroup:
                found[of["comm"], of["family"]][index] += int(value)
    return {key: tuple(each) for key, each in found.items()}


def unix(page: Page, cgroup: str) -> tuple[int, int]:
    return page.sum("unix_sent_bytes_total", cgroup=cgroup), page.sum(
        "unix_received_bytes_total", cgroup=cgroup
    )


def plus(one: Mapping[Key, Moved], other: Mapping[Key, Moved]) -> dict[Key, Moved]:
    nothing = (0,) * len(TASKS)
    return {
        key: tuple(map(sum, zip(one.get(key, nothing), other.get(key, nothing), strict=True)))
        for key in one.keys() | other.keys()
    }


def test_by_default(place: Surroundings, netns: Netns) -> None:
    """AF_UNIX alone, in two series; of these increases are exact."""
    scrapes = Scrapes()
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run()
        scrapes.take("one", daemon.settled("one").text)
        sent, _, received, _ = by_family(call(netns, a, processes=50, at_once=10, threads=2, rounds=8))[
            "unix"
        ]
        for _ in range(2):
            page = daemon.settled("one")
            scrapes.take("one", page.text)
        assert unix(page, "/a") == unix(Page(scrapes.increases("one")), "/a") == (sent, received)
        assert "sockledger_task_" not in page.text
        daemon.stop()
        daemon = place.run("--no-collector.unix")
        call(netns, a, processes=1, at_once=1, threads=2, rounds=8)
        assert "sockledger_unix_" not in daemon.settled().text


def run(place: Surroundings, config: str = "", **limits: int) -> Daemon:
    limits = {"comms": 6, **limits}
    text = ", ".join(f"{name}: {value}" for name, value in limits.items())
    config += f"\npersist: {{gone: 1s}}\nlimits: {{{text}}}"
    return place.run("--collector.tasks", place.configure(config))


def test_killed_and_gone(place: Surroundings) -> None:
    """Nothing is lost by SIGKILL, with other limits after it; and a cgroup that is made again goes on."""
    place.pinned = True
    scrapes, truth = Scrapes(), dict[Key, Moved]()
    daemon = run(place)

    def look(daemon: Daemon) -> None:
        for _ in range(2):
            page = daemon.settled("one")
            scrapes.take("one", page.text)
        assert figures(page, "/a") == figures(Page(scrapes.increases("one")), "/a") == truth
        sums = by_family(truth).get("unix", (0,) * len(TASKS))
        assert unix(page, "/a") == (sums[0], sums[2])

    look(daemon)
    for turn in range(2):
        with new_cgroup(place.cgroup.path, "a") as a:
            truth = plus(truth, talk_under_names((a,))[a.id])
            look(daemon)
            daemon.process.kill()
            daemon.process.wait()
            truth = plus(truth, talk_under_names((a,))[a.id])
            daemon = run(place, cgroups=200 + turn)
            look(daemon)
        look(daemon)


def test_names_that_never_come_back(place: Surroundings, netns: Netns) -> None:
    """Of a workload as many are kept as a cgroup may have. The rest ends, and is born again when it comes."""
    daemon, scrapes = run(place), Scrapes(ending=True)

    def look() -> dict[Key, Moved]:
        for _ in range(2):
            page = daemon.settled("one")
            scrapes.take("one", page.text)
        assert figures(Page(scrapes.increases("one")), "/a").keys() >= figures(page, "/a").keys()
        assert by_family(figures(Page(scrapes.increases("one")), "/a")) == by_family(truth)
        assert unix(page, "/a") == tuple(by_family(truth)["unix"][index] for index in (0, 2)), "nothing of it"
        return figures(page, "/a")

    def names(page: Page) -> set[str]:
        return {comm for comm, _ in figures(page, "/a")}

    with new_cgroup(place.cgroup.path, "a") as a:
        truth = talk_under_names((a,))[a.id]
        look()
    eventually(lambda: not names(daemon.settled("one")))
    for turn in range(3):
        with new_cgroup(place.cgroup.path, "a") as a:
            truth = plus(truth, call(netns, a, processes=50, at_once=10, threads=2, rounds=8))
            callers = {comm for comm, _ in look() if comm.startswith("caller")}
            # of the first turn one is kept, which may be the one that is not told apart now
            assert len(callers) == 6 or (turn and len(callers) == 7)
        eventually(lambda: not names(daemon.settled("one")))


def test_renamed_with_more_names_than_are_kept(place: Surroundings) -> None:
    """Each leaves what it has counted where it was, whoever leaves beside it."""
    place.pinned = True
    scrapes, once, twice = Scrapes(ending=True), (4, 4), (8, 8)

    def look(daemon: Daemon) -> Page:
        for _ in range(2):
            page = daemon.settled("one")
            scrapes.take("one", page.text)
        return page

    with new_cgroup(place.cgroup.path, "a") as a, ExitStack() as stack:
        children = [stack.enter_context(new_cgroup(a.path, f"child{number}")) for number in range(6)]
        speakers = [
            stack.enter_context(speaker(child, f"name{number // 2}")) for number, child in enumerate(children)
        ]
        daemon = run(place, "aggregate: 1", comms=2)
        look(daemon)
        for speak in speakers:
            speak()
        assert unix(look(daemon), "/a") == (24, 24)
        assert {comm for comm, _ in figures(daemon.settled("one"), "/a")} == {"name0", "name1", "name2"}
        for turn in (once, twice):
            daemon.process.kill()
            daemon.process.wait()
            daemon = run(place, comms=2)
            look(daemon)
            for speak in speakers:
                speak()
            page = look(daemon)
            assert [unix(page, f"/a/{child.path.name}") for child in children] == [turn] * 6
            assert unix(page, "/a") == (24, 24)
            assert {comm for comm, _ in figures(page, "/a")} == {"name0", "name1", "name2"}


# Each time that it is told to it sends to itself.
SPEAKER = """
import pathlib, socket, sys
pathlib.Path("/proc/self/comm").write_text(sys.argv[1])
near, far = socket.socketpair()
for line in sys.stdin:
    near.send(b"text")
    far.recv(4)
    print("done", flush=True)
"""


@contextmanager
def speaker(cgroup: Cgroup, name: str) -> Iterator[Callable[[], None]]:
    command = (sys.executable, "-c", SPEAKER, name)
    with cgroup.joined():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def speak() -> None:
        assert process.stdin
        assert process.stdout
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "done\n"

    with process:
        yield speak
        process.communicate()


def test_more_names_than_before(place: Surroundings) -> None:
    """Who was one of the others is told apart when there is room, though he stays who he is."""
    place.pinned = True
    one = (4, 1, 4, 1)
    with (
        new_cgroup(place.cgroup.path, "a") as a,
        speaker(a, "first") as first,
        speaker(a, "second") as second,
    ):
        daemon = run(place, comms=1)
        first()
        second()
        assert figures(daemon.settled(), "/a") == {("first", "unix"): one, ("other", "unix"): one}
        daemon.stop()
        daemon = run(place, comms=2)
        second()
        assert figures(daemon.settled(), "/a") == {
            ("first", "unix"): one,
            ("other", "unix"): one,
            ("second", "unix"): one,
        }


def test_in_a_pid_namespace(place: Surroundings, netns: Netns) -> None:
    """From which no walk finds anybody's processes: each call is added at once."""
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run("--collector.tasks", prefix=("unshare", "--pid", "--fork", "--kill-child"))
        with speaker(a, "living") as living:
            living()
            truth = call(netns, a, processes=50, at_once=10, threads=2, rounds=8)
            assert figures(daemon.settled(), "/a") == {**truth, ("living", "unix"): (4, 1, 4, 1)}
        (child,) = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert daemon.process.wait() == 0


def test_not_on_this_kernel(place: Surroundings, netns: Netns, tmp_path: Path) -> None:
    """As one that does not have the tracepoints: nothing is shown, and all else goes on."""
    another = tmp_path / "vmlinux"
    another.write_bytes(
        BTF.read_bytes().replace(b"btf_trace_sock_send_length", b"btf_trace_sock_send_lengt_")
    )
    prefix = in_mounts(f"mount --bind {another} {BTF}")
    command = (*prefix, SOCKLEDGER, "doctor", f"--path.cgroupfs={place.cgroup.path}")
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "no    calls on sockets: not on this kernel (sock_send_length, Linux 6.3)" in said
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run("--collector.tasks", prefix=prefix)
        call(netns, a, processes=1, at_once=1, threads=2, rounds=8)
        page = daemon.settled()
        assert not re.search("sockledger_(unix|task)_", page.text)
        assert page.sum("transmit_bytes_total", cgroup="/a") > 0
