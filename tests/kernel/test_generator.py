"""The generator's figures of connections, against what the kernel counted of their network namespace."""

import pytest
from tests.kernel.machine import Netns
from tests.kernel.traffic import SLOW_LINK, Generator, Result, netstat, scaled
from tests.patience import SCALE

CONNECTIONS = max(scaled(700), 140)  # several of each kind, at any scale
SCENARIOS = {"connections": CONNECTIONS, "tcp": 700, "unaccepted": 200, "killed": 200, "accounts": 2000}

OPTIONAL = {"mptcp": "mptcp_absent"} | dict.fromkeys(
    ("destroyed_client", "destroyed_server", "destroyed_connecting", "destroyed_listener"), "destroy_absent"
)
KINDS = (
    *("client_close", "server_close", "client_reset", "server_reset", "client_unread", "server_unread"),
    *("unused", "tcp_refused", "unaccepted", "killed", "killed_server", "accepted_late", "mapped"),
    *("reset_unaccepted", "deferred_accept", "half_closed_by_client", "half_closed_by_server"),
    *("simultaneous_close", "refused_reused", "aborted_by_close", "aborted_by_disconnect"),
    *("aborted_by_shutdown", "timed_out_user", "timed_out_retries", "fast_open_requested", "fast_open_used"),
    *("simultaneous_open", "self_connect", "syn_cookie", "reused", "turned", *OPTIONAL),
)


def total(sides: dict[str, dict[str, int]], name: str) -> int:
    return sum(side[name] for side in sides.values())


def assert_counted(result: Result, counted: dict[str, int]) -> None:
    refused, timed_out, aborted = (
        total(result.failures, reason) for reason in ("refused", "timed_out", "aborted")
    )
    # whatever sends a SYN of its own opens actively, though it may fail
    attempts = total(result.connections, "active") + refused + timed_out + aborted
    assert counted["TcpActiveOpens"] == attempts
    assert counted["TcpPassiveOpens"] == total(result.connections, "passive")
    # what a process ends itself has not failed in the kernel's eyes
    assert counted["TcpAttemptFails"] == refused + timed_out + result.events["destroyed_connecting"]
    assert counted["TcpExtTCPAbortOnTimeout"] == timed_out


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_kernel_counted_the_same_connections(scenario: str, generator: Generator, netns: Netns) -> None:
    result = generator.run(scenario, scaled(SCENARIOS[scenario]))
    counted = netstat(netns)
    assert_counted(result, counted)
    assert counted["TcpCurrEstab"] == 0


def test_connections_of_every_kind_some_kept(generator: Generator, netns: Netns) -> None:
    with generator.start("connections", CONNECTIONS, keep=20) as running:
        so_far = running.wait_ready()
        counted = netstat(netns)
        assert counted["TcpCurrEstab"] == 2 * 20
        assert_counted(so_far, counted)
        result = running.result()
    assert result == so_far
    for kind in KINDS:
        assert result.events[kind] or result.events[OPTIONAL[kind]], kind
    assert counted["TcpExtSyncookiesRecv"] == result.events["syn_cookie"]
    assert counted["TcpExtTCPFastOpenPassive"] == result.events["fast_open_used"]
    assert counted["TcpExtTCPFastOpenCookieReqd"] == result.events["fast_open_requested"]
    assert netstat(netns)["TcpCurrEstab"] == 0


def test_connections_of_a_namespace_that_ends(generator: Generator) -> None:
    result = generator.run("netns_destroyed", scaled(1000))
    opened = scaled(1000)
    assert result.connections == {
        "client": {"active": opened, "passive": 0},
        "server": {"active": 0, "passive": opened},
    }


def test_accounts_agree_with_each_other(generator: Generator, netns: Netns) -> None:
    count = scaled(2000)
    result = generator.run("accounts", count, rounds=2)
    client, server = result.tcp_info["client"], result.tcp_info["server"]
    assert client["bytes_acked"] == result.events["client_sent"] + count  # its SYN is acknowledged too
    assert server["bytes_acked"] == result.events["server_sent"]
    assert client["bytes_received"] == result.events["server_sent"]
    assert server["bytes_received"] == result.events["client_sent"]
    counted = netstat(netns)
    assert client["total_retrans"] + server["total_retrans"] == counted["TcpRetransSegs"]
    # a reset leaves a socket that is closed already, and comes to one that is not; the SYN-ACK is nobody's
    assert client["segs_out"] + result.events["client_resets"] == server["segs_in"]
    assert server["segs_out"] + result.events["server_resets"] + count == client["segs_in"]


def test_accounts_of_slow_connections(generator: Generator, netns: Netns) -> None:
    for side in generator.run("accounts", 64, slow=1).tcp_info.values():
        assert side["busy_time"] >= side["rwnd_limited"] > 0
    netns.run("tc", "qdisc", "add", "dev", "lo", "root", *SLOW_LINK)
    sides = generator.run("accounts", 64, small_buffer=1).tcp_info.values()
    assert all(side["busy_time"] >= side["sndbuf_limited"] for side in sides)
    # of one side it may be less than a tick
    assert sum(side["sndbuf_limited"] for side in sides) > 0 or SCALE > 1, (
        "an emulator is slower than the link"
    )


@pytest.mark.parametrize("family", [4, 6])
def test_a_listener_without_room(family: int, generator: Generator, netns: Netns) -> None:
    with generator.start("listen_overflow", 40, family=family, backlog=8) as running:
        so_far = running.wait_ready()
        assert so_far.connections["server"]["passive"] == 8 + 1
        assert netstat(netns)["TcpCurrEstab"] == 2 * (8 + 1)
        result = running.result()
    counted = netstat(netns)
    assert_counted(result, counted)
    assert result.events["listen_drops"] == counted["TcpExtListenDrops"] == counted["TcpExtListenOverflows"]
    assert result.events["listen_drops"] >= 40 - (8 + 1)  # more if a SYN was repeated


def test_datagrams_that_are_dropped(generator: Generator, netns: Netns) -> None:
    with generator.start("udp_drops", 160) as running:
        so_far = running.wait_ready()
        assert running.result() == so_far
    counted = netstat(netns)
    assert so_far.events["udp_drops"] == counted["UdpInErrors"] + counted["Udp6InErrors"]
    for name, events in (
        ("RcvbufErrors", ("udp_drops_buffer", "udp_drops_short")),
        ("InCsumErrors", ("udp_drops_checksum",)),
    ):
        assert counted[f"Udp{name}"] + counted[f"Udp6{name}"] == sum(so_far.events[each] for each in events)
    assert so_far.events["udp_drops_filter"] > 0
