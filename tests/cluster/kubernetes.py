"""The cluster as tests use it: what runs there is the host's own Python, in containers of every kind."""

import json
import os
import ssl
import subprocess
from collections.abc import Callable, Iterable
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from tests.patience import eventually

IMAGE = "localhost/busybox:1"
ROOT = Path(__file__).parents[2]
TALK = str(Path(__file__).with_name("talk.py"))
DIR = Path(os.environ.get("CLUSTER_DIR", "/run/sockledger-cluster"))
MANIFESTS = DIR / "manifests"  # of static pods

Manifest = dict[str, Any]


def container(name: str, *command: str, **more: object) -> Manifest:
    """A container that runs a command of the host's, in the host's file system."""
    return {
        "name": name,
        "image": IMAGE,
        "command": ["/bin/chroot", "/host", *command],
        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
        **more,
    }


def talker(name: str, number: int, seconds: float = 3600) -> Manifest:
    """A container that sends so many datagrams to itself, and ends after so many seconds."""
    return container(name, "/usr/bin/python3", TALK, str(number), str(seconds))


def pod(name: str, *containers: Manifest, namespace: str = "default", **spec: object) -> Manifest:
    """A pod that ends at once when it has to."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "containers": list(containers),
            "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            **spec,
        },
    }


def daemon_set(of: Manifest) -> Manifest:
    """One that has such a pod on each node."""
    labels = of["metadata"].pop("labels")
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": of["metadata"],
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": of["spec"]},
        },
    }


class Kubernetes:
    """The one there is, by `kubectl`."""

    def __init__(self, script: Path) -> None:
        self._script = script

    def kubectl(self, *arguments: str, given: object = None) -> str:
        return subprocess.run(
            [self._script, "kubectl", *arguments],
            input=None if given is None else json.dumps(given),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    def apply(self, *manifests: Manifest) -> None:
        self.kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": list(manifests)})

    def create_pods(self, manifests: Iterable[Manifest]) -> None:
        """Make pods, of which there may be thousands: kubectl would take minutes."""
        insecure = ssl._create_unverified_context()
        with closing(HTTPSConnection("10.88.7.1", 26443, context=insecure)) as connection:
            for each in manifests:
                path = f"/api/v1/namespaces/{each['metadata']['namespace']}/pods"
                headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(each), headers)
                answer = connection.getresponse()
                assert answer.read()
                assert answer.status == 201

    def pods(self) -> list[Manifest]:
        answer = self.kubectl("get", "pods", "--all-namespaces", "--output=json")
        found: list[Manifest] = json.loads(answer)["items"]
        return found

    def wait_until(self, name: str, holds: Callable[[Manifest], bool]) -> Manifest:
        """Wait for something to hold of the pod whose name begins so, and return it."""
        found: list[Manifest] = []

        def seen() -> bool:
            found[:] = [each for each in self.pods() if each["metadata"]["name"].startswith(name)]
            return any(map(holds, found))

        eventually(seen, f"pod {name}")
        return found[0]

    def ctr(self, *arguments: str) -> None:
        """Have containerd do something with containers that Kubernetes does not know."""
        subprocess.run([self._script, "ctr", *arguments], check=True)

    def start(self, part: str) -> None:
        subprocess.run([self._script, "start", part], check=True)

    def stop(self, part: str) -> None:
        subprocess.run([self._script, "stop", part], check=True)


def logs(name: str) -> list[Path]:
    """The logs of a pod's containers, of each time that they were started."""
    return list((DIR / "logs").glob(f"*_{name}*_*/*/*.log"))


def said(name: str, times: int) -> bool:
    """Whether talkers in a pod have sent all that they send, so many times."""
    return sum("said" in each.read_text() for each in logs(name)) == times
