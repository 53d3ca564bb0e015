"""TCP, listeners and UDP drops on the page: their families, and how many series there are."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.daemon.support import Daemon, Page, Surroundings
from tests.daemon.test_prometheus import lint
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.kernel.tcp import CLOSE, Ends, new_ends, reset, wait_for_state

from sockledger.workloads import naming

WORKLOAD = frozenset(naming.LABELS)
MOST_SERIES = 40  # of a typical workload

COUNTERS = (
    *("connections_opened", "connections_closed", "connect_failures", "retransmitted_segments"),
    *("retransmission_timeouts", "transmit_segments", "receive_segments", "out_of_order_segments"),
    *("acked_bytes", "received_bytes", "busy_seconds", "limited_seconds"),
)
TYPES = (
    {f"sockledger_tcp_{name}_total": "counter" for name in (*COUNTERS, "listen_drops")}
    | {
        f"sockledger_tcp_{name}": "gauge"
        for name in ("connections", "sockets", "listen_queue_length", "listen_queue_limit")
    }
    | {
        "sockledger_udp_receive_drops_total": "counter",
        "sockledger_node_tcp_retransmitted_segments_total": "counter",
        "sockledger_node_tcp_rtt_seconds": "histogram",
        "sockledger_node_tcp_connect_duration_seconds": "histogram",
    }
)
MEASURES = ("rtt", "connect_duration", "connection_lifetime")
DISTRIBUTIONS = tuple(f"sockledger_tcp_{name}_seconds" for name in MEASURES)
LABELS = {
    "connections_opened_total": "role",
    "connections_closed_total": "role",
    "connections": "role",
    "sockets": "state",
    "connect_failures_total": "reason",
    "limited_seconds_total": "by",
    "listen_queue_length": "port",
    "listen_queue_limit": "port",
    "listen_drops_total": "port",
}


def types_of(text: str) -> dict[str, str]:
    """The families of TCP and UDP, with their types."""
    found = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return {name: kind for name, kind in found.items() if re.match(r"sockledger_(node_)?(tcp|udp)_", name)}


def labels_of(page: Page, name: str) -> set[frozenset[str]]:
    return {frozenset(dict(has)) for found, has in page.samples if found == name}


@contextmanager
def work(netns: Netns, client: Cgroup, server: Cgroup) -> Iterator[Ends]:
    """What clients and servers do: connections that are open and that have ended either way, one refused."""
    with new_ends(client, server, netns) as ends:
        listener = ends.listener()
        pairs = ends.pairs(6, listener)
        for pair in pairs:
            pair.exchange(2000, 5000)
        reset(pairs[0].client)
        wait_for_state(pairs[0].server, CLOSE)
        pairs[0].server.close()
        pairs[1].client.shutdown(socket.SHUT_WR)
        assert not pairs[1].server.recv(1)
        pairs[1].server.close()
        assert not pairs[1].client.recv(1)
        pairs[1].client.close()
        pairs[2].server.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionRefusedError):
            ends.new_socket(client).connect(("127.0.0.1", 9))
        yield ends


def series(page: Page, cgroup: str) -> list[str]:
    """The lines that are one workload's."""
    return [
        line for line in page.text.splitlines() if not line.startswith("#") and f'cgroup="{cgroup}"' in line
    ]


@pytest.fixture
def cgroups(place: Surroundings) -> Iterator[list[Cgroup]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(new_cgroup(place.cgroup.path, name)) for name in ("client", "server", "both")
        ]


def test_families(place: Surroundings, netns: Netns, cgroups: list[Cgroup]) -> None:
    client, server, _ = cgroups
    daemon = place.run()
    with work(netns, client, server):
        page = daemon.settled()
    assert types_of(page.text) == TYPES | dict.fromkeys(DISTRIBUTIONS, "summary")
    for name, kind in TYPES.items():
        if kind == "histogram" or name.startswith("sockledger_udp"):
            continue
        short = name.removeprefix("sockledger_tcp_")
        own = {LABELS[short]} if short in LABELS else set()
        expected = {"peer"} if "node" in name else WORKLOAD | own
        assert labels_of(page, name) == {frozenset(expected)}, name
    for name in ("rtt", "connect_duration"):
        assert labels_of(page, f"sockledger_node_tcp_{name}_seconds_bucket") == {frozenset({"peer", "le"})}
    for name in DISTRIBUTIONS:
        for part in ("sum", "count"):
            assert labels_of(page, f"{name}_{part}") == {WORKLOAD}

    def value(name: str, cgroup: str, **labels: str) -> float:
        (only,) = page.values(f"sockledger_tcp_{name}", cgroup=cgroup, **labels)
        return only

    for cgroup, role in (("/client", "active"), ("/server", "passive")):
        assert value("connections_opened_total", cgroup, role=role) == 6
        assert value("connections_closed_total", cgroup, role=role) == 2
        assert value("connections", cgroup, role=role) == 4
        assert value("connection_lifetime_seconds_count", cgroup) == 2
        assert value("sockets", cgroup, state="established") == 3
    assert value("connect_failures_total", "/client", reason="refused") == 1
    assert value("sockets", "/client", state="close_wait") == 1
    assert value("sockets", "/server", state="fin_wait2") == 1
    assert value("sockets", "/server", state="listen") == 1
    assert value("listen_queue_limit", "/server") == 128
    assert value("received_bytes_total", "/client") == 6 * 5000 + 2, "and two FINs"
    assert page.sum("node_tcp_connect_duration_seconds_count") == 6


def test_a_typical_workload_has_few_series(place: Surroundings, netns: Netns, cgroups: list[Cgroup]) -> None:
    client, server, both = cgroups
    daemon = place.run()
    with work(netns, client, server), work(netns, both, both):
        page = daemon.settled()
    for cgroup in ("/client", "/server", "/both"):
        lines = series(page, cgroup)
        assert any("_tcp_" in line for line in lines)
        assert len(lines) <= MOST_SERIES, "\n".join(lines)


@pytest.mark.parametrize("histograms", [False, True])
def test_promtool_accepts_both(
    place: Surroundings, netns: Netns, cgroups: list[Cgroup], histograms: bool
) -> None:
    client, server, both = cgroups
    daemon = place.run(*(["--collector.tcp.histograms"] if histograms else []))
    with work(netns, client, server), work(netns, both, both):
        page = daemon.settled()
    lint(page.text)
    kinds = types_of(page.text)
    for name in DISTRIBUTIONS:
        assert kinds[name] == ("histogram" if histograms else "summary")
        assert bool(page.values(f"{name}_bucket")) == histograms
    for cgroup, number in (("/client", 6), ("/both", 6)):
        assert page.sum("tcp_connect_duration_seconds_count", cgroup=cgroup) == number
        if histograms:
            name = "tcp_connect_duration_seconds_bucket"
            assert page.sum(name, cgroup=cgroup, le="+Inf") == number


@pytest.mark.parametrize("collector", ["tcp", "listeners", "udp"])
def test_collectors_that_are_off(
    place: Surroundings, netns: Netns, cgroups: list[Cgroup], collector: str
) -> None:
    client, server, _ = cgroups
    daemon = place.run(f"--no-collector.{collector}")
    with work(netns, client, server):
        kinds = types_of(daemon.settled().text)

    def belongs(name: str) -> bool:
        if "_udp_" in name:
            return collector == "udp"
        return collector == ("listeners" if "_listen_" in name else "tcp")

    every = TYPES | dict.fromkeys(DISTRIBUTIONS, "summary")
    assert kinds.keys() == {name for name in every if not belongs(name)}


def test_without_any(place: Surroundings, netns: Netns, cgroups: list[Cgroup]) -> None:
    """Then their programs are not attached either."""
    client, server, _ = cgroups
    daemon = place.run(*(f"--no-collector.{name}" for name in ("tcp", "listeners", "udp", "unix")))
    with work(netns, client, server):
        page = daemon.settled()
    assert types_of(page.text) == {}
    assert page.sum("transmit_bytes_total", cgroup="/client", protocol="tcp") > 0
    assert links_of(daemon) == 5


def links_of(daemon: Daemon) -> int:
    return len(daemon.links())
