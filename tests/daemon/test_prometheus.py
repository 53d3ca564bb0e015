"""Up to PromQL: what a real Prometheus has stored is what was sent, to the byte."""

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tests.daemon.prometheus import Prometheus
from tests.daemon.support import Daemon, Surroundings
from tests.daemon.traffic import converse, ping, send_datagrams
from tests.kernel.machine import Netns, new_cgroup
from tests.kernel.traffic import scaled
from tests.patience import PATIENCE, eventually

Labels = tuple[str, ...]  # direction, cgroup, protocol, family
MEASURES = ("receive_bytes_total", "receive_packets_total", "transmit_bytes_total", "transmit_packets_total")


@pytest.fixture
def daemon(place: Surroundings) -> Daemon:
    return place.run()


@pytest.fixture
def prometheus(daemon: Daemon, tmp_path: Path) -> Iterator[Prometheus]:
    made = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{daemon.port}")
    try:
        yield made
    finally:
        made.close()


def test_a_thousand_short_lives(place: Surroundings, netns: Netns, tmp_path: Path) -> None:
    """Each lives for about 100 ms, and is no longer shown a little later."""
    daemon = place.run(place.configure("persist: {gone: 1s}"))
    truth: Counter[str] = Counter()
    count, at_once = scaled(1000), 50
    with closing(Prometheus(tmp_path / "prometheus", f"127.0.0.1:{daemon.port}")) as prometheus:
        prometheus.wait_for_scrapes(2)
        for first in range(0, count, at_once):
            with ExitStack() as stack:
                for number in range(first, min(first + at_once, count)):
                    cgroup = stack.enter_context(new_cgroup(place.cgroup.path, f"job-{number}"))
                    truth[f"/job-{number}"] = send_datagrams(
                        netns, cgroup, cgroup, number=1 + number % 3, size=100 + number
                    )
                time.sleep(0.1)
        eventually(lambda: daemon.page().sum("map_entries", map="cgroups") == 0, "all have been shown")
        assert "job-" not in daemon.page().text
        stored: dict[str, int] = {}
        for series in prometheus.query("sockledger_transmit_bytes_total[10m]"):
            samples = [float(value) for _, value in series["values"]]
            assert samples[0] == 0, "born at 0"
            assert samples == sorted(samples), "it never falls"
            stored[series["metric"]["cgroup"]] = int(samples[-1] - samples[0])
        assert stored == truth
        assert not prometheus.complaints()


def test_nothing_is_lost_up_to_promql(
    place: Surroundings, netns: Netns, daemon: Daemon, prometheus: Prometheus
) -> None:
    prometheus.wait_for_scrapes(2)
    truth = make_traffic(place, netns, prometheus)
    prometheus.wait_for_scrapes(4)

    stored: Counter[Labels] = Counter()
    for direction in ("receive", "transmit"):
        for series in prometheus.query(f"sockledger_{direction}_bytes_total[10m]"):
            samples = [float(value) for _, value in series["values"]]
            assert samples[0] == 0, "born at 0"
            assert samples == sorted(samples), "it never falls"
            labels = series["metric"]
            key = (direction, labels["cgroup"], labels["protocol"], labels["family"])
            stored[key] += int(samples[-1] - samples[0])
    assert stored == truth

    last = max(float(at) for series in prometheus.query("up[10m]") for at, _ in series["values"])
    for direction in ("receive", "transmit"):
        sent = sum(value for (found, *_), value in truth.items() if found == direction)
        for name in ("", "attach_point_"):
            expression = f"sum(increase(sockledger_{name}{direction}_bytes_total[10m]))"
            assert prometheus.value(expression, last) == pytest.approx(sent, rel=0.05), expression
    for name in ("unattributed", "overcounted"):
        assert prometheus.value(f"sum(max_over_time(sockledger_{name}_bytes_total[10m]))") == 0
    assert prometheus.value("min_over_time(up[10m])") == 1
    assert not prometheus.complaints()


def make_traffic(place: Surroundings, netns: Netns, prometheus: Prometheus) -> Counter[Labels]:
    """Let cgroups, protocols and families appear one after another; return the bytes of each."""
    truth: Counter[Labels] = Counter()

    def both(sent: int, sender: str, receiver: str, protocol: str, family: str) -> None:
        truth["transmit", sender, protocol, family] += sent
        truth["receive", receiver, protocol, family] += sent

    with ExitStack() as stack:
        for turn, name in enumerate("abcd"):
            cgroup = stack.enter_context(new_cgroup(place.cgroup.path, name))
            family = ("ipv4", "ipv6")[turn % 2]
            with new_cgroup(cgroup.path, "peer") as peer:
                both(
                    send_datagrams(netns, cgroup, peer, number=7 + turn, family=family),
                    *(f"/{name}", f"/{name}/peer", "udp", family),
                )
                if turn > 0:
                    both(ping(netns, cgroup, family=family), f"/{name}", f"/{name}", "icmp", family)
                if turn > 1:
                    sent = converse(netns, cgroup, peer, size=123_456, family=family)
                    both(sent["client"], f"/{name}", f"/{name}/peer", "tcp", family)
                    both(sent["server"], f"/{name}/peer", f"/{name}", "tcp", family)
                prometheus.wait_for_scrapes(2)
            with new_cgroup(place.cgroup.path, f"short-{turn}") as short:  # gone before anybody looks
                sent_shortly = send_datagrams(netns, short, short, number=3)
            both(sent_shortly, f"/short-{turn}", f"/short-{turn}", "udp", "ipv4")
            both(send_datagrams(netns, cgroup, cgroup, number=50), f"/{name}", f"/{name}", "udp", "ipv4")
            time.sleep(0.5)  # so that turns and scrapes do not go in step
    return truth


def lint(page: str) -> None:
    done = subprocess.run(
        ("promtool", "check", "metrics"),
        input=page,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_promtool_has_nothing_to_say(place: Surroundings, netns: Netns) -> None:
    daemon = place.run()
    lint(daemon.page().text)
    with new_cgroup(place.cgroup.path, "a") as a:
        for family in ("ipv4", "ipv6"):
            send_datagrams(netns, a, a, family=family)
            ping(netns, a, family=family)
            converse(netns, a, a, size=1000, family=family)
        page = daemon.settled()
        assert page.labels("transmit_bytes_total", "protocol") == {"udp", "icmp", "tcp"}
        lint(page.text)


def test_openmetrics_is_the_same(place: Surroundings, netns: Netns) -> None:
    daemon = place.run(place.configure("flush: {interval: 1h}"), "--web.disable-exporter-metrics")
    with new_cgroup(place.cgroup.path, "a") as a:
        send_datagrams(netns, a, a)
        daemon.settled()
        text, openmetrics = daemon.page(), daemon.page(openmetrics=True)
        assert text.samples.keys() == openmetrics.samples.keys()
        assert openmetrics.text.endswith("# EOF\n")
        for measure in MEASURES:
            assert openmetrics.sum(measure, cgroup="/a") == text.sum(measure, cgroup="/a") > 0
