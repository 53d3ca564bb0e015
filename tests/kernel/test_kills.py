"""Daemons that are killed at each of their system calls: the next one has all that was counted, once.

A call at which one is killed does not happen, so that all states between two calls are met. After each kill
another one starts: no scraper may ever see a counter fall, and all figures are those of the traffic.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
from tests.daemon.support import Page
from tests.kernel.machine import Cgroup, Netns, new_cgroup, run
from tests.kernel.mortal import IDLE, LAST, Life
from tests.kernel.objects import build
from tests.kernel.tcp import COUNTS, SIDES, Ends, Pair, counts_of, infos
from tests.kernel.test_pins import ANOTHER
from tests.patience import PATIENCE, SCALE, eventually
from tests.scrapes import Scrapes

from sockledger.kernel.attachments import hot_paths
from sockledger.kernel.links import HOT_PATH
from sockledger.kernel.pins import Pins

# Each call, or each thirtieth, others each day. Of those that end something, more.
FULL = bool(os.environ.get("SOCKLEDGER_TEST_FULL"))
STEP = 20 if SCALE > 1 else 1 if FULL else 30
STEPS = dict.fromkeys(IDLE, STEP) | dict.fromkeys(("unlink", "rename"), max(1, STEP // 3))
DAY = time.gmtime().tm_yday

BYTES = 100
DATAGRAM = 20 + 8 + BYTES
REPLY_BYTES = 30
REPLY = 20 + 8 + REPLY_BYTES
POOL = 32


class Mortals:
    """Daemons' lives."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def live(self, life: Life) -> "Lived":
        """Live it to its end, natural or not."""
        assert self._process.stdin is not None
        print(life.line(), file=self._process.stdin, flush=True)
        said = []
        while not isinstance(line := self.read(), dict) or "end" not in line:
            said.append(line)
        assert line["end"] in (0, -9), f"{life} failed: see its standard error"
        return Lived(killed=line["end"] == -9, said=said)

    def read(self) -> object:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it cannot be started, or traced, or has ended: see its standard error"
        return json.loads(line)


@dataclass(frozen=True)
class Lived:
    killed: bool
    said: list[object]

    def pages(self) -> Iterator[tuple[str | None, str]]:
        for each in self.said:
            assert isinstance(each, dict)
            yield each["scraper"], each["page"]


@contextmanager
def started(*prefix: str) -> Iterator[Mortals]:
    command = [*prefix, sys.executable, "-m", "tests.kernel.mortal"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        made = Mortals(process)
        assert made.read() == "ready"
        yield made
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def mortals() -> Iterator[Mortals]:
    """Under strace, which kills them."""
    calls = ",".join(IDLE)
    trace = ("-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={LAST}")
    with started("strace", "-f", "-qqq", "-o", "/dev/null", *trace) as made:
        yield made


@pytest.fixture(scope="module")
def survivors() -> Iterator[Mortals]:
    """Those that are not killed are faster without it."""
    with started() as made:
        yield made


@pytest.mark.parametrize("call", IDLE)
def test_killed_at_the_call(mortals: Mortals, call: str, parent: Cgroup) -> None:
    """The call does not happen, and all before it have."""
    for number in (1, 2, 10):
        lived = mortals.live(Life(("count",), str(parent.path), "", deadly="count", call=call, number=number))
        assert lived == Lived(killed=True, said=list(range(number - 1)))
    lived = mortals.live(Life(("count",), str(parent.path), "", deadly="count", call=call, number=11))
    assert lived == Lived(killed=False, said=list(range(10)))


class Talk:
    """Traffic whose figures are all known: datagrams, connections that last, and some that do not."""

    def __init__(self, ends: Ends, short: Cgroup) -> None:
        self._ends = ends
        self._short = Ends(short, short, ends.netns, ends.stack)
        self._server = ends.new_socket(ends.server, kind=socket.SOCK_DGRAM)
        self._server.bind(("127.0.0.1", 0))
        self._pools: dict[tuple[Path, int], list[socket.socket]] = {}
        self.pairs: list[Pair] = []
        self._listener = self._short.listener()
        self.opened = 0
        self.udp = {side: Counter[str]() for side in SIDES}

    def connect(self) -> None:
        """Connections that last."""
        self.pairs = self._ends.pairs(2)

    def _fresh(self, cgroup: Cgroup, kind: int) -> socket.socket:
        """Joining a cgroup takes long: many are made at a time."""
        pool = self._pools.setdefault((cgroup.path, kind), [])
        if not pool:
            with cgroup.joined(), self._ends.netns.entered():
                pool += [socket.socket(socket.AF_INET, kind) for _ in range(POOL)]
            for each in pool:
                each.settimeout(PATIENCE)
        return pool.pop()

    def go_on(self) -> None:
        with self._fresh(self._ends.client, socket.SOCK_DGRAM) as client:
            client.connect(self._server.getsockname())
            for _ in range(2):
                client.send(bytes(BYTES))
                _, address = self._server.recvfrom(BYTES)
            self._server.sendto(bytes(REPLY_BYTES), address)
            assert len(client.recv(BYTES)) == REPLY_BYTES
        for sender, receiver, size, number in (
            ("client", "server", DATAGRAM, 2),
            ("server", "client", REPLY, 1),
        ):
            self.udp[sender].update(transmit_bytes=number * size, transmit_packets=number)
            self.udp[receiver].update(receive_bytes=number * size, receive_packets=number)
        for pair in self.pairs:
            pair.exchange(1000, 3000)
        with self._fresh(self._short.client, socket.SOCK_STREAM) as near:
            near.connect(self._listener.getsockname())
            with self._listener.accept()[0] as far:
                far.settimeout(PATIENCE)
                near.shutdown(socket.SHUT_WR)
                assert not far.recv(1)
            assert not near.recv(1)
        self.opened += 1

    def be_new(self, cgroup: Cgroup) -> None:
        """Traffic of a cgroup that had none."""
        with (
            self._ends.netns.entered(),
            cgroup.joined(),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made,
        ):
            made.settimeout(PATIENCE)
            made.bind(("127.0.0.1", 0))
            made.sendto(bytes(BYTES), made.getsockname())
            assert len(made.recv(BYTES)) == BYTES

    def sent(self) -> dict[str, Counter[str]]:
        """All datagrams so far."""
        return {side: self.udp[side].copy() for side in SIDES}

    def close(self) -> None:
        for pool in self._pools.values():
            for each in pool:
                each.close()


def udp_of(page: Page, side: str) -> Counter[str]:
    return Counter(
        {
            name: page.sum(f"{name}_total", cgroup=f"/{side}", protocol="udp")
            for name in ("receive_bytes", "receive_packets", "transmit_bytes", "transmit_packets")
        }
    )


class Services:
    """Cgroups that come and go, again and again under the same names, and all that they ever do."""

    def __init__(self, parent: Cgroup, netns: Netns) -> None:
        self._parent = parent
        self._netns = netns
        self._udp: dict[str, Counter[str]] = {}
        self._opened = Counter[str]()

    @contextmanager
    def run(self, *names: str) -> Iterator[None]:
        """These, and one that they all talk with: they are gone in the end."""
        with ExitStack() as stack:
            web, *others = (
                stack.enter_context(new_cgroup(self._parent.path, name)) for name in ("web", *names)
            )
            for name, cgroup in zip(names, others, strict=True):
                talk = Talk(Ends(web, cgroup, self._netns, stack), cgroup)
                stack.callback(talk.close)
                talk.go_on()
                for each, side in (("web", "client"), (name, "server")):
                    self._udp.setdefault(each, Counter()).update(talk.udp[side])
                self._opened[name] += talk.opened
            yield

    def assert_seen(self, scrapes: Scrapes, page: Page) -> None:
        """Each scraper has got all of it, once; the one that was always kept goes on where it was."""
        assert udp_of(page, "web") == self._udp["web"]
        assert not page.sum("lost_updates_total")
        for scraper in ("one", "two"):
            seen = Page(scrapes.increases(scraper))
            for name, udp in self._udp.items():
                assert udp_of(seen, name) == udp, (scraper, name)
                for role in ("active", "passive"):
                    for figure in ("opened", "closed"):
                        labels = {"cgroup": f"/{name}", "role": role}
                        figures = seen.sum(f"tcp_connections_{figure}_total", **labels)
                        assert figures == self._opened[name], (scraper, name, role, figure)


def assert_balanced(page: Page) -> None:
    """The traffic rests: what went through the root is in the totals."""
    for direction in ("receive", "transmit"):
        for unit in ("bytes", "packets"):
            at_root = page.sum(f"attach_point_{direction}_{unit}_total", attach_point="/")
            assert page.sum(f"{direction}_{unit}_total") == at_root
    assert not page.sum("lost_updates_total")


class Trial:
    """Daemons in the same place, one after another, killed at one call after another."""

    def __init__(self, mortals: Mortals, survivors: Mortals, talk: Talk, life: Life) -> None:
        self._mortals = mortals
        self._survivors = survivors
        self._killed_at: Counter[str] = Counter()
        self.talk = talk
        self.life = life
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing is counted yet."""
        self.scrapes = Scrapes(ending=self.life.label_sets > 0)
        self._uncounted = self.talk.sent()

    def kills(self, deed: str, *deeds: str, calls: Iterable[str] = IDLE) -> Iterator[bool]:
        """Lives that are killed in *deed* or later, at one call after another, up to one that is not.

        Yields whether it has shown anything.
        """
        for call in calls:
            for number in count(1 + DAY % STEPS[call], STEPS[call]):
                assert number < LAST, f"raise {LAST=}"
                lived = self._mortals.live(
                    replace(self.life, deeds=deeds, deadly=deed, call=call, number=number)
                )
                for scraper, page in lived.pages():
                    self.scrapes.take(scraper, page)
                yield bool(lived.said)
                if not lived.killed:
                    break
                self._killed_at[call] += 1
        assert self._killed_at, "nothing was killed"
        print(f"killed at {dict(self._killed_at)}")

    def start_again(self, *deeds: str, anew: bool = False) -> Page:
        """Return what a daemon shows that starts and is not killed. *anew*: it may begin at 0."""
        deeds = ("start", *(deeds or ("scrape",)), "stop")
        lived = self._survivors.live(replace(self.life, deeds=deeds))
        assert not lived.killed
        pages = list(lived.pages())
        page = Page(pages[-1][1])
        if anew and not any(udp_of(page, side).total() for side in SIDES):
            self.begin_anew()
        for scraper, text in pages:
            self.scrapes.take(scraper, text)
        if not self.life.label_sets:  # some are not shown
            assert_balanced(page)
        return page

    def assert_true(self) -> None:
        """All is counted, as a daemon shows it that starts now."""
        page = self.start_again()
        for side in SIDES:
            assert udp_of(page, side) == self.talk.udp[side]
            counted = {name: page.sum(f"tcp_{name}_total", cgroup=f"/{side}") for name in COUNTS}
            assert counted == counts_of(infos(self.talk.pairs, side)), side
        for role in ("active", "passive"):
            for name in ("opened", "closed"):
                labels = {"cgroup": "/short", "role": role}
                assert page.sum(f"tcp_connections_{name}_total", **labels) == self.talk.opened

    def assert_all_or_nothing(self, *, anew: bool = True) -> None:
        """Each direction is counted or is not; then all is."""
        first = self.start_again(anew=anew)
        for side in SIDES:
            counted, sent = udp_of(first, side), self.talk.udp[side] - self._uncounted[side]
            for direction in ("receive", "transmit"):
                names = [f"{direction}_{unit}" for unit in ("bytes", "packets")]
                assert [counted[name] for name in names] in ([0, 0], [sent[name] for name in names])
        self.assert_counted_from(first)

    def assert_counted_from(self, first: Page) -> None:
        """From now on all is."""
        before = self.talk.sent()
        self.talk.go_on()
        second = self.start_again()
        for side in SIDES:
            assert udp_of(second, side) - udp_of(first, side) == self.talk.udp[side] - before[side]


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpf"
    path.mkdir()
    run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(path))
    yield path
    run("umount", str(path))


@pytest.fixture
def trial(mortals: Mortals, survivors: Mortals, ends: Ends, parent: Cgroup, bpffs: Path) -> Iterator[Trial]:
    with new_cgroup(parent.path, "short") as short, closing(Talk(ends, short)) as talk:
        yield Trial(mortals, survivors, talk, Life((), str(parent.path), str(bpffs)))


def test_first_start(trial: Trial) -> None:
    """And what it shows first, a meter too. Who is killed before it shows anything may begin anew."""
    trial.life = replace(trial.life, meters=("/client",))
    for shown in trial.kills("start", "uninstall", "start", "scrape"):
        trial.talk.go_on()
        trial.assert_all_or_nothing(anew=not shown)
        trial.begin_anew()


def test_next_start(trial: Trial, parent: Cgroup) -> None:
    """It takes over, flushes, shows what was there and what is new, and stops."""
    trial.life = replace(trial.life, meters=("/client",))
    trial.start_again()
    trial.talk.connect()
    for number, _ in enumerate(trial.kills("start", "start", "scrape", "scrape", "stop")):
        trial.talk.go_on()
        with new_cgroup(parent.path, f"new-{number}") as cgroup:
            trial.talk.be_new(cgroup)
            trial.assert_true()


def change(trial: Trial, lives: Sequence[Life], turn: int) -> None:
    """Starts in another way than before; then one as it was, or was meant to be, or in a third way."""
    now = 0
    trial.life = lives[now]
    trial.start_again()
    trial.talk.connect()
    trial.life = lives[1]
    for _ in trial.kills("start", "start"):
        trial.talk.go_on()
        turn += 1
        now += turn % 3
        trial.life = lives[now % len(lives)]
        trial.assert_true()
        trial.life = lives[(now + 1) % len(lives)]
        trial.talk.go_on()


TURNS = (0, 1, 2) if FULL else (DAY % 3,)


@pytest.mark.parametrize("turn", TURNS)
def test_other_limits(trial: Trial, turn: int) -> None:
    limits = [(1000, 4096), (2000, 1024), (500, 2048)]
    change(
        trial, [replace(trial.life, cgroups=cgroups, sockets=sockets) for cgroups, sockets in limits], turn
    )


@pytest.mark.parametrize("turn", TURNS)
def test_another_version_and_back(trial: Trial, tmp_path: Path, turn: int) -> None:
    """Members of its maps are added, moved and taken out, and there is a map more."""
    image = tmp_path / "another.bpf.o"
    image.write_bytes(build(tmp_path / "another", ANOTHER))
    change(trial, [trial.life, replace(trial.life, image=str(image))], turn)


def test_mending(trial: Trial) -> None:
    """Somebody removes all pins, and whoever pins them again is killed: all begins anew, or goes on."""
    trial.start_again()
    for _ in trial.kills("mend", "start", "lose_pins", "mend", "stop"):
        trial.talk.go_on()
        trial.assert_all_or_nothing()


# Which comes back, and when: after the kill, or before it, when its label set has just begun to end.
BACK = ("kept", "new", "kept, before")


@pytest.mark.parametrize("back", BACK if FULL else (BACK[DAY % len(BACK)],))
def test_fold(trial: Trial, parent: Cgroup, netns: Netns, back: str) -> None:
    """Of three services that are gone one has a label set, one takes another's, and the sums of one end.

    Then one is back: that whose label set was to end, or one of those that were to have it. It goes on or
    begins at 0, and has the label set in the end.
    """
    trial.life = replace(trial.life, gone=0.0, label_sets=2)
    trial.begin_anew()
    trial.start_again()
    services = Services(parent, netns)
    kept, *names = list("abcde")
    with services.run(kept):
        trial.start_again("scrape", "scrape")
    kills = trial.kills("fold", "start", "wait", "fold", calls=["bpf"])  # it makes no others
    while True:
        with services.run(*names[:2]):
            trial.start_again("wait", "scrape", "fold")
        if back == "new":
            kept, names[0] = names[0], kept
        with ExitStack() as stack:
            if back == "kept, before":
                trial.start_again("wait", "scrape")
                stack.enter_context(services.run(kept))
            if next(kills, None) is None:
                break
            if back != "kept, before":
                stack.enter_context(services.run(kept))
            services.assert_seen(trial.scrapes, trial.start_again("scrape", "scrape"))
        names = [*names[2:], *names[:2]]


def test_attaching_again(trial: Trial, parent: Cgroup, bpffs: Path) -> None:
    """Somebody detaches, and whoever attaches again is killed: the next finds nothing beside its pins."""
    trial.start_again()
    for _ in trial.kills("mend", "start", "detach", "mend", "stop"):
        eventually(lambda: set(hot_paths(parent.id)) <= Pins(bpffs).link_ids(HOT_PATH), "no other is left")
        trial.talk.go_on()
        trial.assert_counted_from(trial.start_again())


def test_uninstall(trial: Trial, bpffs: Path) -> None:
    """What is left of the pins is no half."""
    trial.start_again()
    for _ in trial.kills("uninstall", "uninstall"):
        trial.talk.go_on()
        trial.assert_all_or_nothing()
    assert Pins(bpffs).remove()
    assert not Pins(bpffs).there()
