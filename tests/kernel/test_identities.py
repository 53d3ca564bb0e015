"""Who is named otherwise leaves what he has counted to the name that he had, and begins anew at 0."""

import errno
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import pytest
from tests.daemon.support import Page
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.kernel.tcp import Ends, deaf_socket, new_ends, reset
from tests.kernel.test_gone import (
    DAY,
    GONE,
    SECOND,
    Clock,
    Daemon,
    Killed,
    assert_balanced,
    attached,
    entries,
    fold,
    killed_at,
    ledger_of,
    released,
    send,
    sent,
)
from tests.scrapes import Scrapes

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.noted import LABELS_BYTES, CgroupLabels
from sockledger.ledger.ledger import Ledger
from sockledger.workloads.naming import Naming, Workload

NO_RULE = ""
AS_UNIT = r"/(?P<unit>\w+)$"
TOGETHER = r"^/(?P<container>.)"


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Daemons:
    """One after another over the same maps, each with a rule of its own, and a scraper of all."""

    def __init__(self, path: DataPath, below: CgroupRoot, clock: Clock) -> None:
        self._path, self._below, self._clock = path, below, clock
        self._scrapes = Scrapes()

    def begin(self, rule: str) -> None:
        self.begin_with(Naming([re.compile(rule)] if rule else ()))

    def begin_with(self, naming: Naming, most_workloads: int = sys.maxsize) -> None:
        self._daemon = Daemon(self._path, self._below, self._clock, naming, most_workloads)

    @property
    def ledger(self) -> Ledger:
        return self._daemon.ledger

    def scrape(self, pages: int = 2) -> Page:
        """Each page is of a flush of its own; the last has all values."""
        for _ in range(pages):
            page = self._daemon.page()
            self._scrapes.take("one", page)
        return Page(page)

    def increases(self, name: str) -> dict[str, int]:
        """Return what the scraper has seen of a counter, by the label that names a workload."""
        found: Counter[str] = Counter()
        for of, value in self._increases(name):
            found[of["unit"] or of["container"] or of["cgroup"]] += value
        return dict(+found)

    def _increases(self, name: str) -> Iterator[tuple[dict[str, str], int]]:
        page = Page(self._scrapes.increases("one"))
        for (counter, labels), value in page.samples.items():
            if counter == f"sockledger_{name}_total":
                yield dict(labels), int(value)


def test_counters_stay_and_gauges_go(below: CgroupRoot, ends: Ends, clock: Clock) -> None:
    """Of all that is counted."""
    with attached(below) as path:
        daemons = Daemons(path, below, clock)
        daemons.begin(NO_RULE)
        pairs = ends.pairs(3)
        for pair in pairs:
            pair.exchange(1000, 3000)
        deaf_socket(ends)  # five drops
        before = daemons.scrape()
        daemons.begin(AS_UNIT)
        after = daemons.scrape()
        for name in ("/client", "/server"):
            old, new = {"cgroup": name, "unit": ""}, {"cgroup": "", "unit": name[1:]}
            counted = [
                (sample, labels)
                for sample, labels in before.samples
                if old.items() <= dict(labels).items()
                and sample.endswith("_total")
                and "listen_drops" not in sample  # the 0 of a listener goes with it
            ]
            assert len(counted) >= 20
            for sample, labels in counted:
                assert after.samples[sample, labels] == before.samples[sample, labels]
                assert not any(after.values(sample, **new))
            role = "active" if name == "/client" else "passive"
            for of, now in ((old, 0), (new, 3)):
                assert after.values("sockledger_tcp_connections", role=role, **of) == [now]
                assert sum(after.values("sockledger_tcp_sockets", state="established", **of)) == now
        assert before.sum("udp_receive_drops_total", cgroup="/server") == 5
        for pair in pairs:
            pair.exchange(1000, 3000)
        deaf_socket(ends)
        page = daemons.scrape()
        assert page.sum("tcp_acked_bytes_total", unit="client") == 3000
        assert page.sum("tcp_received_bytes_total", unit="client") == 9000
        assert page.sum("udp_receive_drops_total", unit="server") == 5
        assert page.sum("udp_receive_drops_total", cgroup="/server") == 5
        for pair in pairs:
            pair.client.close()
            pair.server.close()
        page = daemons.scrape()
        assert page.sum("tcp_connections") == 0
        assert page.sum("tcp_connections_opened_total", role="active") == 3
        assert page.sum("tcp_connections_closed_total", role="active") == 3
        assert_balanced(path, below)


def test_killed_at_any_call(
    parent: Cgroup,
    below: CgroupRoot,
    client: Cgroup,
    server: Cgroup,
    netns: Netns,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever rule the next daemon has: the scraper gets each byte once, and sees no counter fall."""
    rules = (NO_RULE, AS_UNIT, TOGETHER)
    with attached(below) as path, new_cgroup(parent.path, "cell") as cell:
        daemons = Daemons(path, below, clock)
        daemons.begin(NO_RULE)
        total = now = 0
        killed = True
        for call in count():
            if not killed:
                break
            for cgroup in (client, server, cell):
                total += send(netns, cgroup, 1 + call)
            daemons.scrape()
            total += send(netns, client, 1)
            daemons.begin(rules[(now + 1) % 3])
            try:
                with killed_at(monkeypatch, call):
                    daemons.scrape(1)
                    killed = False
            except Killed:
                now = (now + call // 2) % 3  # the one before, the killed one, the third
                daemons.begin(rules[now])
            daemons.scrape()
            assert sum(daemons.increases("transmit_bytes").values()) == total
        assert call > 15
        names = daemons.increases("transmit_bytes").keys()
        assert names == {"client", "server", "cell", "c", "s", "/client", "/server", "/cell"}
        assert_balanced(path, below)


def test_room_for_labels(below: CgroupRoot) -> None:
    with attached(below) as path:
        for name in ("label_sets", "cgroup_labels"):
            assert path.maps[name].value.field("labels").size == LABELS_BYTES


KINDS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"family"}),
    frozenset({"family", "protocol"}),
    frozenset({"protocol"}),
    frozenset(),
)


def test_kinds_that_are_hidden(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """Whatever was told apart before: what was shown is shown at once, and only what is new begins at 0."""
    truth: Counter[tuple[str, str]] = Counter()
    with attached(below) as path, new_cgroup(parent.path, "a") as cgroup:
        for turn, hidden in enumerate(KINDS):
            daemon = Daemon(path, below, clock, hidden=hidden)
            assert shown_by_kind(daemon) == by_kind(truth, hidden)
            truth["udp", "ipv4"] += send(netns, cgroup, 1 + turn)
            if turn >= 3:  # where the family is shown
                before = by_kind(truth, hidden)
                truth["udp", "ipv6"] += send(netns, cgroup, 1 + turn, family=socket.AF_INET6)
                if turn == 3:
                    assert shown_by_kind(daemon) == {**before, ("", "ipv6"): 0}
            shown_by_kind(daemon)
            assert shown_by_kind(daemon) == by_kind(truth, hidden)
        assert_balanced(path, below)


def by_kind(truth: Counter[tuple[str, str]], hidden: frozenset[str]) -> dict[tuple[str, str], int]:
    found: Counter[tuple[str, str]] = Counter()
    for (protocol, family), octets in truth.items():
        kind = "" if "protocol" in hidden else protocol, "" if "family" in hidden else family
        found[kind] += octets
    return dict(found)


def shown_by_kind(daemon: Daemon) -> dict[tuple[str, str], int]:
    return {
        (dict(labels)["protocol"], dict(labels)["family"]): int(value)
        for (name, labels), value in Page(daemon.page()).samples.items()
        if name == "sockledger_transmit_bytes_total" and ("cgroup", "/a") in labels
    }


ALL = ("/a/one", "/a/two", "/b/one")
# What those are shown as, and how it comes that they are; one after the other.
TOLD_APART: tuple[tuple[Naming, int, tuple[str, str, str]], ...] = (
    (Naming(), sys.maxsize, ALL),
    (Naming(level=1), sys.maxsize, ("/a", "/a", "/b")),
    (Naming(exclude=("/a/t*",)), sys.maxsize, ("/a/one", "other", "/b/one")),
    (Naming(), 1, ("/a/one", "other", "other")),
    (Naming(include=("/b", "/*/two")), sys.maxsize, ("other", "/a/two", "/b/one")),
    (Naming(), 2, ("other", "/a/two", "/b/one")),
    (Naming(hidden=frozenset({"cgroup"})), sys.maxsize, ("", "", "")),
    (Naming(), sys.maxsize, ALL),
)


def test_told_apart_otherwise(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """Totals stay exact and never fall, also when what is told apart changes under way."""
    truth: Counter[str] = Counter()
    with attached(below) as path, ExitStack() as stack:
        above = {name: stack.enter_context(new_cgroup(parent.path, name)) for name in "ab"}
        cgroups = [
            stack.enter_context(new_cgroup(above[name[1]].path, name.rpartition("/")[2])) for name in ALL
        ]
        daemons = Daemons(path, below, clock)
        before = ALL
        for naming, most_workloads, names in TOLD_APART:
            for name, cgroup in zip(before, cgroups, strict=True):  # nobody has seen these yet
                truth[name] += send(netns, cgroup)
            daemons.begin_with(naming, most_workloads)
            daemons.scrape()
            assert daemons.ledger.books.over_limit == sum(name == "other" for name in names) * (
                most_workloads < sys.maxsize
            )
            for number, (name, cgroup) in enumerate(zip(names, cgroups, strict=True), 1):
                truth[name] += send(netns, cgroup, number)
            daemons.scrape()
            assert daemons.increases("transmit_bytes") == truth
            before = names
        assert_balanced(path, below)


def test_other_never_ends(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """It has sums of nobody's, too, with which it would go on, and fall."""
    with attached(below) as path:
        daemons = Daemons(path, below, clock)
        daemons.begin_with(Naming(exclude=("/job",)))
        with new_cgroup(parent.path, "job") as cgroup:
            truth = send(netns, cgroup)
            daemons.scrape()
        released(path, 1)
        fold(daemons.ledger, clock)
        assert not path.cgroups.all()
        clock.ahead += DAY
        for _ in range(3):
            daemons.ledger.flush()
        assert sent(daemons.ledger) == {"other": truth}
        daemons.begin(NO_RULE)
        daemons.scrape()
        assert sent(daemons.ledger) == {"other": truth}
        assert_balanced(path, below)


def test_who_is_gone_takes_nobodys_place(
    parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock
) -> None:
    """Also if a socket keeps the kernel from releasing the cgroup, and so its rows."""
    with attached(below) as path, ExitStack() as stack:
        daemons = Daemons(path, below, clock)
        daemons.begin_with(Naming(), 1)
        with new_cgroup(parent.path, "job") as cgroup:
            send(netns, cgroup)
            with cgroup.joined(), netns.entered():
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            daemons.scrape()
        for _ in range(3):
            fold(daemons.ledger, clock)
        assert sent(daemons.ledger) == {}
        assert [each.released for each in path.cgroups.all().values()] == [0]
        with new_cgroup(parent.path, "late") as cgroup:
            truth = send(netns, cgroup)
            daemons.ledger.flush()
            assert sent(daemons.ledger) == {"/late": truth}
        assert_balanced(path, below)


def test_a_name_that_is_too_long_now(
    parent: Cgroup, below: CgroupRoot, client: Cgroup, netns: Netns, clock: Clock
) -> None:
    """The next daemon does not take the one before for it."""
    with attached(below) as path:
        daemons = Daemons(path, below, clock)
        long = Workload(pod="x" * 500)
        for workload in (Workload(pod="short"), long):
            path.cgroup_labels.note(client.id, workload)
        assert client.id not in path.cgroup_labels.all()
        path.cgroup_labels.note(client.id, long)  # there is nothing to delete
        daemons.begin(NO_RULE)


def test_no_room_for_the_name_before(
    parent: Cgroup, below: CgroupRoot, client: Cgroup, netns: Netns, clock: Clock
) -> None:
    """It is kept, and all goes on, until there is room."""
    with attached(below, label_sets=1) as path:
        ledger = ledger_of(path, below, clock)
        with new_cgroup(parent.path, "gone") as cgroup:
            send(netns, cgroup)
        released(path, 1)
        ledger.flush()
        fold(ledger, clock)
        assert len(path.label_sets.all()) == 1
        daemons = Daemons(path, below, clock)
        daemons.begin(NO_RULE)
        truth = send(netns, client)
        daemons.scrape()
        daemons.begin(AS_UNIT)
        truth += send(netns, client)
        daemons.scrape()
        assert daemons.increases("transmit_bytes") == {"/client": truth}
        clock.ahead += DAY  # the other's label set ends
        daemons.scrape(4)
        later = send(netns, client, 3)
        daemons.scrape()
        assert daemons.increases("transmit_bytes") == {"/client": truth, "client": later}
        assert_balanced(path, below)


def test_one_that_is_gone(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    """It is shown on under the name that it had, and nothing is left of it."""
    with attached(below) as path:
        before = entries(path)
        ledger = ledger_of(path, below, clock)
        with new_cgroup(parent.path, "job") as cgroup:
            truth = send(netns, cgroup)
            ledger.flush()
        released(path, 1)
        daemons = Daemons(path, below, clock)
        daemons.begin(AS_UNIT)
        daemons.scrape()
        assert sent(daemons.ledger) == {"/job": truth}
        assert path.cgroup_labels.all().keys() <= path.cgroups.all().keys()
        fold(daemons.ledger, clock)
        assert sent(daemons.ledger) == {}
        assert not path.cgroups.all()
        clock.ahead += DAY
        for _ in range(3):
            daemons.ledger.flush()
        assert entries(path) | {"shown": 0} == before | {"shown": 0}
        assert not path.cgroup_labels.all()
        assert_balanced(path, below)


def test_shown_for_a_while(
    parent: Cgroup, below: CgroupRoot, client: Cgroup, netns: Netns, clock: Clock
) -> None:
    """Until all scrapers have seen the last of it."""
    with attached(below) as path:
        daemons = Daemons(path, below, clock)
        daemons.begin(NO_RULE)
        truth = send(netns, client)
        daemons.scrape()
        daemons.begin(AS_UNIT)
        for ahead in (0, GONE // 2, GONE // 3):
            clock.ahead += int(ahead) * SECOND
            assert daemons.scrape(1).sum("transmit_bytes_total", cgroup="/client") == truth
        fold(daemons.ledger, clock)
        assert sent(daemons.ledger) == {"": 0}


def test_the_root_itself(parent: Cgroup, below: CgroupRoot, netns: Netns, clock: Clock) -> None:
    with attached(below) as path:
        daemons = Daemons(path, below, clock)
        daemons.begin(NO_RULE)
        first = send(netns, parent)
        daemons.scrape()
        daemons.begin("^(?P<container>/)$")
        daemons.scrape()
        assert daemons.increases("transmit_bytes") == {"/": first}
        second = send(netns, parent, 3)
        assert daemons.scrape().sum("transmit_bytes_total", container="/") == second


def test_a_label_that_is_too_long(
    parent: Cgroup, below: CgroupRoot, client: Cgroup, netns: Netns, clock: Clock
) -> None:
    """It keeps nobody else's from being noted."""
    with attached(below) as path:
        ledger = ledger_of(path, below, clock)
        with new_cgroup(parent.path, "\udcff" * 120) as odd, new_cgroup(parent.path, "late") as late:
            for cgroup in (odd, client, late):
                send(netns, cgroup)
            ledger.flush()
            named = {client.id: Workload(cgroup="/client"), late.id: Workload(cgroup="/late")}
            assert path.cgroup_labels.all() == named
        released(path, 2)
        fold(ledger, clock)
        assert path.cgroups.all().keys() == {client.id}


def test_connections_that_outlive_their_cgroup(
    parent: Cgroup, below: CgroupRoot, client: Cgroup, server: Cgroup, netns: Netns, clock: Clock
) -> None:
    """Some of what it counts is its label set's already: it keeps its name."""
    with attached(below) as path, ExitStack() as stack:
        ledger = ledger_of(path, below, clock)
        with new_cgroup(parent.path, "job") as job:
            [pair] = stack.enter_context(new_ends(job, server, netns)).pairs(1)
        stack.enter_context(new_ends(client, server, netns)).pairs(3)
        ledger.flush()
        fold(ledger, clock)
        daemons = Daemons(path, below, clock)
        daemons.begin(TOGETHER)
        daemons.scrape()
        reset(pair.client)
        page = daemons.scrape()
        assert page.sum("tcp_connections", role="active", container="c") == 3
        daemons.begin(NO_RULE)
        again = stack.enter_context(new_cgroup(parent.path, "job"))
        send(netns, again)
        page = daemons.scrape()
        assert page.sum("tcp_connections", cgroup="/job") == page.sum("tcp_sockets", cgroup="/job") == 0
        assert page.sum("tcp_connections", role="active", cgroup="/client") == 3


def test_no_memory_to_note_a_name(
    parent: Cgroup,
    below: CgroupRoot,
    client: Cgroup,
    netns: Netns,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is shown all the same, and noted when there is some."""
    with attached(below) as path:
        ledger = ledger_of(path, below, clock)

        def short_of_memory(*_: object) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        with monkeypatch.context() as short:
            short.setattr(CgroupLabels, "note", short_of_memory)
            truth = {"/client": send(netns, client)}
            with new_cgroup(parent.path, "job") as cgroup:
                truth["/job"] = send(netns, cgroup)
            released(path, 1)
            ledger.flush()
            assert sent(ledger) == truth
            fold(ledger, clock)
            assert path.cgroups.all().keys() == {client.id}
            assert not path.cgroup_labels.all()
        ledger.flush()
        assert path.cgroup_labels.all() == {client.id: Workload(cgroup="/client")}
        assert caplog.text.count("not noted what all cgroups are shown as") == 1
