"""Meters follow the globs as cgroups come and go, and agree with the workloads below them."""

import json
import os
import signal
import socket
from contextlib import ExitStack, closing
from pathlib import Path

from tests.daemon.support import Page, Surroundings
from tests.daemon.test_bad_input import exclusive
from tests.daemon.traffic import send_datagrams
from tests.kernel.machine import Cgroup, Netns, new_cgroup, run
from tests.patience import eventually

FAST = "flush: {interval: 100ms}\n"
MEASURES = ("receive_bytes_total", "receive_packets_total", "transmit_bytes_total", "transmit_packets_total")


def points(page: Page) -> set[str]:
    return page.labels("attach_point_receive_bytes_total", "attach_point")


def of_subtree(page: Page, measure: str, path: str) -> int:
    """What the workloads of a cgroup and of those below it have."""
    cgroups = {
        cgroup
        for cgroup in page.labels(measure, "cgroup")
        if cgroup == path or cgroup.startswith(path.rstrip("/") + "/")
    }
    return sum(page.sum(measure, cgroup=cgroup) for cgroup in cgroups)


def test_agree_with_workloads(place: Surroundings, netns: Netns) -> None:
    with ExitStack() as stack:
        parent = stack.enter_context(new_cgroup(place.cgroup.path, "parent"))
        first, second = (stack.enter_context(new_cgroup(parent.path, name)) for name in ("first", "second"))
        outside = stack.enter_context(new_cgroup(place.cgroup.path, "outside"))
        daemon = place.run(place.configure("attach: {meters: [/parent, '/parent/*']}"))
        for sender, receiver, family in (
            (first, second, "ipv4"),
            (second, parent, "ipv6"),
            (parent, outside, "ipv4"),
            (outside, first, "ipv6"),
        ):
            send_datagrams(netns, sender, receiver, family=family)
        page = daemon.settled()
        assert points(page) == {"/", "/parent", "/parent/first", "/parent/second"}
        for measure in MEASURES:
            for point in points(page):
                counted = page.sum(f"attach_point_{measure}", attach_point=point)
                assert counted == of_subtree(page, measure, point) > 0
            children = sum(
                page.sum(f"attach_point_{measure}", attach_point=f"/parent/{name}")
                for name in ("first", "second")
            )
            own = page.sum(measure, cgroup="/parent")
            assert page.sum(f"attach_point_{measure}", attach_point="/parent") == children + own


def test_follow_cgroups(place: Surroundings, netns: Netns) -> None:
    daemon = place.run(place.configure(f"attach: {{meters: ['/pods/*']}}\n{FAST}"))
    root_only = len(place.attached())
    with new_cgroup(place.cgroup.path, "pods") as pods:
        with new_cgroup(pods.path, "late") as late:
            eventually(lambda: points(daemon.page()) == {"/", "/pods/late"}, "followed")
            sent = send_datagrams(netns, late, late)
            page = daemon.settled()
            assert page.sum("attach_point_transmit_bytes_total", attach_point="/pods/late") == sent
            assert page.sum("transmit_bytes_total", cgroup="/pods/late") == sent
        eventually(lambda: points(daemon.page()) == {"/"}, "its series end")
        assert len(place.attached()) == root_only
        assert daemon.page().sum("transmit_bytes_total", cgroup="/pods/late") == sent, "a workload's do not"

        with new_cgroup(pods.path, "late") as late:  # the same path again, another cgroup
            eventually(lambda: points(daemon.page()) == {"/", "/pods/late"}, "followed again")
            sent = send_datagrams(netns, late, late, number=3)
            page = daemon.settled()
            assert page.sum("attach_point_transmit_bytes_total", attach_point="/pods/late") == sent
    assert daemon.lines("level=WARN") == daemon.lines("level=ERROR") == 0


def test_a_cgroup_that_is_made_again(place: Surroundings, netns: Netns) -> None:
    """Under its path, between two pages or two daemons: the counter is another, and born at 0."""
    place.pinned = True
    flag = place.configure(f"attach: {{meters: [/a]}}\n{FAST}")
    daemon = place.run(flag)
    shown = []
    for number, killed in ((10, False), (30, False), (50, True), (70, True)):
        with new_cgroup(place.cgroup.path, "a") as a:
            if killed:
                daemon = place.run(flag)
            eventually(lambda path=a.path: len(place.attached_by_cgroup().get(path, ())) == 2)  # type: ignore[misc]
            sent = send_datagrams(netns, a, a, number=number)
            pages = [daemon.settled("one"), *(daemon.page("one") for _ in range(2))]
            counted = [page.sum("attach_point_transmit_bytes_total", attach_point="/a") for page in pages]
            assert counted == [0, sent, sent]
            shown.append(pages[-1].sum("map_entries", map="shown"))
            if number > 10:
                daemon.stop(signal.SIGKILL)
    assert len(set(shown)) == 1, "those that are over are forgotten"


def test_root_is_never_matched(place: Surroundings) -> None:
    with new_cgroup(place.cgroup.path, "a") as a, new_cgroup(a.path, "b"):
        daemon = place.run(place.configure("attach: {meters: ['/**', '/*', '/**/*']}"))
        page = daemon.page()
        assert points(page) == {"/", "/a", "/a/b"}
        attached = place.attached_by_cgroup()
        assert len(attached[place.cgroup.path]) == 4, "traffic in and out, TCP, UDP, and no meter"
        assert len(attached[a.path]) == 2


def test_exclusive_program(place: Surroundings, exclusive_program: Path) -> None:
    with ExitStack() as stack:
        taken, free = (stack.enter_context(new_cgroup(place.cgroup.path, name)) for name in ("taken", "free"))
        stack.enter_context(exclusive(place, exclusive_program, taken.path))
        daemon = place.run(place.configure(f"attach: {{meters: ['/*']}}\n{FAST}"))
        assert points(daemon.settled()) == {"/", f"/{free.path.name}"}
        assert daemon.lines("meter not attached", "/taken: the cgroup refuses program sl_meter_transmit") == 1
        assert daemon.lines("level=WARN") == 1
        assert len(place.attached_by_cgroup()[taken.path]) == 1, "the other's; no half a meter"


def test_more_meters_than_the_limit_allows(place: Surroundings, netns: Netns) -> None:
    """A flush, scrapes and their connections have their descriptors all the same."""
    with ExitStack() as stack:
        cgroups = [stack.enter_context(new_cgroup(place.cgroup.path, f"c{n}")) for n in range(40)]
        flag = place.configure(f"attach: {{meters: ['/*']}}\n{FAST}")
        daemon = place.run(flag, prefix=("prlimit", "--nofile=264:264"))
        assert len(points(daemon.settled())) == 1 + 18
        for cgroup in cgroups:
            send_datagrams(netns, cgroup, cgroup)
        assert {f"/c{n}" for n in range(40)} <= daemon.settled().labels("transmit_bytes_total", "cgroup")
        assert daemon.lines("level=WARN") == daemon.lines("not all meters are attached", "wanted=40") == 1
        assert daemon.lines("level=ERROR") == 0
        for _ in range(200):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", daemon.port))))
        assert daemon.page().sum("scrape_collector_success") == 7
        assert daemon.lines("all 66 connections are in use") == 1


def test_hidden_and_alike(place: Surroundings, netns: Netns) -> None:
    r"""A byte that is no UTF-8 is shown as \xff; a cgroup that is called so shares its series."""
    with ExitStack() as stack:
        names = (".hidden", os.fsdecode(b"a\xff"), r"a\xff")
        hidden, byte, text = (stack.enter_context(new_cgroup(place.cgroup.path, name)) for name in names)
        daemon = place.run(place.configure("attach: {meters: ['/*']}"))
        sent = [send_datagrams(netns, each, each, number=n) for n, each in enumerate((hidden, byte, text), 1)]
        page = daemon.settled()
        assert points(page) == {"/", "/.hidden", r"/a\xff"}
        for name, total in (("/.hidden", sent[0]), (r"/a\xff", sent[1] + sent[2])):
            assert page.sum("attach_point_transmit_bytes_total", attach_point=name) == total
            assert page.sum("transmit_bytes_total", cgroup=name) == total


def test_more_meters_than_descriptors(place: Surroundings) -> None:
    """The usual soft limit does not matter; 60 stands for 1024."""
    with ExitStack() as stack:
        names = {f"/{number}" for number in range(40)}
        for name in names:
            stack.enter_context(new_cgroup(place.cgroup.path, name.strip("/")))
        flag = place.configure("attach: {meters: ['/*']}")
        daemon = place.run(flag, prefix=("prlimit", "--nofile=60:1000"))
        assert points(daemon.page()) == names | {"/"}


def test_a_folder_that_is_closed(place: Surroundings, netns: Netns) -> None:
    """Who owns it may close it to a daemon without CAP_DAC_READ_SEARCH: it ends neither that nor a meter."""
    with ExitStack() as stack:
        user = stack.enter_context(new_cgroup(place.cgroup.path, "user"))
        app = stack.enter_context(new_cgroup(user.path, "app"))
        goes = Cgroup(user.path / "goes")
        goes.path.mkdir()
        place.pinned = True
        flag = place.configure(FAST + "attach: {meters: ['/user/*']}")
        for path in (user.path, app.path):
            os.chown(path, 1000, -1)
        without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        daemon = place.run(flag, prefix=without)
        total = send_datagrams(netns, app, app)
        assert daemon.settled().sum("attach_point_transmit_bytes_total", attach_point="/user/app") == total
        user.path.chmod(0o700)
        total += send_datagrams(netns, app, app)
        page = daemon.settled()
        assert page.sum("attach_point_transmit_bytes_total", attach_point="/user/app") == total
        assert page.sum("transmit_bytes_total", cgroup="/user/app") == total
        goes.path.rmdir()
        eventually(lambda: points(daemon.page()) == {"/", "/user/app"}, "its end is seen all the same")
        assert not daemon.lines("flush failed")
        daemon.process.kill()
        daemon.process.wait()
        daemon = place.run(prefix=without)
        assert daemon.settled().sum("transmit_bytes_total", cgroup="/user/app") == total
        [cgroups] = (place.bpffs / "sockledger" / "v1" / "maps").glob("cgroups-*")
        for entry in json.loads(run("bpftool", "-j", "map", "dump", "pinned", str(cgroups))):
            assert not entry["formatted"]["value"]["removed"], "not seen is not gone"
