"""Containers of a real Docker and a real Podman are called as these call them."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cluster.image import layer
from tests.cluster.kubernetes import TALK
from tests.cluster.talk import BYTES
from tests.daemon.support import Surroundings, surroundings
from tests.daemon.test_workloads import sent
from tests.kernel.machine import new_cgroup, run
from tests.patience import eventually

from sockledger.kernel.cgroups import find_root
from sockledger.workloads.naming import Workload

# Both look for cgroup v2 at one place only.
IN_CGROUP2 = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/fs/cgroup && exec "$@"')

# Its own are above what this machine has.
PODMAN_LIMITS = """[containers]
pids_limit = 0
default_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]
"""


@dataclass(frozen=True)
class Engine:
    """A server with a socket and all its files in a folder."""

    name: str
    folder: Path
    parent: str  # the cgroup below which it makes those of containers

    @property
    def socket(self) -> Path:
        return self.folder / "api.sock"

    def _server(self) -> list[str]:
        data, state, url = self.folder / "data", self.folder / "state", f"unix://{self.socket}"
        if self.name == "docker":
            return [
                *("dockerd", f"--host={url}", "--bridge=none", "--iptables=false", "--ip6tables=false"),
                *(f"--data-root={data}", f"--exec-root={state}", f"--pidfile={self.folder / 'pid'}"),
                *("--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs"),
            ]
        limits = self.folder / "containers.conf"
        limits.write_text(PODMAN_LIMITS)
        return [
            *("env", f"CONTAINERS_CONF={limits}"),
            *("podman", f"--root={data}", f"--runroot={state}", f"--tmpdir={self.folder / 'tmp'}"),
            *("--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=runc"),
            *("system", "service", "--time=0", url),
        ]

    @contextmanager
    def running(self, cgroup2: Path) -> Iterator[None]:
        with (self.folder / "log").open("wb") as log, ExitStack() as stack:
            server = subprocess.Popen((*IN_CGROUP2, str(cgroup2), *self._server()), stdout=log, stderr=log)
            stack.callback(server.wait)
            stack.callback(server.terminate)
            eventually(self._answers, self.name)
            yield

    def _answers(self) -> bool:
        with suppress(RuntimeError):
            return bool(self.ask("GET", "_ping"))
        return False

    def ask(self, method: str, path: str, *more: str) -> str:
        """Both speak Docker's API."""
        ask = ("curl", "--silent", "--fail-with-body", "--request", method, *more)
        return run(*ask, "--unix-socket", str(self.socket), f"http://localhost/{path}")

    def load(self, rootfs: Path) -> str:
        """Make an image of one layer; return its id."""
        body = ("--header", "Content-Type: application/x-tar", "--data-binary", f"@{rootfs}")
        answers = self.ask("POST", "images/create?fromSrc=-", *body).splitlines()
        return str(json.loads(answers[-1])["status"])

    @contextmanager
    def container(self, name: str, image: str, number: int) -> Iterator[None]:
        """One that sends so many datagrams to itself."""
        host = {"NetworkMode": "none", "Binds": ["/:/host:ro"], "CgroupParent": self.parent}
        command = ["/bin/chroot", "/host", "/usr/bin/python3", TALK, str(number)]
        made = json.dumps({"Image": image, "Cmd": command, "HostConfig": host})
        body = ("--header", "Content-Type: application/json", "--data", made)
        self.ask("POST", f"containers/create?name={name}", *body)
        self.ask("POST", f"containers/{name}/start")
        try:
            yield
        finally:
            self.ask("DELETE", f"containers/{name}?force=1")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Podman takes short ones only."""
    made = Path(f"/run/sockledger-{os.getpid()}")
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Surroundings]:
    with surroundings(find_root(None).path, tmp_path) as made:
        made.pinned = True
        yield made


def remove_below(folder: Path) -> None:
    """What podman leaves of its monitors."""
    for left in folder.glob("*/"):
        left.rmdir()


def test_names(place: Surroundings, folder: Path) -> None:
    """While the engines run, and are away; also in the next daemon."""
    root = find_root(None).path
    rootfs = folder / "rootfs.tar"
    rootfs.write_bytes(layer(["chroot"]))
    truth: Counter[Workload] = Counter()
    with ExitStack() as stack:
        engines = []
        for name in ("docker", "podman"):
            parent = stack.enter_context(new_cgroup(place.cgroup.path, name))
            stack.callback(remove_below, parent.path)
            engines.append(Engine(name, folder / name, f"/{parent.path.relative_to(root)}"))
            engines[-1].folder.mkdir()
        sockets = ", ".join(f"{each.name}: {{socket: {each.socket}}}" for each in engines)
        flag = place.configure(f"workloads: {{{sockets}}}")
        daemon = place.run(flag)
        with ExitStack() as running:
            for number, engine in enumerate(engines, 1):
                running.enter_context(engine.running(root))
                image = engine.load(rootfs)
                for name in ("one", "two"):
                    running.enter_context(engine.container(f"{engine.name}-{name}", image, number))
                    truth[Workload(container=f"{engine.name}-{name}")] += number * BYTES
            eventually(lambda: sent(daemon.settled()) == truth, f"{truth}")
            for engine in engines:
                assert daemon.page().sum("name_source_up", source=engine.name) == 1
        daemon.process.kill()
        daemon.process.wait()
        assert sent(place.run(flag).settled()) == truth
