"""TCP under a network that loses, delays and is torn down: what is counted is what the kernel says of it."""

import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.kernel.ledger import attached, record_of
from tests.kernel.machine import Netns
from tests.kernel.objects import Change, build
from tests.kernel.tcp import (
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    LAST_ACK,
    LISTEN,
    SIDES,
    SYN_SENT,
    TICK,
    TIME_WAIT,
    Ends,
    Pair,
    books_of,
    counts_of,
    has_netem,
    infos,
    lossy,
    proc_states,
    reset,
    tcp_info,
    tcp_losses,
    unreachable,
    wait_for_state,
)
from tests.kernel.traffic import netstat
from tests.patience import SCALE, eventually

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath

RTT, CONNECT_DURATION, LIFETIME = range(3)  # enum measure


# ---- loss


def transfer(pairs: list[Pair], size: int) -> None:
    """Send so many bytes from each client, all at the same time."""

    def send(pair: Pair) -> None:
        pair.client.sendall(bytes(size))

    def receive(pair: Pair) -> None:
        left = size
        while left:
            left -= len(pair.server.recv(1 << 20))

    threads = [threading.Thread(target=each, args=(pair,)) for pair in pairs for each in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pair in pairs:
        pair.settle()


@pytest.mark.parametrize("rule", ["numgen inc mod 5 == 0", "numgen random mod 4 == 0"], ids=["fifth", "any"])
def test_retransmission_under_loss(below: CgroupRoot, ends: Ends, rule: str) -> None:
    """What is sent again is what TCP_INFO says, and the namespace's own counter.

    Retransmission timeouts are the namespace's TCPTimeouts: both count each time that the timer finds data
    or a SYN unacknowledged, before the kernel decides whether to give up. tcpi_total_rto does not count the
    last one of a connection that is given up, so it is the same where none is.
    """
    # many packets, so that one is lost and a later one is not
    ends.netns.run("ip", "link", "set", "lo", "mtu", "1500")
    with attached(below) as path:
        before = netstat(ends.netns)
        pairs = ends.pairs(6)
        with lossy(ends.netns, f"tcp flags & (syn | fin | rst) == 0 meta length > 100 {rule} drop"):
            transfer(pairs, 100_000)
        path.flush_tcp()
        after = netstat(ends.netns)
        found = [(books_of(path, cgroup.id), infos(pairs, side)) for side, cgroup in ends.sides]
        for books, info in found:
            assert books.counts == counts_of(info)
        retransmitted = sum(books.counts["retransmitted_segments"] for books, _ in found)
        assert retransmitted == after["TcpRetransSegs"] - before["TcpRetransSegs"] > 0
        timeouts = sum(books.timeouts for books, _ in found)
        assert timeouts == after["TcpExtTCPTimeouts"] - before["TcpExtTCPTimeouts"]
        if "total_rto" in tcp_info(pairs[0].client):
            assert timeouts == sum(info["total_rto"] for _, info in found)
        (in_order, out_of_order) = (books.counts["out_of_order_segments"] for books, _ in found)
        assert in_order == 0, "nobody sends data to the client"
        assert out_of_order > 0


def test_timeouts_of_connects_and_of_silence(below: CgroupRoot, ends: Ends) -> None:
    """The timer's expirations, of SYNs and of data, up to the one at which a connection is given up."""
    with attached(below) as path:
        before = netstat(ends.netns)
        (pair,) = ends.pairs(1)
        with lossy(ends.netns, "meta l4proto tcp drop"):
            connecting = ends.new_socket(ends.client)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
            connecting.setblocking(False)
            assert connecting.connect_ex(("127.0.0.1", 9)) != 0
            pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
            pair.client.send(b"x")
            eventually(lambda: connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0, "given up")
            with pytest.raises(TimeoutError, match="Connection timed out"):
                pair.client.recv(1)
        after = netstat(ends.netns)
        books = books_of(path, ends.client.id)
        assert books.failures == {"timed-out": 1}
        assert books.closed == {"active": 1}
        assert books.timeouts == after["TcpExtTCPTimeouts"] - before["TcpExtTCPTimeouts"] > 2
        assert (
            books.counts["retransmitted_segments"] == after["TcpRetransSegs"] - before["TcpRetransSegs"] > 1
        )


# ---- states


def test_sockets_by_state(below: CgroupRoot, ends: Ends) -> None:
    """Each state that a socket can stay in, against /proc/net/tcp."""
    kept: list[socket.socket] = []
    with attached(below) as path, lossy(ends.netns, "tcp dport 9 drop"):
        listener = ends.listener()
        connecting = ends.new_socket(ends.client)
        connecting.setblocking(False)
        connecting.connect_ex(("127.0.0.1", 9))  # SYN_SENT
        pairs = ends.pairs(9, listener)
        for pair in pairs:
            pair.exchange(10, 10)
        kept += [each for pair in pairs for each in (pair.client, pair.server)]
        ports = {
            ends.client.id: {each.getsockname()[1] for each in (connecting, *(p.client for p in pairs))},
            ends.server.id: {listener.getsockname()[1]},
        }
        _established, _open, half, half_too, no_fin, last, *crossing = pairs[:8]
        for pair in (half, half_too, last):
            pair.client.shutdown(socket.SHUT_WR)  # FIN_WAIT2, and CLOSE_WAIT over there
            wait_for_state(pair.server, CLOSE_WAIT)
            wait_for_state(pair.client, FIN_WAIT2)
        silenced = [no_fin, last, *crossing]
        with unreachable(ends.netns, {pair.client.getsockname()[1] for pair in silenced}) as let:
            no_fin.client.shutdown(socket.SHUT_WR)  # FIN_WAIT1: nobody hears
            last.server.shutdown(socket.SHUT_WR)  # LAST_ACK: the same
            for pair in crossing:  # each FIN is lost, and the other side sends its own: CLOSING in the end
                pair.client.shutdown(socket.SHUT_WR)
                pair.server.shutdown(socket.SHUT_WR)
            compare_states(path, ends, ports)
            found = books_of(path, ends.client.id).sockets
            assert found == {
                ESTABLISHED: 3,
                SYN_SENT: 1,
                FIN_WAIT1: 3,
                FIN_WAIT2: 3,
            }
            assert books_of(path, ends.server.id).sockets == {
                ESTABLISHED: 4,
                CLOSE_WAIT: 2,
                FIN_WAIT1: 2,
                LAST_ACK: 1,
                LISTEN: 1,
            }
            # the server's FIN arrives, but the client's ACK of it does not, nor the client's own
            let(f"tcp sport {listener.getsockname()[1]} tcp flags & fin == fin")
            for pair in crossing:
                wait_for_state(pair.client, CLOSING)
            compare_states(path, ends, ports)
            assert books_of(path, ends.client.id).sockets[CLOSING] == len(crossing)
        for each in kept:
            reset(each)
        connecting.close()
        listener.close()

        def over() -> bool:
            path.flush_tcp()
            return not any(books_of(path, cgroup.id).sockets for _, cgroup in ends.sides)

        eventually(over, "no state is left")


def compare_states(path: DataPath, ends: Ends, ports: dict[int, set[int]]) -> None:
    """The server's sockets share its listener's port; TIME_WAIT is no socket of anybody's."""

    def same() -> bool:  # what is lost is sent again, so a state may change at any time
        before = states_by_cgroup(ends.netns, ports)
        path.flush_tcp()
        after = states_by_cgroup(ends.netns, ports)
        found = {cgroup_id: Counter(books_of(path, cgroup_id).sockets) for cgroup_id in ports}
        assert before != after or found == after, (found, after)
        return before == after

    eventually(same, "no state changes")


def states_by_cgroup(netns: Netns, ports: dict[int, set[int]]) -> dict[int, Counter[int]]:
    states = proc_states(netns)
    found = {
        cgroup_id: sum((states.get(port, Counter()) for port in its), Counter())
        for cgroup_id, its in ports.items()
    }
    for each in found.values():
        del each[TIME_WAIT]
    return found


# ---- durations


def test_connect_duration_is_what_the_network_imposes(below: CgroupRoot, ends: Ends) -> None:
    """The first SYN is lost; the second comes after a second, less a tick."""
    with attached(below) as path:
        listener = ends.listener()
        client = ends.new_socket(ends.client)
        client.setblocking(False)
        with lossy(ends.netns, "tcp flags & (syn | ack) == syn drop"):
            start = time.monotonic()
            client.connect_ex(listener.getsockname())
        client.setblocking(True)
        wait_for_state(client, ESTABLISHED)
        measured = (time.monotonic() - start) * 1e6
        (count, duration) = books_of(path, ends.client.id).measured[CONNECT_DURATION]
        assert count == 1
        assert 1_000_000 - TICK <= duration <= measured
        assert books_of(path, ends.server.id).measured[CONNECT_DURATION] == (0, 0)
        reset(client)
        total = (time.monotonic() - start) * 1e6
        (count, lifetime) = books_of(path, ends.client.id).measured[LIFETIME]
        assert count == 1
        assert duration + lifetime <= total, "it lives from when it is open"
        for histograms in (record_of(path, "tcp_histograms", ends.client.id), node_histograms(path)):
            assert_observed(histograms, CONNECT_DURATION, duration)


def node_histograms(path: DataPath) -> dict[str, int]:
    return {name.removeprefix("histograms."): value for name, value in path.node_totals()[""].items()}


def assert_observed(histograms: dict[str, int], measure: int, value: int) -> None:
    """The value is there, once, in its bucket; each ends at 4 times the last."""
    bounds = [100 * 4**power for power in range(10)]
    bucket = sum(value > bound for bound in bounds)
    assert histograms[f"measured[{measure}].sum"] == value
    for number in range(len(bounds) + 1):
        assert histograms[f"measured[{measure}].buckets[{number}]"] == (number == bucket)


def test_lifetime_is_the_time_between_open_and_closed(below: CgroupRoot, ends: Ends) -> None:
    with attached(below) as path:
        listener = ends.listener()
        client = ends.new_socket(ends.client)
        outer = time.monotonic()
        client.connect(listener.getsockname())
        server = ends.accept(listener)
        wait_for_state(server, ESTABLISHED)
        inner = time.monotonic()
        time.sleep(0.3)
        inner_time = time.monotonic() - inner
        reset(client)
        wait_for_state(server, 7)
        outer_time = time.monotonic() - outer
        for _, cgroup in ends.sides:
            count, lifetime = books_of(path, cgroup.id).measured[LIFETIME]
            assert count == 1
            assert inner_time * 1e6 - 1 <= lifetime <= outer_time * 1e6
            assert_observed(record_of(path, "tcp_histograms", cgroup.id), LIFETIME, lifetime)


def test_rtt_is_what_the_socket_says(below: CgroupRoot, ends: Ends) -> None:
    with attached(below) as path:
        (pair,) = ends.pairs(1)
        pair.exchange(1000, 1000)
        said = {side: tcp_info(getattr(pair, side))["rtt"] for side in SIDES}
        path.flush_tcp()
        for side, cgroup in ends.sides:
            assert books_of(path, cgroup.id).measured[RTT] == (1, said[side])
            assert_observed(record_of(path, "tcp_histograms", cgroup.id), RTT, said[side])


def test_rtt_and_connect_duration_of_a_long_way(below: CgroupRoot, ends: Ends) -> None:
    """netem holds each packet for 50 ms, so there and back takes 100 ms at least."""
    if not has_netem(ends.netns):
        pytest.skip("this kernel has no netem")
    ends.netns.run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "50ms")
    with attached(below) as path:
        start = time.monotonic()
        (pair,) = ends.pairs(1)
        outer = (time.monotonic() - start) * 1e6
        for _ in range(3):
            pair.exchange(100, 100)
        said = {side: tcp_info(getattr(pair, side))["rtt"] for side in SIDES}
        path.flush_tcp()
        for side, cgroup in ends.sides:
            count, rtt = books_of(path, cgroup.id).measured[RTT]
            assert (count, rtt) == (1, said[side])
            assert rtt >= 100_000 - TICK
        count, duration = books_of(path, ends.client.id).measured[CONNECT_DURATION]
        assert count == 1
        assert 100_000 - TICK <= duration <= outer


def test_rtt_over_a_slow_link(below: CgroupRoot, ends: Ends) -> None:
    """A link that takes 20 ms for 10,000 bytes, where there is no netem."""
    try:
        ends.netns.run(
            *("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "4mbit"),
            *("burst", "70000", "latency", "2s"),
        )
    except RuntimeError as error:
        pytest.skip(f"this kernel has no tbf: {error}")
    with attached(below) as path:
        (pair,) = ends.pairs(1)
        transfer([pair], 200_000)  # the burst is over soon
        said = tcp_info(pair.client)["rtt"]
        path.flush_tcp()
        assert books_of(path, ends.client.id).measured[RTT] == (1, said)
        assert said >= 20_000


# ---- slots


def test_one_round_trip_time_per_slot_and_one_at_the_end(
    below: CgroupRoot, ends: Ends, tmp_path: Path
) -> None:
    """A busy connection does not drown the others, an idle one is not asked again."""
    slot = 1_000_000_000 if SCALE == 1 else 8_000_000_000
    shorter = Change("tcp.h", "RTT_SLOT 10000000000ULL", f"RTT_SLOT {slot}ULL")
    with attached(below, build(tmp_path, (shorter,))) as path:
        busy, idle = ends.pairs(2)
        for pair in (busy, idle):
            pair.exchange(100, 100)
        path.flush_tcp()
        for _, cgroup in ends.sides:
            assert books_of(path, cgroup.id).measured[RTT][0] == 2
        slots = 0
        while slots < 3:
            time.sleep(((slot - time.monotonic_ns() % slot) / 1e9) + 0.001)
            now = time.monotonic_ns() // slot
            for _ in range(3):
                busy.exchange(100, 100)
                path.flush_tcp()
            slots += 1
            assert time.monotonic_ns() // slot == now, "this machine is too slow for a slot"
            for _, cgroup in ends.sides:
                assert books_of(path, cgroup.id).measured[RTT][0] == 2 + slots
        said = Counter(
            {side: sum(tcp_info(getattr(pair, side))["rtt"] for pair in (busy, idle)) for side in SIDES}
        )
        before = {cgroup.id: books_of(path, cgroup.id).measured[RTT][1] for _, cgroup in ends.sides}
        for pair in (busy, idle):
            reset(pair.client)
            wait_for_state(pair.server, 7)
        for side, cgroup in ends.sides:
            count, total = books_of(path, cgroup.id).measured[RTT]
            assert count == 2 + slots + 2
            assert total - before[cgroup.id] == said[side]
        assert tcp_losses(path) == {}
