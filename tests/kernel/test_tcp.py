"""TCP's books: opened is open now and closed, to the one, and what is summed up is what TCP_INFO says."""

import os
import socket
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.kernel.ledger import attached
from tests.kernel.machine import Cgroup, Netns, new_netns
from tests.kernel.tcp import (
    CLOSE,
    CLOSE_WAIT,
    ESTABLISHED,
    LISTEN,
    SIDES,
    Ends,
    books_of,
    busy_cpus,
    cookie_of,
    counts_of,
    find_older,
    flushing_tcp,
    followed,
    infos,
    queued,
    reset,
    set_sysctl,
    tcp_losses,
    times_of,
    wait_for_state,
)
from tests.kernel.traffic import SLOW_LINK, Generator, Result, scaled
from tests.patience import SCALE, eventually

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.meters import Meters
from sockledger.kernel.sums import RETIRED
from sockledger.ledger.ledger import WARNINGS, Ledger

RHYTHMS = {"never flushed": None, "flushed all the time": 0.0}
LIFETIMES = 2


def nonzero(values: dict[str, int]) -> dict[str, int]:
    return {name.replace("_", "-"): value for name, value in values.items() if value}


def summed(results: list[Result], name: str, side: str) -> dict[str, int]:
    each: list[dict[str, dict[str, int]]] = [getattr(result, name) for result in results]
    return nonzero(sum((Counter(sides[side]) for sides in each), Counter()))


# ---- opened is open now and closed

# Together 20,000 connections at least.
SCENARIOS = {"tcp": 10_000, "unaccepted": 2000, "killed": 2500, "netns_destroyed": 1500}
CONNECTIONS = 6000
OF_ALL_KINDS = 140
PORTS = 20_000  # each port that was listened on has an entry, and most of these listeners have their own


def sides_of(generator: Generator) -> tuple[tuple[str, Cgroup], tuple[str, Cgroup]]:
    return ("client", generator.client), ("server", generator.server)


def wait_until_over(path: DataPath, cgroup: Cgroup) -> None:
    """Without a flush: a socket's end is told, not found. The kernel goes on with what is closed."""

    def over() -> bool:
        books = books_of(path, cgroup.id)
        return books.opened == books.closed

    eventually(over, "all connections have ended")


def assert_over(path: DataPath, generator: Generator, results: list[Result]) -> None:
    """All that was opened has been closed, under its role; nothing of it is left."""
    assert tcp_losses(path) == {}
    for side, cgroup in sides_of(generator):
        opened = summed(results, "connections", side)
        wait_until_over(path, cgroup)
        books = books_of(path, cgroup.id)
        assert books.opened == books.closed == opened
        assert books.failures == summed(results, "failures", side)
        assert books.sockets == {}
    path.flush_tcp()  # has what failed to be deleted
    for _, cgroup in sides_of(generator):
        assert followed(path, cgroup.id) == 0
        assert books_of(path, cgroup.id).sockets == {}


@pytest.mark.parametrize("period", RHYTHMS.values(), ids=RHYTHMS.keys())
def test_opened_is_closed_in_the_end(below: CgroupRoot, generator: Generator, period: float | None) -> None:
    """Whatever kind of connection it was, and however it ended, with all CPUs busy."""
    with attached(below, cgroups=PORTS) as path, new_netns("other") as other:
        elsewhere = replace(generator, client_netns=other, server_netns=other)
        with flushing_tcp(path, period), busy_cpus(), ThreadPoolExecutor(1) as pool:
            of_every_kind = pool.submit(generator.run, "connections", max(scaled(CONNECTIONS), OF_ALL_KINDS))
            results = list(elsewhere.run_together(SCENARIOS).values())
            results.append(of_every_kind.result())
        total = sum(sum(side.values()) for result in results for side in result.connections.values())
        assert total >= 2 * 20_000 // SCALE
        assert_over(path, generator, results)


@pytest.mark.parametrize("period", RHYTHMS.values(), ids=RHYTHMS.keys())
def test_ended_is_not_found(below: CgroupRoot, generator: Generator, period: float | None) -> None:
    """A packet that finds a socket whose end has just been counted does not make it an older one."""
    with attached(below) as path:
        with flushing_tcp(path, period):
            result = generator.run("crossing", scaled(20_000))
        assert_over(path, generator, [result])


def test_open_now(below: CgroupRoot, generator: Generator) -> None:
    """What is opened and not closed is there, and established."""
    keep = 40
    with attached(below) as path:
        with generator.start("connections", OF_ALL_KINDS, keep=keep) as running:
            with flushing_tcp(path, 0.01):
                so_far = running.wait_ready()
            path.flush_tcp()
            for (side, cgroup), role in zip(sides_of(generator), ("active", "passive"), strict=True):
                books = books_of(path, cgroup.id)
                assert books.opened == summed([so_far], "connections", side)
                assert Counter(books.opened) - Counter(books.closed) == {role: keep}
                assert books.sockets[ESTABLISHED] == keep
            result = running.result()
        assert_over(path, generator, [result])


# ---- connections that are older than the programs


def test_older_connections_and_listeners(below: CgroupRoot, generator: Generator) -> None:
    """They are found at once, without a packet, and their ends are seen."""
    count = scaled(400)
    number = count // 2
    with generator.start("idle", count) as running:
        running.wait_ready()
        with attached(below) as path:
            find_older(path)
            for _, cgroup in sides_of(generator):
                books = books_of(path, cgroup.id)
                assert books.opened == {"unknown": number}
                assert books.closed == {}
                assert followed(path, cgroup.id) == number + (3 if cgroup == generator.server else 0)
            for _, cgroup in sides_of(generator):
                books = books_of(path, cgroup.id)
                assert books.sockets == {ESTABLISHED: number} | (
                    {LISTEN: 3} if cgroup == generator.server else {}
                )
                assert not any(books.counts.values()), "what they did before is not ours to count"
            running.result()
            for _, cgroup in sides_of(generator):
                wait_until_over(path, cgroup)
                books = books_of(path, cgroup.id)
                assert books.opened == books.closed == {"unknown": number}
                assert books.sockets == {}
                assert followed(path, cgroup.id) == 0
                assert books.measured[LIFETIMES] == (0, 0), "nobody knows how long they lived"
            assert tcp_losses(path) == {}


def test_counts_of_older_connections_begin_with_us(below: CgroupRoot, ends: Ends) -> None:
    pairs = ends.pairs(8)
    for pair in pairs:
        pair.exchange(5000, 30_000)
    before = {side: infos(pairs, side) for side in SIDES}
    with attached(below) as path:
        find_older(path)
        for number, pair in enumerate(pairs):
            pair.exchange(1000 * number, 70)
        after = {side: infos(pairs, side) for side in SIDES}
        path.flush_tcp()
        for side, cgroup in zip(SIDES, (ends.client, ends.server), strict=True):
            books = books_of(path, cgroup.id)
            assert books.counts == counts_of(minus(after[side], before[side]))
            assert books.times == times_of(minus(after[side], before[side]))
        for pair in pairs:
            reset(pair.client)
        for cgroup in (ends.client, ends.server):
            wait_until_over(path, cgroup)
            assert books_of(path, cgroup.id).closed == {"unknown": len(pairs)}


def minus(left: Counter[str], right: Counter[str]) -> Counter[str]:
    return Counter({name: value - right[name] for name, value in left.items()})


def test_older_connections_that_no_process_holds(below: CgroupRoot, ends: Ends) -> None:
    """Never accepted, or closed and not yet over: they are found at their first packet or at their end."""
    set_sysctl(ends.netns, "net.ipv4.tcp_fin_timeout", "120")  # above 60 s the socket stays, else TIME_WAIT
    number = 10
    unaccepted = ends.listener()
    waiting = [ends.new_socket(ends.client) for _ in range(2 * number)]
    for client in waiting:
        client.connect(unaccepted.getsockname())
    eventually(lambda: queued(unaccepted) == 2 * number, "all are queued")
    half_closed = ends.pairs(number)
    for pair in half_closed:
        pair.client.close()
        wait_for_state(pair.server, CLOSE_WAIT)
    with attached(below) as path:
        find_older(path)
        assert books_of(path, ends.client.id).opened == {"unknown": 2 * number}
        assert books_of(path, ends.server.id).opened == {"unknown": number}
        for client in waiting[:number]:  # half of them hear from the other side, half end without a word
            client.send(b"x")
        find_older(path)
        assert books_of(path, ends.server.id).opened == {"unknown": 2 * number}
        unaccepted.close()
        for pair in half_closed:
            pair.server.close()
        for client in waiting:
            wait_for_state(client, CLOSE)
        for cgroup in (ends.client, ends.server):
            wait_until_over(path, cgroup)
            books = books_of(path, cgroup.id)
            assert books.opened == books.closed == {"unknown": 3 * number}
            path.flush_tcp()
            assert books_of(path, cgroup.id).sockets == ({LISTEN: 1} if cgroup == ends.server else {})
        assert tcp_losses(path) == {}


# ---- the account of each socket

ACCOUNTS = 20_000


def assert_accounts(path: DataPath, generator: Generator, result: Result) -> None:
    for side, cgroup in sides_of(generator):
        wait_until_over(path, cgroup)
        books, info = books_of(path, cgroup.id), result.tcp_info[side]
        assert books.opened == books.closed == nonzero(result.connections[side])
        assert books.counts == counts_of(info)
        assert books.times == times_of(info)


@pytest.mark.parametrize("period", RHYTHMS.values(), ids=RHYTHMS.keys())
def test_accounts_are_exact(below: CgroupRoot, generator: Generator, period: float | None) -> None:
    """Sockets that end by resets, and are used again, with a flush looping beside them."""
    with attached(below) as path:
        with flushing_tcp(path, period):
            result = generator.run("accounts", scaled(ACCOUNTS if period is not None else 2000))
        assert tcp_losses(path) == {}
        assert_accounts(path, generator, result)


def test_accounts_of_connections_that_the_receiver_limits(below: CgroupRoot, generator: Generator) -> None:
    with attached(below) as path:
        with flushing_tcp(path, 0.001):
            result = generator.run("accounts", 64, slow=1)
        assert_accounts(path, generator, result)
        for _, cgroup in sides_of(generator):
            busy, by_window, _ = books_of(path, cgroup.id).times
            assert busy >= by_window > 0


def test_accounts_of_connections_that_the_send_buffer_limits(
    below: CgroupRoot, generator: Generator, netns: Netns
) -> None:
    try:
        netns.run("tc", "qdisc", "add", "dev", "lo", "root", *SLOW_LINK)
    except RuntimeError as error:
        pytest.skip(f"this kernel has no tbf: {error}")
    with attached(below) as path:
        with flushing_tcp(path, 0.001):
            result = generator.run("accounts", 64, small_buffer=1)
        assert_accounts(path, generator, result)
        # of one side it may be less than a tick
        each = [books_of(path, cgroup.id).times for _, cgroup in sides_of(generator)]
        busy, _, by_buffer = map(sum, zip(*each, strict=True))
        assert busy >= by_buffer
        assert by_buffer > 0 or SCALE > 1, "an emulator is slower than the link"


def test_segments_by_the_thousand_million(below: CgroupRoot, ends: Ends) -> None:
    """The kernel counts them in 32 bits: whether a counter has wrapped or was set to 0 the bytes tell."""
    number = 0x9000_0000
    with attached(below) as path:
        (pair,) = ends.pairs(1)
        pair.exchange(1000, 3000)
        path.flush_tcp()
        table, key = path.maps["tcp_sockets"], cookie_of(pair.client).to_bytes(8, sys.byteorder)

        def advance(**counts: int) -> Counter[str]:
            """Let the socket have counted so much since the last flush; return what is counted of it."""
            before = books_of(path, ends.client.id).counts
            entry = table.value.unpack(table.lookup(key) or b"")
            for name, count in counts.items():
                entry[f"cursor.{name}"] -= count
                entry[f"cursor.{name}"] &= (1 << (64 if name.endswith("bytes") else 32)) - 1
            table.update(key, table.value.pack(**entry))
            path.flush_tcp()
            after = books_of(path, ends.client.id).counts
            return Counter(
                {name: after[name] - before[name] for name in after if after[name] != before[name]}
            )

        segments = {"transmit_segments": number, "receive_segments": number}
        assert not advance(**segments), "no bytes"
        assert advance(acked_bytes=number) == Counter(segments) | Counter(acked_bytes=number)


# ---- no room


def test_older_sockets_that_find_no_room(
    below: CgroupRoot, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    ends.pairs(10)
    with attached(below, connections=5) as path:
        Ledger(path, below, Meters((), below, path)).flush()
        assert path.flush_tcp() == 5
        assert tcp_losses(path) == {"connections_full": 2 * 10 + 1 - 5}
        assert [record.message for record in caplog.records] == [WARNINGS["connections_full"]]


def test_a_cgroup_that_finds_room_later(below: CgroupRoot, ends: Ends) -> None:
    """What has begun in that of the others ends there."""
    with attached(below, cgroups=2) as path:
        table = path.maps["tcp_totals"]
        nobodys = [number.to_bytes(8, sys.byteorder) for number in (1, 2)]
        for key in nobodys:
            table.update(key, bytes(table.value_size))
        first = ends.pairs(3)
        path.flush_tcp()
        assert books_of(path, 0).sockets == {LISTEN: 1, ESTABLISHED: 6}
        for key in nobodys:
            table.delete(key)
        ends.pairs(2)
        path.flush_tcp()
        for pair in first:
            reset(pair.client)
            wait_for_state(pair.server, CLOSE)
        path.flush_tcp()
        others = books_of(path, 0)
        assert others.sockets == {LISTEN: 1}
        assert others.opened == others.closed == {"active": 3, "passive": 3}
        for (_, cgroup), role, listening in zip(ends.sides, ROLES, ({}, {LISTEN: 1}), strict=True):
            books = books_of(path, cgroup.id)
            assert books.sockets == {ESTABLISHED: 2} | listening
            assert (books.opened, books.closed) == ({role: 2}, {})


def test_connections_that_find_no_room(below: CgroupRoot, ends: Ends) -> None:
    """They are opened and closed at their end; of those that found room all is exact."""
    room, number = 10, 30
    with attached(below, connections=room) as path:
        listener = ends.listener()
        pairs = ends.pairs(number, listener)
        lucky = [(pair, side) for pair in pairs for side in SIDES][: room - 1]  # one is the listener
        for size, pair in enumerate(pairs):
            pair.exchange(1000 + size, 2000 + size)
        expected = {side: infos([pair for pair, its in lucky if its == side], side) for side in SIDES}
        path.flush_tcp()
        assert path.flush_tcp() == room
        for side, cgroup, role in zip(SIDES, (ends.client, ends.server), ROLES, strict=True):
            followed_ones = sum(its == side for _, its in lucky)
            books = books_of(path, cgroup.id)
            assert books.opened == {role: followed_ones}
            assert books.sockets[ESTABLISHED] == followed_ones
            assert books.counts == counts_of(expected[side])
        for pair in pairs:
            reset(pair.client)
            wait_for_state(pair.server, CLOSE)
        for side, cgroup, role in zip(SIDES, (ends.client, ends.server), ROLES, strict=True):
            followed_ones = sum(its == side for _, its in lucky)
            books = books_of(path, cgroup.id)
            assert books.opened == {role: followed_ones, "unknown": number - followed_ones}
            assert books.closed == books.opened
            assert ESTABLISHED not in books.sockets
        # each that found no room was told so at its beginning, clients when they had connected, too
        assert path.lost_updates()["connections_full"] >= 2 * number - len(lucky)
        listener.close()
        assert path.flush_tcp() == 0


ROLES = ("active", "passive")


def test_cgroups_that_find_no_room(below: CgroupRoot, generator: Generator) -> None:
    """All is in the entry that stands for the others, and still exact."""
    with attached(below, cgroups=1) as path:
        for name in ("tcp_totals", "tcp_histograms", "listen_totals"):
            table = path.maps[name]
            table.update((1).to_bytes(table.key_size, "little"), bytes(table.value_size))  # nobody's
        with flushing_tcp(path, 0.001):
            result = generator.run("accounts", scaled(1000))
        eventually(lambda: books_of(path, 0).opened == books_of(path, 0).closed)
        assert set(dict(path.sums["tcp_totals"].rows())) == {(0,), (RETIRED,), (1,)}
        both = sum((Counter(result.tcp_info[side]) for side in SIDES), Counter())
        books = books_of(path, 0)
        assert books.opened == {"active": scaled(1000), "passive": scaled(1000)}
        assert books.counts == counts_of(both)
        assert books.times == times_of(both)
        assert path.lost_updates()["totals_full"] > 0


# ---- whose sockets are counted, and whether


def test_nothing_beside_the_root_is_counted(client: Cgroup, ends: Ends, root: CgroupRoot) -> None:
    """Tracing programs see the whole machine; a root below the real one has them look away."""
    below = CgroupRoot(client.path)
    older = ends.pairs(10)
    try:
        with attached(below) as path:
            find_older(path)
            assert books_of(path, ends.client.id).opened == {"unknown": 10}
            newer = ends.pairs(10)
            for pair in (*older, *newer):
                pair.exchange(100, 100)
                reset(pair.client)
                wait_for_state(pair.server, CLOSE)
                pair.server.close()
            path.flush_sockets()
            path.flush_tcp()
            books = books_of(path, ends.client.id)
            assert books.opened == books.closed == {"unknown": 10, "active": 10}
            found = {key for key, _ in path.sums["tcp_totals"].rows()}
            assert found == {(0,), (RETIRED,), (ends.client.id,)}
            assert [*path.sums["listen_queues"].rows()] == []
            assert followed(path, ends.server.id) == 0
    finally:
        os.close(below.fd)


def test_parts_that_are_off_are_not_there(below: CgroupRoot, ends: Ends) -> None:
    with attached(below, parts=Parts(tcp=False, udp=False, unix=False, tags=False)) as path:
        cgroups = {"sl_cgroup_mkdir", "sl_cgroup_rmdir", "sl_cgroup_release"}
        assert path.links.held.keys() == {"sl_receive", "sl_transmit", *cgroups}
        for name, program in path.programs.items():
            if name.startswith(("sl_tcp_", "sl_udp_")):
                with pytest.raises(OSError, match="bpf_program__fd"):
                    program.fd  # noqa: B018 - it has none, for it is not loaded
        assert path.sums == {}
        (pair,) = ends.pairs(1)
        pair.exchange(100, 100)
        path.flush_sockets()
        assert path.flush_tcp() == 0
        path.flush_udp()
        assert [*path.maps["tcp_sockets"].batches()] == [(b"", b"")]
        assert pair.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize(("tcp", "udp"), [(True, False), (False, True)])
def test_each_part_without_the_other(below: CgroupRoot, ends: Ends, tcp: bool, udp: bool) -> None:
    with attached(below, parts=Parts(tcp=tcp, udp=udp)) as path:
        assert ("sl_tcp_events" in path.links.held) == ("tcp_totals" in path.sums) == tcp
        drops = {"sl_udp_drops", "sl_udp_released"}
        assert path.links.held.keys() & drops == (drops if udp else set())
        assert ("udp_totals" in path.sums) == udp
        (pair,) = ends.pairs(1)
        pair.exchange(100, 100)
        path.flush_sockets()
        assert path.flush_tcp() == (3 if tcp else 0)
