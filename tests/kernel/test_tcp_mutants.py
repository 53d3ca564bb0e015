"""TCP's tests are able to fail: each of these changes loses or doubles something, and they tell.

Most of them open a race of nanoseconds, so the flush goes in slow motion. Who ends meanwhile leaves the rest
to the flush: that is what the rules for entries are about.
"""

import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.kernel.ledger import attached, branches
from tests.kernel.objects import SLOW_PULL, TORN_PULL, Change, build, is_caught
from tests.kernel.tcp import (
    CLOSE,
    ESTABLISHED,
    SIDES,
    Ends,
    Pair,
    books_of,
    counts_of,
    disconnect,
    find_older,
    flushing_tcp,
    followed,
    new_ends,
    reset,
    tcp_info,
    times_of,
    wait_for_state,
)
from tests.kernel.traffic import Generator
from tests.patience import SCALE

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath

pytestmark = pytest.mark.skipif(SCALE > 1, reason="slow motion, and what is rare, take hours in an emulator")

RUNS = 10 if os.environ.get("SOCKLEDGER_TEST_FULL") else 2
COUNT, OLDER = 200, 20


@dataclass(frozen=True)
class Place:
    """Where a judge makes its connections; some are older than the data path."""

    ends: Ends
    generator: Generator
    older: list[Pair]


Judge = Callable[[DataPath, Place], bool]


def connections_are_exact(path: DataPath, place: Place, *, reused: bool = False) -> bool:
    """Make connections one after another and end them with resets, while the flush looks at them."""
    ends = place.ends
    expected = {side: Counter[str]() for side in SIDES}
    listener = ends.listener()
    with ends.client.joined(), ends.netns.entered():
        clients = [ends.stack.enter_context(socket.socket()) for _ in range(1 if reused else COUNT)]
    with flushing_tcp(path, 0):
        for number in range(COUNT):
            pair = ends.connect(listener, clients[number % len(clients)])
            pair.exchange(100 * (number % 50), 70 * (number % 30))
            for side in SIDES:
                expected[side] += counts_of(tcp_info(getattr(pair, side)))
            if reused:
                disconnect(pair.client)
            else:
                reset(pair.client)
            wait_for_state(pair.server, CLOSE)
            expected["server"]["receive_segments"] += 1  # the reset
            pair.server.close()
        listener.close()
    path.flush_tcp()
    exact = True
    for (side, cgroup), role in zip(ends.sides, ("active", "passive"), strict=True):
        books = books_of(path, cgroup.id)
        print(side, books, expected[side])
        exact &= books.opened == books.closed == {role: COUNT}
        exact &= books.sockets == {} and followed(path, cgroup.id) == 0
        exact &= books.counts == expected[side]
    return exact


def reused_connections_are_exact(path: DataPath, place: Place) -> bool:
    return connections_are_exact(path, place, reused=True)


def sockets_in_haste_are_exact(path: DataPath, place: Place) -> bool:
    """One that begins its next connection as soon as the last one has ended."""
    uses, acked, ends = 300, 0, place.ends
    listener = ends.listener()
    client = ends.new_socket(ends.client)
    with flushing_tcp(path, 0):
        for _ in range(uses):
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            client.send(bytes(1000))
            while tcp_info(client)["unacked"]:
                pass
            acked += tcp_info(client)["bytes_acked"]
            disconnect(client)
            server.close()
    path.flush_tcp()
    books = books_of(path, ends.client.id)
    print(books, acked)
    return books.opened == books.closed == {"active": uses} and books.counts["acked_bytes"] == acked


def times_are_exact(path: DataPath, place: Place) -> bool:
    """Of sockets that are used again, and limited by a slow reader."""
    result = place.generator.run("accounts", 40, slow=1)
    found = {side: books_of(path, cgroup.id).times for side, cgroup in place.ends.sides}
    print(found, result.tcp_info)
    return all(found[side] == times_of(result.tcp_info[side]) for side in SIDES)


def crossing_connections_are_exact(path: DataPath, place: Place) -> bool:
    """Ended by one side while a packet of the other finds it."""
    result = place.generator.run("crossing", 10_000)
    path.flush_tcp()
    opened = [books_of(path, cgroup.id).opened for _, cgroup in place.ends.sides]
    print(opened)
    return all(
        found == {role: count for role, count in result.connections[side].items() if count}
        for found, (side, _) in zip(opened, place.ends.sides, strict=True)
    )


def older_ones_end(path: DataPath, place: Place) -> bool:
    """Connections that told nobody of their beginning tell their end, without a flush."""
    pairs = place.older
    for pair in pairs:
        reset(pair.client)
        wait_for_state(pair.server, CLOSE)
    return all(
        books_of(path, cgroup.id).opened == books_of(path, cgroup.id).closed == {"unknown": len(pairs)}
        for _, cgroup in place.ends.sides
    )


def unseen_ends_are_found(path: DataPath, place: Place) -> bool:
    """What nobody told, the flush finds: sockets that are closed, and those whose memory is another's."""
    find_older(path)
    older_ones_end(path, place)  # the server's are closed, the client's are gone
    number = len(place.older)
    newer = place.ends.pairs(number)
    path.flush_tcp()
    exact = True
    for (_, cgroup), role in zip(place.ends.sides, ("active", "passive"), strict=True):
        books = books_of(path, cgroup.id)
        print(books)
        exact &= books.opened == {"unknown": number, role: number}
        exact &= books.closed == {"unknown": number}
        exact &= books.sockets.get(ESTABLISHED) == number and CLOSE not in books.sockets
    for pair in newer:
        reset(pair.client)
    return exact


@dataclass(frozen=True)
class Mutant:
    """A data path with changes, and who tells."""

    judge: Judge
    changes: tuple[Change, ...]


def at(before: str, after: str, file: str = "tcp_sockets.h") -> Change:
    return Change(file, before, after)


# No end is told: neither way, for another data path of this machine may have asked for callbacks.
TELLS = "if ((flags & BPF_SOCK_OPS_STATE_CB_FLAG) || !is_ours(sk) ||"
ASKED = "if (ctx->args[1] != BPF_TCP_CLOSE)"
SILENT = (
    at(TELLS, f"if (true || {TELLS[4:]}", "tcp_hooks.h"),
    at(ASKED, f"if (true || {ASKED[4:]}", "tcp_hooks.h"),
)

COUNT_OPENED = """static __noinline int count_opened_now(struct tcp_socket *s)
{
	struct tcp_totals *t = tcp_totals_of(s->cgroup_id);

	if (t)
		count_opened(t, s->role);
	return 0;
}

"""

MUTANTS = {
    "found is counted at once": Mutant(
        crossing_connections_are_exact,
        (
            at(
                "	BRANCH(TCP_ADOPTED);\n",
                "	BRANCH(TCP_ADOPTED);\n	s->phase = s->phase == FOUND ? OPEN : s->phase;\n"
                "	count_opened_now(s);\n",
            ),
            at("static __noinline int adopt(", f"{COUNT_OPENED}static __noinline int adopt("),
        ),
    ),
    "used again without an entry": Mutant(
        sockets_in_haste_are_exact,
        (*SLOW_PULL, at("		key = cookie ^ REUSED;\n		error = insert(key);\n", "")),
    ),
    "begins at 0 when it is used again": Mutant(
        times_are_exact,
        (at("leaves them */\n	read_connection(sk, &s->cursor);\n", "leaves them */\n"),),
    ),
    "flushed though it has ended": Mutant(
        reused_connections_are_exact,
        (*TORN_PULL, at("	if (!(life & ENDED)) {\n", "	if (!(life & ENDED) || true) {\n")),
    ),
    "flushed without being taken": Mutant(
        connections_are_exact,
        (
            *SLOW_PULL,
            at(
                "__sync_val_compare_and_swap(&s->life, LIVE, LIVE | PINNED) != LIVE",
                "READ_ONCE(s->life) != LIVE",
            ),
        ),
    ),
    "not read at its end": Mutant(
        connections_are_exact,
        (at("		read_socket(sk, s->phase, &s->end);\n", "		s->end = s->cursor;\n"),),
    ),
    "an older end that nobody tells": Mutant(older_ones_end, SILENT),
    "read whosever it is": Mutant(
        unseen_ends_are_found,
        (
            *SILENT,
            at("	there = cookie_at(sk) == s->cookie;\n", "	there = true;\n"),
            at("BPF_TCP_CLOSE && cookie_at(sk) == s->cookie;", "BPF_TCP_CLOSE;"),
        ),
    ),
    "read though it is closed": Mutant(
        unseen_ends_are_found, (*SILENT, at("there && now.state != BPF_TCP_CLOSE && ", "there && "))
    ),
}

# The same with changes that are none.
EQUALS = {
    "unchanged": Mutant(connections_are_exact, ()),
    "unchanged, crossing": Mutant(crossing_connections_are_exact, ()),
    "unchanged, used again": Mutant(reused_connections_are_exact, ()),
    "slow motion": Mutant(connections_are_exact, SLOW_PULL),
    "slow motion, used again": Mutant(reused_connections_are_exact, TORN_PULL),
    "slow motion, in haste": Mutant(sockets_in_haste_are_exact, SLOW_PULL),
    "times": Mutant(times_are_exact, ()),
    "older": Mutant(older_ones_end, ()),
    "unseen": Mutant(unseen_ends_are_found, SILENT),
}


def is_exact(
    mutant: Mutant, image: bytes, root: CgroupRoot, generator: Generator, branches_taken: Counter[str]
) -> bool:
    assert generator.client_netns is not None
    with new_ends(generator.client, generator.server, generator.client_netns) as ends:
        older = ends.pairs(OLDER) if mutant.judge in (older_ones_end, unseen_ends_are_found) else []
        with attached(root, image) as path:
            exact = mutant.judge(path, Place(ends, generator, older))
            branches_taken.update(branches(path))
            return exact


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_caught(mutant: Mutant, below: CgroupRoot, generator: Generator, tmp_path: Path) -> None:
    image = build(tmp_path, mutant.changes, defines="-DBRANCH_COUNTERS")
    assert is_caught(lambda: is_exact(mutant, image, below, generator, Counter()), RUNS)


@pytest.mark.parametrize("mutant", EQUALS.values(), ids=EQUALS.keys())
def test_no_false_alarm(mutant: Mutant, below: CgroupRoot, generator: Generator, tmp_path: Path) -> None:
    image = build(tmp_path, mutant.changes, defines="-DBRANCH_COUNTERS")
    taken: Counter[str] = Counter()
    assert all(is_exact(mutant, image, below, generator, taken) for _ in range(RUNS))
    if mutant.changes in (SLOW_PULL, TORN_PULL):
        assert taken["TCP_HANDED_OVER"] > 0
    if mutant.judge is sockets_in_haste_are_exact:
        assert taken["TCP_REUSED"] > 0
    if mutant.changes == SILENT:
        assert taken["TCP_END_UNSEEN"] > 0
