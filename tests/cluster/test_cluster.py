"""In a real Kubernetes: known bytes, exact, under the right namespace, pod and container, up to PromQL."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cluster.kubernetes import (
    DIR,
    IMAGE,
    MANIFESTS,
    ROOT,
    TALK,
    Kubernetes,
    Manifest,
    container,
    daemon_set,
    logs,
    pod,
    said,
    talker,
)
from tests.cluster.talk import BYTES
from tests.daemon.prometheus import Prometheus
from tests.daemon.support import Page
from tests.kernel.machine import run
from tests.patience import eventually

SOCKLEDGER = str(ROOT / ".venv/bin/sockledger")
BPFFS = DIR / "bpf"
PORT = 10042
EXPORTER = "exporter"

Truth = dict[tuple[str, str, str], int]  # bytes by namespace, pod and container


@dataclass
class Exporter:
    """It runs as a pod with three capabilities, and one for the tests: chroot(2)."""

    kubernetes: Kubernetes
    address: str

    @property
    def process(self) -> int:
        return running()[0]

    def page(self) -> Page:
        return Page(run("curl", "--silent", "--fail", f"http://{self.address}:{PORT}/metrics"))


def running() -> list[int]:
    """The exporter's processes, seldom more than one."""
    found = subprocess.run(["pgrep", "--full", f"{SOCKLEDGER} run"], stdout=subprocess.PIPE, check=False)
    return [int(each) for each in found.stdout.split()]


def manifest() -> Manifest:
    capabilities = {"drop": ["ALL"], "add": ["BPF", "PERFMON", "NET_ADMIN", "SYS_CHROOT"]}
    command = (SOCKLEDGER, "run", f"--path.bpffs={BPFFS}", f"--web.listen-address=0.0.0.0:{PORT}")
    return pod(
        EXPORTER,
        container(EXPORTER, *command, securityContext={"capabilities": capabilities}),
        namespace="monitoring",
        hostPID=True,
        securityContext={"seccompProfile": {"type": "RuntimeDefault"}},
    )


@pytest.fixture(scope="module")
def exporter(kubernetes: Kubernetes) -> Iterator[Exporter]:
    BPFFS.mkdir()
    run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(BPFFS))
    for name in ("monitoring", "shop"):
        kubernetes.kubectl("create", "namespace", name)
    try:
        kubernetes.apply(manifest())
        started = kubernetes.wait_until(EXPORTER, lambda each: bool(each["status"].get("podIP")))
        made = Exporter(kubernetes, started["status"]["podIP"])
        # who asks before it listens gets a reply of the kernel's own, which is nobody's traffic
        eventually(lambda: any("msg=counting" in each.read_text() for each in logs(EXPORTER)), "counting")
        yield made
        kubernetes.kubectl("delete", "pod", EXPORTER, "--namespace=monitoring")
        eventually(lambda: not running(), "exporter ended")
    finally:
        run(SOCKLEDGER, "uninstall", f"--path.bpffs={BPFFS}")


@pytest.fixture(scope="module")
def prometheus(exporter: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It gives the target the labels that it gives pods."""
    folder = tmp_path_factory.mktemp("prometheus") / "data"
    target = f"{exporter.address}:{PORT}"
    labels = {"namespace": "monitoring", "pod": EXPORTER, "container": EXPORTER}
    with closing(Prometheus(folder, target, **labels)) as made:
        made.wait_for_scrapes(2)
        yield made


def sent(prometheus: Prometheus, direction: str = "transmit") -> Truth:
    """What Prometheus has of all pods' datagrams."""
    metric = f'sockledger_{direction}_bytes_total{{protocol="udp",pod!="",pod!="{EXPORTER}"}}'
    found = {}
    for each in prometheus.query(f"sum by (namespace, pod, container) ({metric})"):
        labels = each["metric"]
        key = labels.get("namespace", ""), labels["pod"], labels.get("container", "")
        found[key] = int(each["value"][1])
    return found


def test_kinds_of_pods(kubernetes: Kubernetes, exporter: Exporter, prometheus: Prometheus) -> None:
    truth: Truth = {
        ("shop", "net", "one"): 10,
        ("shop", "net", "two"): 20,
        ("shop", "host-a", "main"): 30,
        ("shop", "host-b", "main"): 40,
        ("default", "static-localhost", "main"): 60,
        ("default", "again", "main"): 140,  # twice 70
    }
    MANIFESTS.joinpath("static.json").write_text(json.dumps(pod("static", talker("main", 60))))
    kubernetes.apply(
        pod("net", talker("one", 10), talker("two", 20), namespace="shop"),
        pod("host-a", talker("main", 30), namespace="shop", hostNetwork=True),
        pod("host-b", talker("main", 40), namespace="shop", hostNetwork=True),
        pod("again", talker("main", 70)),
        daemon_set(pod("agent", talker("main", 50), hostNetwork=True)),
    )
    agent = kubernetes.wait_until("agent-", lambda each: said("agent-", 1))["metadata"]["name"]
    truth["default", agent, "main"] = 50
    for name, times in {"net": 2, "host-a": 1, "host-b": 1, "static-localhost": 1, "again": 1}.items():
        eventually(lambda name=name, times=times: said(name, times), f"{name} has said it")  # type: ignore[misc]
    os.kill(int(run("pgrep", "--full", "talk.py 70")), signal.SIGKILL)
    eventually(lambda: said("again", 2), "the restarted one has said it")
    for number in range(5):
        name = f"job-{number}"
        truth["shop", name, "main"] = 80 + number
        kubernetes.apply(pod(name, talker("main", 80 + number, 2), namespace="shop", restartPolicy="Never"))
    for number in range(5):
        name = f"job-{number}"
        kubernetes.wait_until(name, lambda each: each["status"]["phase"] == "Succeeded")
        kubernetes.kubectl("delete", "pod", name, "--namespace=shop")
    expected = {key: number * BYTES for key, number in truth.items()}
    eventually(lambda: sent(prometheus) == expected, f"{expected}")
    assert sent(prometheus, "receive") == expected


def test_the_exporters_own_pod(exporter: Exporter, prometheus: Prometheus) -> None:
    """The labels of the target are nobody else's: with them is its own traffic, and nothing else."""
    own = f'sockledger_transmit_bytes_total{{pod="{EXPORTER}",family="ipv4"}}'
    (only,) = prometheus.query(f"sum by (namespace, pod, container, protocol) ({own})")
    assert only["metric"] == {
        "namespace": "monitoring",
        "pod": EXPORTER,
        "container": EXPORTER,
        "protocol": "tcp",
    }
    prometheus.close()

    def octets() -> int:
        """What the pod's network namespace has sent over IPv4."""
        lines = Path(f"/proc/{exporter.process}/net/netstat").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("IpExt:"))
        return int(dict(zip(names, values, strict=True))["OutOctets"])

    time.sleep(1.3)  # what a scrape shows may be a second old; and Prometheus' connection has ended
    before = octets()
    counted = exporter.page().sum("transmit_bytes_total", pod=EXPORTER, family="ipv4")
    assert before <= counted <= octets()


def test_killed_exporter(exporter: Exporter) -> None:
    """Counters go on, and the names with them."""

    def workloads(page: Page) -> dict[frozenset[tuple[str, str]], float]:
        return {
            labels: value
            for (name, labels), value in page.samples.items()
            if name == "sockledger_transmit_bytes_total" and ("protocol", "udp") in labels
            if dict(labels)["namespace"] == "shop"
        }

    before = workloads(exporter.page())
    assert before
    os.kill(exporter.process, signal.SIGKILL)
    after: list[dict[frozenset[tuple[str, str]], float]] = []

    def is_back() -> bool:
        try:
            after[:] = [workloads(exporter.page())]
        except RuntimeError:
            return False
        return True

    eventually(is_back, "restarted")
    assert after == [before]


def test_containers_without_kubernetes(kubernetes: Kubernetes, exporter: Exporter) -> None:
    command = ("/bin/chroot", "/host", "/usr/bin/python3", TALK, "25")
    mount = "type=bind,src=/,dst=/host,options=rbind:ro"
    for name in ("plain", "other"):
        kubernetes.ctr("run", "--detach", "--net-host", "--mount", mount, IMAGE, name, *command)
    for name in ("plain", "other"):
        labels = {"namespace": "", "pod": "", "container": name, "unit": "", "cgroup": ""}
        eventually(lambda labels=labels: exporter.page().sum("transmit_bytes_total", **labels) == 25 * BYTES)  # type: ignore[misc]


def test_without_the_api_server(kubernetes: Kubernetes, exporter: Exporter) -> None:
    kubernetes.stop("apiserver")
    try:
        MANIFESTS.joinpath("alone.json").write_text(json.dumps(pod("alone", talker("main", 90))))
        eventually(lambda: said("alone-localhost", 1), "the static pod has said it")
        name = {"namespace": "default", "pod": "alone-localhost", "container": "main"}
        eventually(lambda: exporter.page().sum("transmit_bytes_total", protocol="udp", **name) == 90 * BYTES)
    finally:
        kubernetes.start("apiserver")
