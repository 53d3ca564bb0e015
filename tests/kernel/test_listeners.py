"""Listening sockets: what waits in their queues and what they dropped, as the kernel says it."""

import re
import socket
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from tests.kernel.ledger import attached, branches, record_of, repeating
from tests.kernel.machine import Cgroup, Netns
from tests.kernel.objects import PAUSE, SLOW_MOTION, Change, build
from tests.kernel.tcp import (
    LISTEN,
    Ends,
    books_of,
    meminfo_drops,
    queued,
    reset,
    set_sysctl,
    tcp_losses,
)
from tests.kernel.test_gone import GONE, LONG_ENOUGH, Clock
from tests.kernel.traffic import Generator, netstat
from tests.patience import SCALE, eventually

from sockledger.collectors.registry import Registry
from sockledger.exposition import text
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.meters import Meters
from sockledger.kernel.shown import ShownMap
from sockledger.kernel.sums import RETIRED
from sockledger.ledger.births import Births
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.scrapers import RECENT

BACKLOG, CONNECTS = 8, 40


def queue(path: DataPath, cgroup: Cgroup, port: int) -> tuple[int, int] | None:
    """Length and limit as the last flush found them; None where nobody listens."""
    found = dict(path.sums["listen_queues"].rows()).get((cgroup.id, port))
    return (found[0], found[1]) if found else None


def drops_of(path: DataPath, cgroup: Cgroup, port: int) -> int:
    return record_of(path, "listen_totals", cgroup.id, port)["drops"]


def queues(netns: Netns, port: int) -> tuple[int, int]:
    """Sums of Recv-Q and Send-Q, as ss shows them."""
    lines = [line.split() for line in netns.run("ss", "-ltnH").splitlines()]
    of_port = [line for line in lines if re.search(rf":{port}$", line[3])]
    return sum(int(line[1]) for line in of_port), sum(int(line[2]) for line in of_port)


@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "never flushed"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("syncookies", ["0", "1"], ids=["no SYN cookies", "SYN cookies"])
def test_overflow(
    below: CgroupRoot, generator: Generator, netns: Netns, family: int, syncookies: str, flushed: bool
) -> None:
    """SYNs are sent again all the while, so what is dropped while they are is between two looks."""
    set_sysctl(netns, "net.ipv4.tcp_syncookies", syncookies)
    with attached(below) as path:
        with generator.start("listen_overflow", CONNECTS, family=family, backlog=BACKLOG) as running:
            port = running.wait_ready().events["port"]
            if flushed:
                before = netstat(netns)["TcpExtListenDrops"]
                path.flush_tcp()
                drops = drops_of(path, generator.server, port)
                assert before <= drops <= netstat(netns)["TcpExtListenDrops"]
                assert queue(path, generator.server, port) == (BACKLOG + 1, BACKLOG)
                assert queues(netns, port) == (BACKLOG + 1, BACKLOG)
            result = running.result()
        counted = netstat(netns)
        port = port if flushed else 0  # one that no flush has seen may be one of many
        drops = drops_of(path, generator.server, port)  # without a flush: the end tells
        assert drops == counted["TcpExtListenDrops"] == result.events["listen_drops"]
        assert drops == counted["TcpExtListenOverflows"]
        assert drops >= CONNECTS - (BACKLOG + 1)
        path.flush_tcp()
        assert queue(path, generator.server, port) is None
        assert drops_of(path, generator.server, port) == drops
        assert tcp_losses(path) == {}


def test_drops_before_and_after_a_flush(below: CgroupRoot, ends: Ends) -> None:
    listener = ends.listener(backlog=1)
    address = listener.getsockname()
    with attached(below) as path:
        for least in (5, 10):
            while meminfo_drops(listener) < least:
                client = ends.new_socket(ends.client)
                client.setblocking(False)
                client.connect_ex(address)
                client.close()
            if least == 5:
                path.flush_tcp()
        drops = meminfo_drops(listener)
        listener.close()
        assert drops_of(path, ends.server, address[1]) == drops
        assert drops_of(path, ends.server, 0) == 0


def test_ports_that_nobody_listens_on_any_more(
    below: CgroupRoot, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their counters end when all scrapers have seen them, and are born again with the next drop."""
    clock = Clock()
    listeners: dict[int, socket.socket] = {}

    def drop(number: int, port: int = 0) -> int:
        listener = ends.listener(backlog=1, port=port)
        port = listener.getsockname()[1]
        listeners[port] = listener
        while meminfo_drops(listener) < number:
            drop_at(listener)
            path.flush_tcp()  # one that was never seen ends under port 0
        return port

    def drop_at(listener: socket.socket) -> None:
        before = meminfo_drops(listener)
        while meminfo_drops(listener) == before:
            client = ends.new_socket(ends.client)
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            client.close()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def page() -> dict[int, int]:
        """The drops that a scraper sees, by port."""
        ledger.flush()
        sample = r'^sockledger_tcp_listen_drops_total{.*port="(\d+)".*} (\d+)\.0$'
        shown = text.render(registry.collect(), seen=births.scrapers.seen_by("one"), openmetrics=False)
        births.note_page("one", births.newest, ledger.books.began)
        return {int(port): int(drops) for port, drops in re.findall(sample, shown.decode(), re.MULTILINE)}

    def start() -> tuple[Births, Ledger, Registry]:
        births = Births(ShownMap(path.maps["shown"]), clock=clock)
        ledger = Ledger(path, below, Meters((), below, path), gone=GONE, births=births, clock=clock)
        return births, ledger, Registry(["listeners"], ledger, births)

    with attached(below) as path:
        births, ledger, registry = start()
        quiet = ends.listener().getsockname()[1]
        assert page() == page() == {quiet: 0}
        assert births.written == 0, "it is born with its first drop"
        ports = [drop(number) for number in (3, 4, 5)]
        dropped = {quiet: 0} | {port: meminfo_drops(listeners[port]) for port in ports}
        assert page() == dict.fromkeys(dropped, 0)
        assert page() == dropped
        assert births.written == 3

        for port in ports[:2]:
            listeners[port].close()
        assert page() == page() == page() == dropped
        clock.ahead += LONG_ENOUGH
        births.note_page("two", births.newest, 0)
        assert page() == page() == dropped, "not all scrapers have seen it"
        clock.ahead += RECENT
        assert page() == {port: drops for port, drops in dropped.items() if port not in ports[:2]}
        assert births.written == 1
        rows = dict(path.sums["listen_totals"].rows())
        assert rows.keys() == {(0, 0), (RETIRED, 0), (ends.server.id, ports[2])}
        assert rows[RETIRED, 0] == (dropped[ports[0]] + dropped[ports[1]],)

        drop(20, ports[0])
        again = meminfo_drops(listeners[ports[0]])
        assert [page()[ports[0]] for _ in range(3)] == [0, again, again]
        assert births.written == 2

        listeners[ports[0]].close()
        assert page() == page() == page()
        clock.ahead += LONG_ENOUGH
        with monkeypatch.context() as patched:
            patched.setattr(births, "end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                page()
        drop(30, ports[0])
        births, ledger, registry = start()
        assert page()[ports[0]] == 0, "what has come meanwhile ends, too"
        before = meminfo_drops(listeners[ports[0]])
        drop_at(listeners[ports[0]])
        more = meminfo_drops(listeners[ports[0]]) - before
        assert [page()[ports[0]] for _ in range(3)] == [0, more, more]


def test_older_listener_counts_from_now_on(below: CgroupRoot, generator: Generator, netns: Netns) -> None:
    with generator.start("listen_overflow", CONNECTS, backlog=BACKLOG) as running:
        port = running.wait_ready().events["port"]
        earliest = netstat(netns)["TcpExtListenDrops"]
        assert earliest > 0
        with attached(below) as path:
            latest = netstat(netns)["TcpExtListenDrops"]
            path.flush_tcp()
            assert queue(path, generator.server, port) == (BACKLOG + 1, BACKLOG)
            final = running.result().events["listen_drops"]
            assert final - latest <= drops_of(path, generator.server, port) <= final - earliest
            path.flush_tcp()
            assert queue(path, generator.server, port) is None


def test_listeners_that_share_a_port(below: CgroupRoot, ends: Ends) -> None:
    """Their queues are added up; when one ends, its part is gone."""
    with attached(below) as path:
        first = ends.listener(3, reuse=True)
        port = first.getsockname()[1]
        second = ends.listener(5, port=port, reuse=True)
        clients = [ends.new_socket(ends.client) for _ in range(4)]
        for client in clients:
            client.connect(first.getsockname())
        eventually(lambda: queued(first) + queued(second) == 4, "all wait, even if in one queue")
        path.flush_tcp()
        assert queue(path, ends.server, port) == (4, 3 + 5) == queues(ends.netns, port)
        left = queued(second)
        first.close()
        path.flush_tcp()
        assert queue(path, ends.server, port) == (left, 5) == queues(ends.netns, port)
        second.close()
        path.flush_tcp()
        assert queue(path, ends.server, port) is None


def test_queue_that_is_emptied_and_limit_that_is_changed(below: CgroupRoot, ends: Ends) -> None:
    with attached(below) as path:
        listener = ends.listener(10)
        port = listener.getsockname()[1]
        for number in range(1, 4):
            ends.new_socket(ends.client).connect(listener.getsockname())
            eventually(lambda wanted=number: queued(listener) == wanted, "it waits")  # type: ignore[misc]
            path.flush_tcp()
            assert queue(path, ends.server, port) == (number, 10)
        listener.listen(20)
        for number in (2, 1, 0):
            reset(ends.accept(listener))
            path.flush_tcp()
            assert queue(path, ends.server, port) == (number, 20)
        listener.shutdown(socket.SHUT_RDWR)
        path.flush_tcp()
        assert queue(path, ends.server, port) is None
        listener.listen(30)
        path.flush_tcp()
        assert queue(path, ends.server, listener.getsockname()[1]) == (0, 30)


def somebody_waits(listener: socket.socket) -> bool:
    return queued(listener) > 0


# A SYN finds a listener while listen(2) goes on, or while its end does.
LATE_CALLBACK = "	case BPF_SOCK_OPS_TCP_LISTEN_CB:\n		want_callbacks(ctx);\n"
END = "		end(bpf_get_socket_cookie(ctx), sk, ctx->state);\n"
ADOPTED = "	BRANCH(TCP_ADOPTED);\n"
RACES = {
    "beginning": (
        Change("tcp_hooks.h", LATE_CALLBACK, f"{LATE_CALLBACK}		{PAUSE * 10}"),
        Change("tcp_sockets.h", ADOPTED, f"{ADOPTED}	{PAUSE * 14}"),
    ),
    "ending": (
        Change("tcp_hooks.h", END, f"{END}		if (ctx->state == BPF_TCP_LISTEN) {{\n{PAUSE * 10}}}\n"),
    ),
}


@pytest.mark.skipif(SCALE > 1, reason="slow motion in an emulator takes hours")
@pytest.mark.parametrize("race", RACES.values(), ids=RACES.keys())
def test_found_while_it_changes(
    below: CgroupRoot, ends: Ends, tmp_path: Path, race: tuple[Change, ...]
) -> None:
    """It is one listener, and none is missed, whoever finds it first."""
    image = build(tmp_path, (*SLOW_MOTION[:1], *race), defines="-DBRANCH_COUNTERS")
    port = 0

    def knock() -> None:
        with ends.client.joined(), ends.netns.entered(), socket.socket() as client:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))

    with attached(below, image) as path:
        for _ in range(50):  # until the race has been met often enough
            if branches(path)["TCP_ADOPTED"] >= 3:
                break
            listener = ends.new_socket(ends.server)
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            with repeating(knock, 0.0):
                listener.listen(16)
                eventually(partial(somebody_waits, listener), "connections are made")
                path.flush_tcp()
                assert books_of(path, ends.server.id).sockets[LISTEN] == 1
                queue_now = queue(path, ends.server, port)
                assert queue_now is not None
                assert queue_now[1] == 16
            for _ in range(3):
                path.flush_sockets()  # so that the next packet finds no seat
            client = ends.new_socket(ends.client)
            client.setblocking(False)
            closing = threading.Thread(target=listener.close)
            closing.start()
            time.sleep(0.002)
            client.connect_ex(("127.0.0.1", port))
            closing.join()
            client.close()
            time.sleep(0.02)  # for what passes slowly
            path.flush_tcp()
            assert LISTEN not in books_of(path, ends.server.id).sockets
        assert tcp_losses(path) == {}
        assert branches(path)["TCP_ADOPTED"] >= 3
