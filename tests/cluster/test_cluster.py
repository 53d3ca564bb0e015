"""In a real Kubernetes: known bytes, exact, under the right namespace, pod and container, up to PromQL."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
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
from tests.cluster.talk import main as talk
from tests.daemon.prometheus import Prometheus
from tests.daemon.support import Page
from tests.kernel.machine import new_cgroup, run
from tests.patience import eventually

from sockledger.kernel.cgroups import find_root

SOCKLEDGER = str(ROOT / ".venv/bin/sockledger")
BPFFS = DIR / "bpf"
CONFIG = DIR / "config.yml"
ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
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

    def is_up(self) -> bool:
        try:
            self.page()
        except RuntimeError:
            return False
        return True


def running() -> list[int]:
    """The exporter's processes, seldom more than one."""
    found = subprocess.run(["pgrep", "--full", f"{SOCKLEDGER} run"], stdout=subprocess.PIPE, check=False)
    return [int(each) for each in found.stdout.split()]


def manifest() -> Manifest:
    capabilities = {"drop": ["ALL"], "add": ["BPF", "PERFMON", "NET_ADMIN", "SYS_CHROOT"]}
    flags = (f"--path.bpffs={BPFFS}", f"--web.listen-address=0.0.0.0:{PORT}", f"--config.file={CONFIG}")
    made = container(
        EXPORTER,
        *(SOCKLEDGER, "run", *flags),
        securityContext={"capabilities": capabilities},
        env=[{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    )
    made["volumeMounts"].append({"name": "account", "mountPath": f"/host{ACCOUNT}", "readOnly": True})
    made = pod(
        EXPORTER,
        made,
        namespace="monitoring",
        hostPID=True,
        serviceAccountName=EXPORTER,
        securityContext={"seccompProfile": {"type": "RuntimeDefault"}},
    )
    # as Kubernetes would mount it, but in the host's file system, which it runs in
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt"}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    made["spec"]["volumes"].append({"name": "account", "projected": {"sources": sources}})
    return made


# What a user has to allow.
ACCOUNT_AND_ROLE: list[Manifest] = [
    {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": EXPORTER, "namespace": "monitoring"},
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": EXPORTER},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
    },
]
BINDING: Manifest = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": EXPORTER},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": EXPORTER},
    "subjects": [{"kind": "ServiceAccount", "name": EXPORTER, "namespace": "monitoring"}],
}


@pytest.fixture(scope="module")
def exporter(kubernetes: Kubernetes) -> Iterator[Exporter]:
    BPFFS.mkdir()
    run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(BPFFS))
    CONFIG.write_text(
        "workloads: {kubernetes: {kubeconfig: in-cluster, pod_labels: [app]}}\n"
        "networks: {pods: [10.88.7.0/24]}\nservice_networks: [10.96.0.0/24]\n"
    )
    for name in ("monitoring", "shop"):
        kubernetes.kubectl("create", "namespace", name)
    kubernetes.apply(*ACCOUNT_AND_ROLE, BINDING)
    account = Path(ACCOUNT)
    folders = [each for each in (account, *account.parents) if not each.exists()]
    account.mkdir(parents=True, exist_ok=True)
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
        for folder in folders:
            folder.rmdir()


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
    metric = 'sockledger_transmit_bytes_total{protocol="udp",label_app!=""}'
    labelled = {
        (each["metric"]["pod"], each["metric"]["label_app"]): int(each["value"][1])
        for each in prometheus.query(f"sum by (pod, label_app) ({metric})")
    }
    by_pod: Counter[tuple[str, str]] = Counter()
    for (_, name, _), number in expected.items():
        by_pod[name, {"static-localhost": "static", agent: "agent"}.get(name, name)] += number
    assert labelled == by_pod, "all of it is under the pod's label"


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


def test_classes_of_peers(exporter: Exporter) -> None:
    """A service is a class of its own: its address is seen, and not where the cluster sends packets."""
    time.sleep(1.3)
    page = exporter.page()
    for direction in ("receive", "transmit"):
        of_pod = {"pod": EXPORTER}
        of_class = {
            peer: page.sum(f"peer_{direction}_bytes_total", peer=peer, **of_pod)
            for peer in page.labels(f"peer_{direction}_bytes_total", "peer")
        }
        assert sum(of_class.values()) == page.sum(f"{direction}_bytes_total", **of_pod)
        assert {peer for peer, octets in of_class.items() if octets} == {"service", "pods"}, (
            "the API server, and who scrapes"
        )
        talkers = page.sum(f"{direction}_bytes_total", namespace="shop", protocol="udp")
        assert page.sum(f"peer_{direction}_bytes_total", namespace="shop", peer="loopback") == talkers > 0


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
    eventually(exporter.is_up, "restarted")
    assert workloads(exporter.page()) == before


def test_containers_without_kubernetes(kubernetes: Kubernetes, exporter: Exporter) -> None:
    command = ("/bin/chroot", "/host", "/usr/bin/python3", TALK, "25")
    mount = "type=bind,src=/,dst=/host,options=rbind:ro"
    for name in ("plain", "other"):
        kubernetes.ctr("run", "--detach", "--net-host", "--mount", mount, IMAGE, name, *command)
    for name in ("plain", "other"):
        labels = {"namespace": "", "pod": "", "container": name, "unit": "", "cgroup": ""}
        eventually(lambda labels=labels: exporter.page().sum("transmit_bytes_total", **labels) == 25 * BYTES)  # type: ignore[misc]


def is_shown(exporter: Exporter, name: str, number: int, **labels: str) -> bool:
    """Whether a pod of the namespace default has sent so many datagrams, all under these labels."""
    at = {"namespace": "default", "pod": name, "container": "main"}
    page = exporter.page()
    sent = page.sum("transmit_bytes_total", protocol="udp", **at)
    return sent == page.sum("transmit_bytes_total", protocol="udp", **at, **labels) == number * BYTES


def api_answers(exporter: Exporter) -> bool:
    return exporter.page().sum("name_source_up", source="kubernetes") == 1


def test_without_the_api_server(kubernetes: Kubernetes, exporter: Exporter) -> None:
    kubernetes.stop("apiserver")
    try:
        MANIFESTS.joinpath("alone.json").write_text(json.dumps(pod("alone", talker("main", 90))))
        eventually(lambda: said("alone-localhost", 1), "the static pod has said it")
        eventually(lambda: is_shown(exporter, "alone-localhost", 90))
        assert not api_answers(exporter)
    finally:
        kubernetes.start("apiserver")
    eventually(lambda: api_answers(exporter))
    kubernetes.apply(pod("later", talker("main", 35)))
    eventually(lambda: is_shown(exporter, "later", 35, label_app="later"))


def test_forbidden(kubernetes: Kubernetes, exporter: Exporter) -> None:
    """By RBAC, from its start: what had labels keeps them, what is new has none until it may."""
    kubernetes.kubectl("delete", "clusterrolebinding", EXPORTER)
    os.kill(exporter.process, signal.SIGKILL)
    eventually(exporter.is_up)
    eventually(lambda: not api_answers(exporter))
    assert is_shown(exporter, "later", 35, label_app="later")
    kubernetes.apply(pod("unlabelled", talker("main", 45)))
    eventually(lambda: is_shown(exporter, "unlabelled", 45))
    reason = 'User \\"system:serviceaccount:monitoring:exporter\\" cannot list resource'
    assert any(reason in each.read_text() for each in logs(EXPORTER))
    kubernetes.apply(BINDING)
    eventually(lambda: api_answers(exporter))


def test_a_thousand_pods(kubernetes: Kubernetes, exporter: Exporter) -> None:
    """Of this node, and as many of another."""
    kubernetes.kubectl("create", "namespace", "crowd")
    kubernetes.stop("kubelet")  # which would refuse so many, and say so in each
    try:
        for node in ("localhost", "elsewhere"):
            kubernetes.create_pods(
                pod(f"{node}-{number}", container("main", "true"), namespace="crowd", nodeName=node)
                for number in range(1000)
            )
        uids = {each["metadata"]["name"]: each["metadata"]["uid"] for each in kubernetes.pods()}
        ours, other = uids["localhost-999"], uids["elsewhere-999"]
        parent = find_root(None).path / "kubepods"
        with new_cgroup(parent, f"pod{ours}") as first, new_cgroup(parent, f"pod{other}") as second:
            for number, cgroup in enumerate((first, second), 5):
                with cgroup.joined():
                    talk(number, 0)
            ours_labels = {"namespace": "crowd", "pod": "localhost-999", "label_app": "localhost-999"}
            eventually(lambda: exporter.page().sum("transmit_bytes_total", **ours_labels) == 5 * BYTES)
            page = exporter.page()
            assert page.sum("transmit_bytes_total", namespace="", pod=other) == 6 * BYTES
            (resident,) = page.values("process_resident_memory_bytes")
            assert resident < 75e6
    finally:
        kubernetes.kubectl("delete", "--raw=/api/v1/namespaces/crowd/pods?gracePeriodSeconds=0")
        kubernetes.kubectl("delete", "namespace", "crowd", "--wait=false")
        kubernetes.start("kubelet")
