"""Another's sockops program beside ours: both get all that they would get alone."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.kernel.foreign import (
    RETRANS_FLAG,
    RTO_FLAG,
    RTT_FLAG,
    STATE_FLAG,
    ForeignSockops,
    Wishes,
    compile_sockops,
    foreign_sockops,
)
from tests.kernel.ledger import attached
from tests.kernel.machine import Cgroup
from tests.kernel.tcp import (
    CLOSE,
    OPTION_ECN,
    SIDES,
    TICK,
    Ends,
    books_of,
    counts_of,
    infos,
    lossy,
    reset,
    tcp_info,
    tcp_losses,
    wait_for_state,
)

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath

NUMBER = 20
OURS = {"state", "rto"}  # callbacks that ours asks for, and that all programs then get


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_sockops(tmp_path_factory.mktemp("sockops"))


@pytest.fixture(params=["at the same cgroup", "at a descendant"])
def place(request: pytest.FixtureRequest, parent: Cgroup, client: Cgroup) -> Cgroup:
    return parent if request.param == "at the same cgroup" else client


@pytest.fixture(params=["before ours", "after ours"])
def first(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "before ours")


@contextmanager
def both(
    below: CgroupRoot, image: bytes, place: Cgroup, wishes: Wishes, *, first: bool
) -> Iterator[tuple[DataPath, ForeignSockops]]:
    with ExitStack() as stack:
        if first:
            other = stack.enter_context(foreign_sockops(image, place, wishes))
        path = stack.enter_context(attached(below))
        if not first:
            other = stack.enter_context(foreign_sockops(image, place, wishes))
        yield path, other


def run_connections(ends: Ends, path: DataPath | None = None) -> None:
    """Always the same; with ours beside, its books must say so."""
    pairs = ends.pairs(NUMBER)
    for pair in pairs:
        for size in (1, 100, 3000):
            pair.exchange(size, size)
    said = {side: counts_of(infos(pairs, side)) for side in SIDES}
    if path:
        path.flush_tcp()
        for side, cgroup in ends.sides:
            assert books_of(path, cgroup.id).counts == said[side]
    for pair in pairs:
        reset(pair.client)
        wait_for_state(pair.server, CLOSE)
        pair.server.close()
    if path:
        for (_, cgroup), role in zip(ends.sides, ("active", "passive"), strict=True):
            books = books_of(path, cgroup.id)
            assert books.opened == books.closed == {role: NUMBER}
            assert books.failures == {}
        assert tcp_losses(path) == {}


@pytest.mark.parametrize(
    "flags", [0, RTT_FLAG | RETRANS_FLAG, RTO_FLAG | RTT_FLAG | RETRANS_FLAG | STATE_FLAG]
)
def test_both_get_all_that_they_would_get_alone(
    below: CgroupRoot, ends: Ends, image: bytes, place: Cgroup, first: bool, flags: int
) -> None:
    wishes = Wishes(flags)
    with foreign_sockops(image, place, wishes) as other:
        run_connections(ends)
        alone = other.calls()
    with both(below, image, place, wishes, first=first) as (path, other):
        run_connections(ends, path)
        beside = other.calls()
    if not flags & STATE_FLAG:  # callbacks are asked for of all programs together
        alone, beside = ({op: n for op, n in each.items() if op not in OURS} for each in (alone, beside))
    assert beside == alone
    assert alone["active_established"] == NUMBER


def test_answers_of_the_other_are_kept(
    below: CgroupRoot, ends: Ends, image: bytes, place: Cgroup, first: bool
) -> None:
    """Its time-out of the first SYN, and its wish for ECN, which both sides must have."""
    wishes = Wishes(timeout=50, ecn=True)
    with both(below, image, place, wishes, first=first) as (path, _):
        listener = ends.listener()
        client = ends.new_socket(ends.client)
        client.setblocking(False)
        with lossy(ends.netns, "tcp flags & (syn | ack) == syn drop"):
            client.connect_ex(listener.getsockname())
            assert tcp_info(client)["rto"] == 50 * TICK
            client.close()
        pair = ends.connect(listener)
        if place != ends.client:
            assert tcp_info(pair.client)["options"] & OPTION_ECN
        books = books_of(path, ends.client.id)
        assert books.opened == {"active": 1}
        assert books.failures == {"aborted": 1}


def test_one_that_takes_our_callbacks_away(
    below: CgroupRoot, ends: Ends, image: bytes, place: Cgroup, first: bool
) -> None:
    """It sets its own flags only, again and again: then ends are told by the tracepoint."""
    with both(below, image, place, Wishes(alone=True), first=first) as (path, _):
        run_connections(ends, path)
