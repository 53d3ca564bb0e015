"""What is told apart, as users want it: levels, labels, and which cgroups at all."""

import pytest
from tests.unit.test_paths import BURSTABLE, ID, KIND, OTHER, UID, UID_, USER

from sockledger.kernel.noted import fits
from sockledger.workloads.naming import Missing, Naming, Workload, more_of
from sockledger.workloads.paths import CONTAINER, LEAF, POD, UNIT, cut

SCOPE = f"cri-containerd-{ID}.scope"
POD_PATH = f"/{BURSTABLE}/{SCOPE}"
DOCKER = f"/system.slice/docker-{ID}.scope"

# By level: paths, with how much of them is told apart.
CUT: dict[str | int, dict[str, str]] = {
    LEAF: {POD_PATH: POD_PATH, "/": "/"},
    CONTAINER: {
        f"{POD_PATH}/system.slice/nginx.service": POD_PATH,
        f"/{BURSTABLE}/deeper": f"/{BURSTABLE}",
        f"{DOCKER}/init.scope": DOCKER,
        f"/lxc.payload.web1/docker/{ID}": "/lxc.payload.web1",
        "/system.slice/nginx.service/worker": "/system.slice/nginx.service/worker",
        "/": "/",
    },
    POD: {
        f"{POD_PATH}/system.slice/nginx.service": f"/{BURSTABLE}",
        f"/{KIND}/{SCOPE}": f"/{KIND}",
        f"/system.slice/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}": (
            f"/system.slice/kubepods-burstable-pod{UID_}.slice"
        ),
        f"/kubepods/besteffort/pod{UID}/{ID}/a": f"/kubepods/besteffort/pod{UID}",
        f"{DOCKER}/init.scope": f"{DOCKER}/init.scope",
    },
    UNIT: {
        "/system.slice/nginx.service/worker/a": "/system.slice/nginx.service",
        f"{POD_PATH}/system.slice/nginx.service": POD_PATH,
        f"/{USER}/app.slice/firefox.scope/a": f"/{USER}",
        "/system.slice": "/system.slice",
        f"/docker/{OTHER}/a": f"/docker/{OTHER}/a",
        "/": "/",
    },
    1: {POD_PATH: "/kubepods.slice", "/": "/", "/a": "/a"},
    2: {"/a/b/c": "/a/b", "/a/b": "/a/b"},
}


@pytest.mark.parametrize(
    ("level", "path", "whole"),
    [(level, path, whole) for level, paths in CUT.items() for path, whole in paths.items()],
)
def test_level(level: str | int, path: str, whole: str) -> None:
    assert cut(path, level) == whole


# By globs to include and to exclude: paths, with whether they are told apart.
SELECTED: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, bool]] = {
    ((), ()): {"/": True, "/a": True},
    (("/a",), ()): {"/": False, "/a": True, "/a/b/c": True, "/ab": False, "/b/a": False},
    (("/*/b",), ()): {"/a": False, "/a/b": True, "/a/b/c": True, "/a/c/b": False},
    (("/a/**/d",), ()): {"/a/d": True, "/a/b/c/d": True, "/a/b/c": False, "/b/d": False},
    (("/*.slice/?.service", "/[ab]"), ()): {"/x.slice/y.service": True, "/b": True, "/x.slice": False},
    ((), ("/a",)): {"/": True, "/a": False, "/a/b": False, "/b": True},
    (("/a",), ("/a/*.mount",)): {"/a/b": True, "/a/x.mount": False, "/a/x.mount/y": False, "/b": False},
    (("/A",), ()): {"/a": False},
    # all ways to spread those over a deep path would take for ever
    (("/**" * 20 + "/q", "/a" + "/**/a" * 20), ()): {
        "/a" * 40: True,
        "/b" * 40: False,
        "/b" * 39 + "/q": True,
    },
}


@pytest.mark.parametrize(
    ("include", "exclude", "path", "told_apart"),
    [(*globs, path, each) for globs, paths in SELECTED.items() for path, each in paths.items()],
)
def test_selected(include: tuple[str, ...], exclude: tuple[str, ...], path: str, told_apart: bool) -> None:
    assert Naming(include=include, exclude=exclude).tells_apart(path) == told_apart


def test_what_is_written_down_of_a_workload() -> None:
    """By the hash of these texts it is known again after an upgrade."""
    assert Workload("shop", "web-0").texts() == ("shop", "web-0", "", "", "")
    assert Workload("shop", more=more_of({"b": "2", "a": "1"})).texts() == (
        *("shop", "", "", "", ""),
        '{"a":"1","b":"2"}',
    )


def test_labels_that_are_too_long() -> None:
    """Those that could not be noted are left out, the longest first; others stay, and all names."""
    named = Workload("shop", "web-0", "nginx")
    labels = {"label_a": "x" * 63, "label_b": "\u0436" * 63, "annotation_c": "y" * 62, "label_d": "z"}
    shown = Naming().shown(named._replace(more=more_of(labels)), "/a")
    assert shown == named._replace(more=more_of(labels)), "each takes as much as it has in UTF-8"
    more = {**labels, **{f"label_{number}": "v" * 62 for number in range(3)}}
    shown = Naming().shown(named._replace(more=more_of(more)), "/a")
    assert shown[:5] == named[:5]
    left = dict(shown.labels()[5:])
    assert left.items() <= more.items()
    assert "label_d" in left
    assert "label_b" not in left
    assert fits(shown)


def test_what_is_missing_may_leave_no_room() -> None:
    """Names are longer than the ids that stood for them."""
    labels = {f"label_{number}": "v" * 60 for number in range(5)}
    named = Workload(pod="uid", more=more_of(labels))
    before = Workload("shop", "web-" + "0" * 60)
    assert fits(named)
    completed = Missing({"namespace", "pod"}).completed(named, before)
    assert completed[:5] == before[:5]
    assert len(completed.labels()) == len(before.labels()) + 4
    assert fits(completed)


def test_labels_that_are_not_utf8() -> None:
    assert Workload(more=more_of({"label_a": "\ud800\0"})).labels()[5:] == [("label_a", "\\ud800\0")]


def test_labels() -> None:
    nginx, nobody = Workload("shop", "web-0", "nginx"), Workload()
    assert Naming().shown(nginx, "/a") == nginx
    assert Naming().shown(nobody, "/a") == Workload(cgroup="/a")
    assert Naming(hidden=frozenset({"pod", "container"})).shown(nginx, "/a") == Workload("shop")
    assert Naming(hidden=frozenset({"cgroup"})).shown(nobody, "/a") == Workload()
    assert Naming(with_path=True).shown(nginx, "/a\udcff") == nginx._replace(cgroup=r"/a\xff")
    assert Naming(hidden=frozenset({"unit"})).shown(Workload(unit="a.service"), "/a") == Workload(), (
        "left out, it is not replaced by what tells apart as well"
    )
