"""Every packet is counted once: by double entry, and against counts that owe nothing to BPF.

Double entry compares two sums of ours: what the programs found in their attach point's storage, and what
came through the table of sockets to the totals. It holds whatever the packets are, so it is the judge of
races. Whether each packet has its size, its cgroup, protocol and family, the others judge: the
generator's own arithmetic, the packet filter, an interface.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from threading import Event

import pytest
from tests.kernel.ledger import (
    NOTHING,
    attached,
    branches,
    final_difference,
    flush,
    flushing,
    minus,
    totals_of,
)
from tests.kernel.machine import (
    SERVER4,
    SERVER6,
    Cgroup,
    Netns,
    sysctl_set,
    veth_pair,
)
from tests.kernel.objects import RESTLESS, SETTLED, build
from tests.kernel.traffic import EVERYTHING, Generator, Result, scaled
from tests.kernel.truth import PacketFilter, SynAcks, settled_interface, single_cpu
from tests.kernel.tun import send_superpackets
from tests.patience import SCALE, eventually

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.meters import Meters
from sockledger.kernel.sums import Traffic
from sockledger.ledger.ledger import Ledger
from sockledger.ledger.reconciliation import Reconciliation


@dataclass(frozen=True)
class Rhythm:
    """How often the table is flushed: *period* seconds apart, None: never.

    A flush that takes idle seats back begins with a *grace* period, some milliseconds long; without it the
    build must be one that leaves seats alone.
    """

    period: float | None
    grace: bool = True
    image: bytes | None = None

    def attached(self, root: CgroupRoot) -> AbstractContextManager[DataPath]:
        return attached(root, self.image)

    def flushing(self, path: DataPath) -> AbstractContextManager[None]:
        return flushing(path, self.period, grace=self.grace)


RHYTHMS = {
    "never flushed": Rhythm(None),
    "flushed all the time": Rhythm(0),
    "drained each 5 ms": Rhythm(0.005, grace=False),
    "drained each 0.2 ms": Rhythm(0.0002, grace=False),
}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tmp_path_factory.mktemp("settled"), SETTLED)


@pytest.fixture(params=list(RHYTHMS.values()), ids=list(RHYTHMS))
def rhythm(request: pytest.FixtureRequest, settled: bytes) -> Rhythm:
    rhythm: Rhythm = request.param
    return rhythm if rhythm.grace else replace(rhythm, image=settled)


# What the generator must have done at least a hundred times.
KINDS = {
    "tcp": (
        *(
            "client_close",
            "server_close",
            "client_reset",
            "server_reset",
            "client_unread",
            "server_unread",
            "unused",
        ),
        *("tcp_refused", "mapped", "connections_ipv4", "connections_ipv6"),
    ),
    "unaccepted": ("unaccepted",),
    "killed": ("killed",),
    "udp": ("udp_answered", "udp_connected", "udp_refused", "udp_unread", "udp_dual"),
    "flood": ("flooded",),
    "others": ("udplite", "ping", "raw_icmp", "raw"),
}


def assert_all_kinds(results: dict[str, Result]) -> None:
    least = max(100 // SCALE, 1)
    for scenario, events in KINDS.items():
        for event in events:
            assert results[scenario].events[event] >= least, f"{scenario}: too few of {event}"


# ---- double entry


def test_double_entry(root: CgroupRoot, generator: Generator, rhythm: Rhythm) -> None:
    with rhythm.attached(root) as path:
        with rhythm.flushing(path):
            assert_all_kinds(generator.run_together(EVERYTHING))
        assert final_difference(path, root) == NOTHING
        assert path.lost_updates()["totals_full"] == 0


def in_full_swing(path: DataPath, generator: Generator) -> bool:
    """Whether the client has sent and received datagrams by now."""
    flush(path)
    return all(totals_of(path, generator.client.id).get(("udp", "ipv4"), NOTHING))


def test_attached_in_mid_traffic(root: CgroupRoot, generator: Generator) -> None:
    """Sockets by the thousand are sending, and being closed, when the programs come and when they go."""
    counts = {"tcp": 3500, "unaccepted": 500, "killed": 1000, "flood": 5000}
    with (
        generator.start("steady", scaled(8000)) as steady,
        ThreadPoolExecutor(1) as pool,
    ):
        steady.wait_ready()
        for _ in range(3):
            others = pool.submit(generator.run_together, counts)
            time.sleep(0.1)
            with attached(root) as path:
                others.result()
                eventually(partial(in_full_swing, path, generator), "the steady traffic goes on")
                assert final_difference(path, root) == NOTHING
        assert steady.result().events["rounds"] > 1


@pytest.mark.parametrize("sockets", [1, 7, 64])
def test_sockets_full(root: CgroupRoot, generator: Generator, tmp_path: Path, sockets: int) -> None:
    """Almost no socket has a seat: nearly all is written through."""
    image = build(tmp_path, defines="-DBRANCH_COUNTERS")
    with attached(root, image, sockets=sockets) as path:
        with flushing(path, 0.001):
            results = generator.run_together({"tcp": 1400, "udp": 1000, "flood": 1000})
        assert final_difference(path, root) == NOTHING
        taken = branches(path)
        assert path.lost_updates()["sockets_full"] == taken["SOCKETS_FULL"] > 0
        assert taken["WRITE_THROUGH"] == taken["SOCKETS_FULL"] + taken["CLAIM_LOST"]
        assert totals_of(path, generator.client.id).keys() >= results["udp"].side("client").keys()


def test_without_storage(root: CgroupRoot, generator: Generator) -> None:
    """What the kernel would refuse to keep with a socket is not kept there."""
    here = Generator(generator.binary, generator.client, generator.server)
    with sysctl_set("net.core.optmem_max", "100"), attached(root) as path:
        here.run_together({"tcp": 1400, "udp": 1000, "flood": 1000})
        assert final_difference(path, root) == NOTHING
        assert set(path.lost_updates().values()) == {0}


def test_totals_full(root: CgroupRoot, generator: Generator) -> None:
    """No room for a single cgroup: everything is in the overflow, by protocol and family."""
    with attached(root, cgroups=1) as path:
        totals = path.maps["totals"]
        with suppress(OSError):  # other traffic of this machine may be there first
            for nobody in range(totals.max_entries):
                totals.update(totals.key.pack(cgroup_id=nobody), bytes(totals.value_size))
        results = generator.run_together({"tcp": 1400, "udp": 1000, "flood": 1000, "others": 50})
        assert final_difference(path, root) == NOTHING
        overflow = {
            (path.labels.protocol[protocol], path.labels.family[family]): traffic
            for (protocol, family), traffic in path.overflow()
        }
        expected = dict.fromkeys(overflow, NOTHING)
        for result in results.values():
            for (_, protocol, family), traffic in result.figures.items():
                expected[protocol, family] = expected[protocol, family].plus(traffic)
        for name, traffic in overflow.items():
            assert all(traffic)
            assert all(map(int.__ge__, traffic, expected[name]))
        assert path.lost_updates()["totals_full"] > 0
        assert not totals_of(path, generator.client.id)


def test_bracket_under_load(root: CgroupRoot, generator: Generator) -> None:
    """While traffic is at full speed, each flush shows totals between the control before it and after it."""
    end = time.monotonic() + (60 if os.environ.get("SOCKLEDGER_TEST_FULL") else 15) / SCALE
    enough = Event()

    def repeat(scenario: str) -> None:
        while not enough.is_set():
            generator.run(scenario, scaled(EVERYTHING[scenario]))

    with (
        attached(root, sockets=scaled(1000)) as path,  # some traffic is written through
        generator.start("steady", scaled(4000)),
        ThreadPoolExecutor(3) as pool,
    ):
        running = [pool.submit(repeat, scenario) for scenario in ("tcp", "killed", "flood")]
        ledger = Ledger(path, root, Meters((), root, path))
        rounds = 0
        try:
            while time.monotonic() < end or rounds < 10:
                ledger.flush()
                assert ledger.reconciliation == Reconciliation()
                rounds += 1
                time.sleep(0.01)
        finally:
            enough.set()
        for each in running:
            each.result()
        assert final_difference(path, root) == NOTHING


def test_connections_by_the_hundred_thousand(root: CgroupRoot, generator: Generator) -> None:
    """Nothing but connections, and a flush beside them: what is lost once in 100,000 shows here."""
    end = time.monotonic() + (600 if os.environ.get("SOCKLEDGER_TEST_FULL") else 20 / SCALE)
    with attached(root) as path:
        with ThreadPoolExecutor(4) as pool, flushing(path, 0.01):
            while time.monotonic() < end:
                counts = [(name, scaled(EVERYTHING[name])) for name in ("tcp", "killed", "tcp", "killed")]
                for done in [pool.submit(generator.run, *each) for each in counts]:
                    done.result()
        assert final_difference(path, root) == NOTHING


# ---- against independent counts


@pytest.mark.parametrize("scenario", ["tcp", "unaccepted", "killed", "udp"])
def test_packet_filter_agrees(
    root: CgroupRoot,
    netns: Netns,
    generator: Generator,
    scenario: str,
    rhythm: Rhythm,
    *,
    ipv6_synack: bool,
) -> None:
    sides = {"client": generator.client, "server": generator.server}
    truth = PacketFilter(netns, Cgroup(root.path), sides, ipv6_synack=ipv6_synack)
    with rhythm.attached(root) as path:
        with rhythm.flushing(path), single_cpu():
            result = generator.run(scenario, scaled(EVERYTHING[scenario]))
        flush(path)
        for side, cgroup in sides.items():
            expected = truth.counts(side, result)
            assert {family for _, family in expected} == {"ipv4", "ipv6"}
            assert totals_of(path, cgroup.id) == expected


@pytest.mark.parametrize("scenario", ["udp", "others"])
def test_generator_agrees(root: CgroupRoot, generator: Generator, scenario: str, rhythm: Rhythm) -> None:
    with rhythm.attached(root) as path:
        with rhythm.flushing(path):
            result = generator.run(scenario, scaled(EVERYTHING[scenario]))
        flush(path)
        assert totals_of(path, generator.client.id) == result.side("client")
        assert totals_of(path, generator.server.id) == result.side("server")


def test_flooder_agrees(root: CgroupRoot, generator: Generator, rhythm: Rhythm) -> None:
    """What the flood's receivers got nobody knows, but what was sent to them its sender does."""
    with rhythm.attached(root) as path:
        with rhythm.flushing(path):
            result = generator.run("flood", scaled(EVERYTHING["flood"]))
        flush(path)
        assert totals_of(path, generator.client.id) == result.side("client")


def over_veth(generator: Generator, client: Netns, server: Netns) -> Generator:
    return Generator(generator.binary, generator.client, generator.server, client, server, (SERVER4, SERVER6))


def test_interface_agrees(root: CgroupRoot, generator: Generator, *, ipv6_synack: bool) -> None:
    """Sockets living and closed, TCP and UDP: all that passed between two namespaces was theirs."""
    with veth_pair(offload=False) as (client, server), attached(root) as path:
        ends = ((client, generator.client), (server, generator.server))
        before = {netns: settled_interface(netns) for netns, _ in ends}
        synacks = {netns: SynAcks(netns) for netns, _ in ends}

        def assert_equal() -> None:
            for netns, cgroup in ends:
                flush(path)
                passed = minus(settled_interface(netns), before[netns])
                if not ipv6_synack:
                    passed = minus(passed, synacks[netns].counted())
                flush(path)
                assert reduce(Traffic.plus, totals_of(path, cgroup.id).values()) == passed

        with over_veth(generator, client, server).start("idle", scaled(4000)) as running:
            running.wait_ready()
            assert_equal()
            result = running.result()
        assert_equal()
        over_veth(generator, client, server).run("steady", scaled(4000))
        assert_equal()
        names = {(protocol, family) for protocol in ("tcp", "udp") for family in ("ipv4", "ipv6")}
        assert totals_of(path, generator.client.id).keys() == names
        assert result.events["mapped"] >= 100 // SCALE


@pytest.mark.parametrize("scenario", ["udp", "others"])
def test_generator_agrees_over_veth(root: CgroupRoot, generator: Generator, scenario: str) -> None:
    with veth_pair(offload=False) as (client, server), attached(root) as path:
        result = over_veth(generator, client, server).run(scenario, scaled(EVERYTHING[scenario]))
        flush(path)
        assert totals_of(path, generator.client.id) == result.side("client")
        assert totals_of(path, generator.server.id) == result.side("server")


# ---- the tests have been everywhere

# Makes 16 packets or 64 KiB of pending counts "full", so that this branch is reached too.
PENDING_FULL = (1 << 4) | (1 << (28 + 16))

RACES = {"CLAIM_LOST", "LATE"}


def test_every_branch(root: CgroupRoot, netns: Netns, generator: Generator, tmp_path: Path) -> None:
    emulated = SCALE > 1  # where races take hours
    image = build(
        tmp_path,
        () if emulated else RESTLESS,
        defines=f"-DBRANCH_COUNTERS -DPENDING_FULL={PENDING_FULL}ULL",
    )
    with attached(root, image, cgroups=1, sockets=64) as path:
        with flushing(path, 0):
            send_superpackets(netns)
            for _ in range(20):  # races are rare, also in slow motion
                generator.run_together({"tcp": 700, "udp": 500, "flood": 500})
                left = {name for name, count in branches(path).items() if not count}
                # test_tcp_mutants.py's, and test_peers.py's
                left = {name for name in left if not name.startswith(("TCP_", "PEER_", "LEFT"))}
                left -= RACES if emulated else set()
                if not left:
                    break
        assert final_difference(path, root) == NOTHING
        print(branches(path))
    assert not left
