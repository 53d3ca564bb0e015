"""What kubelet's links say of pods and containers, and how long a name is waited for."""

import errno
import logging
import os
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from tests.unit.test_names import FakeRoot, Notes

from sockledger.workloads import pods as module
from sockledger.workloads.names import WAIT_SECONDS, Names
from sockledger.workloads.naming import Missing, Naming, Workload
from sockledger.workloads.pods import SANDBOX, PodNames

UID = "31dd0274-bb43-4975-bdbc-7e10047a23f8"
ID, OTHER, PAUSE = "a" * 64, "b" * 64, "c" * 64
POD = f"/kubepods/burstable/pod{UID}"
LONGEST_LINK = 255


def link(folder: Path, container: str, container_id: str, pod: str = "web-0", uid: str = UID) -> Path:
    """Make one as kubelet does: logSymlink() in pkg/kubelet/kuberuntime/legacy.go."""
    folder.mkdir(exist_ok=True)
    name = f"{pod}_shop_{container}-{container_id}"[: LONGEST_LINK - len(".log")]
    made = folder / f"{name}.log"
    made.symlink_to(f"/var/log/pods/shop_{pod}_{uid}/{container}/0.log")
    return made


class Node:
    """Cgroups and links to logs, and the names that come of both at a time of our own."""

    def __init__(self, folder: Path, *paths: str, naming: Naming | None = None) -> None:
        self.folder = folder
        self.paths = dict(enumerate(paths, 2))
        self.now = 0.0
        self.names = Names(
            FakeRoot(self.paths), Notes(), naming or Naming(), PodNames(folder), clock=lambda: self.now
        )

    def named(self) -> dict[str, Workload]:
        return {self.paths[number]: each for number, each in self.names.resolve(self.paths, {})[0].items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "containers"


def test_pod_and_containers(folder: Path) -> None:
    link(folder, "nginx", ID)
    link(folder, "side-car", OTHER)
    link(folder, "nginx", PAUSE, pod="web-1", uid="another")
    node = Node(folder, POD, f"{POD}/{ID}", f"{POD}/{OTHER}/nested", f"/kubepods/podanother/{PAUSE}")
    assert node.named() == {
        POD: Workload("shop", "web-0"),
        f"{POD}/{ID}": Workload("shop", "web-0", "nginx"),
        f"{POD}/{OTHER}/nested": Workload("shop", "web-0", "side-car"),
        f"/kubepods/podanother/{PAUSE}": Workload("shop", "web-1", "nginx"),
    }


def test_a_unit_in_a_container(folder: Path) -> None:
    link(folder, "host", ID)
    path = f"{POD}/{ID}/system.slice/nginx.service"
    assert Node(folder, path).named() == {path: Workload("shop", "web-0", "host", "nginx.service")}


def test_a_name_is_waited_for(folder: Path) -> None:
    folder.mkdir()
    node = Node(folder, f"{POD}/{ID}", "/a")
    assert node.named() == {"/a": Workload(cgroup="/a")}
    node.now = WAIT_SECONDS - 0.1
    link(folder, "nginx", ID)
    assert node.named()[f"{POD}/{ID}"] == Workload("shop", "web-0", "nginx")


def test_a_name_that_comes_late(folder: Path) -> None:
    folder.mkdir()
    node = Node(folder, f"{POD}/{ID}")
    assert node.named() == {}
    node.now = WAIT_SECONDS
    assert node.named() == {f"{POD}/{ID}": Workload(pod=UID, container=ID[:12])}
    link(folder, "nginx", ID)
    assert node.named() == {f"{POD}/{ID}": Workload("shop", "web-0", "nginx")}


def test_the_sandbox_is_what_has_no_log(folder: Path) -> None:
    link(folder, "nginx", ID)
    node = Node(folder, f"{POD}/{ID}", f"{POD}/{PAUSE}")
    assert node.named().keys() == {f"{POD}/{ID}"}, "its link may come yet"
    node.now = WAIT_SECONDS
    assert node.named()[f"{POD}/{PAUSE}"] == Workload("shop", "web-0", SANDBOX)


def test_no_guess_in_place_of_a_name_that_may_come(folder: Path) -> None:
    """Who is shown already by his id waits under that."""
    node = Node(folder, f"{POD}/{ID}")
    assert node.named() == {f"{POD}/{ID}": Workload(pod=UID, container=ID[:12])}
    link(folder, "other", OTHER)
    assert node.named() == {f"{POD}/{ID}": Workload(pod=UID, container=ID[:12])}
    node.now = WAIT_SECONDS
    assert node.named() == {f"{POD}/{ID}": Workload("shop", "web-0", SANDBOX)}
    link(folder, "nginx", ID)
    assert node.named() == {f"{POD}/{ID}": Workload("shop", "web-0", "nginx")}


def test_an_id_that_was_cut_off(folder: Path) -> None:
    """It may be the sandbox, or the container: nobody knows."""
    pod = "w" * 200
    made = link(folder, "nginx", ID, pod=pod)
    assert len(made.name) == LONGEST_LINK
    node = Node(folder, POD, f"{POD}/{ID}", f"{POD}/{PAUSE}")
    assert node.named() == {POD: Workload("shop", pod)}
    node.now = WAIT_SECONDS
    for container_id in (ID, PAUSE):
        assert node.named()[f"{POD}/{container_id}"] == Workload("shop", pod, container_id[:12])


def test_a_cut_link_that_is_gone(folder: Path) -> None:
    pod = "w" * 200
    made = link(folder, "nginx", ID, pod=pod)
    node = Node(folder, f"{POD}/{ID}")
    node.named()
    made.unlink()
    node.now = WAIT_SECONDS
    assert node.named() == {f"{POD}/{ID}": Workload("shop", pod, ID[:12])}


def test_a_pod_without_links_may_have_had_some(folder: Path) -> None:
    """Then its names are missing: where it had some it keeps these. Not so if there are no links at all."""
    node = Node(folder, f"{POD}/{ID}")
    assert node.names.resolve(node.paths, {}) == ({2: Workload(pod=UID, container=ID[:12])}, {})
    link(folder, "nginx", OTHER, uid="another")
    node.now = WAIT_SECONDS
    missing = {2: Missing({"namespace", "pod", "container"})}
    assert node.names.resolve(node.paths, {}) == ({2: Workload(pod=UID, container=ID[:12])}, missing)
    link(folder, "nginx", ID)
    assert node.names.resolve(node.paths, {}) == ({2: Workload("shop", "web-0", "nginx")}, {})


def test_a_name_lasts_longer_than_its_link(folder: Path) -> None:
    made = link(folder, "nginx", ID)
    node = Node(folder, f"{POD}/{ID}")
    before = node.named()
    made.unlink()
    link(folder, "nginx", OTHER)
    assert node.named() == before == {f"{POD}/{ID}": Workload("shop", "web-0", "nginx")}


def test_a_link_that_was_there_between_two_flushes(folder: Path) -> None:
    """Of a pod that is deleted at once, kubelet removes the link with it."""
    folder.mkdir()
    node = Node(folder, f"{POD}/{ID}")
    made = link(folder, "nginx", ID)
    node.names.look()
    made.unlink()
    assert node.named() == {f"{POD}/{ID}": Workload("shop", "web-0", "nginx")}


def test_links_that_are_gone_have_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_GONE", 2)
    pods = PodNames(folder)
    for number in range(4):
        made = link(folder, "nginx", f"{number:064x}", uid=f"uid{number}")
        pods.look()
        made.unlink()
    assert [pods.find("", f"{number:064x}") is not None for number in range(4)] == [False, True, True, True]
    assert [pods.find(f"uid{number}", "") is not None for number in range(4)] == [False, True, True, True]


def test_without_links_nobody_waits(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(folder, f"{POD}/{ID}")
    assert node.named() == {f"{POD}/{ID}": Workload(pod=UID, container=ID[:12])}
    assert not caplog.records, "no node of a cluster has to tell that it is none"
    link(folder, "nginx", ID)
    assert node.named() == {f"{POD}/{ID}": Workload("shop", "web-0", "nginx")}


def test_a_folder_that_cannot_be_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("no folder")
    node = Node(folder, f"{POD}/{ID}")
    for _ in range(2):
        assert node.named() == {f"{POD}/{ID}": Workload(pod=UID, container=ID[:12])}
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.WARNING, "pods are not named")
    ]


def test_a_fault_that_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile names are missing: who had some before a restart of the daemon keeps these."""
    link(folder, "nginx", ID)
    node = Node(folder, f"{POD}/{ID}")
    missing = {2: Missing({"namespace", "pod", "container"})}
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", Mock(side_effect=OSError(errno.ENOMEM, "no memory")))
        assert node.names.resolve(node.paths, {}) == ({2: Workload(pod=UID, container=ID[:12])}, missing)
    assert node.names.resolve(node.paths, {}) == ({2: Workload("shop", "web-0", "nginx")}, {})


def test_a_link_that_cannot_be_read_for_a_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not gone: the folder is read again, though it does not change."""
    os.utime(link(folder, "nginx", ID).parent, (0, 0))
    node = Node(folder, f"{POD}/{ID}")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "readlink", Mock(side_effect=OSError(errno.ENOMEM, "no memory")))
        node.names.look()
    assert node.named() == {f"{POD}/{ID}": Workload("shop", "web-0", "nginx")}


def test_a_folder_that_goes_after_a_fault(folder: Path) -> None:
    """Nobody had links there."""
    folder.write_text("no folder")
    node = Node(folder, f"{POD}/{ID}")
    node.names.look()
    folder.unlink()
    assert node.names.resolve(node.paths, {}) == ({2: Workload(pod=UID, container=ID[:12])}, {})


def test_what_is_no_link_of_kubelets(folder: Path) -> None:
    link(folder, "nginx", ID)
    (folder / f"file-{OTHER}.log").touch()
    (folder / f"elsewhere-{OTHER}.log").symlink_to("/var/log/other.log")
    (folder / f"short-{OTHER}.log").symlink_to("0.log")
    (folder / f"odd-{PAUSE}.log").symlink_to(
        os.fsdecode(f"/var/log/pods/a_b_{UID}/\xff/0.log".encode("latin-1"))
    )
    node = Node(folder, f"{POD}/{PAUSE}", f"{POD}/{OTHER}")
    node.now = WAIT_SECONDS
    assert node.named()[f"{POD}/{PAUSE}"] == Workload("a", "b", r"\xff")


def test_rules_come_first(folder: Path) -> None:
    link(folder, "nginx", ID)
    node = Node(folder, f"{POD}/{ID}", naming=Naming([re.compile("(?P<unit>kubepods)")]))
    assert node.named() == {f"{POD}/{ID}": Workload(unit="kubepods")}


def test_links_are_read_when_there_are_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link(folder, "nginx", ID)
    os.utime(folder, (1, 1))
    pods = PodNames(folder)
    assert pods.look()
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", None)
        assert not pods.look()
    link(folder, "other", OTHER)
    assert pods.look()
    assert pods.look(), "another link may come in the same tick of the folder's clock"
