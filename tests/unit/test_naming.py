"""What is told apart, as users want it: levels, labels, and which cgroups at all."""

import pytest
from tests.unit.test_paths import BURSTABLE, ID, KIND, OTHER, UID, UID_, USER

from sockledger.workloads.naming import Naming, Workload, more_of
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


def test_kinds_that_are_left_out() -> None:
    """A workload without them is another one; labels that it has for other reasons stay."""
    naming = Naming(hidden=frozenset({"family", "unit"}))
    shown = naming.shown(Workload("shop", more=more_of({"label_app": "web"})), "/a")
    assert shown != Workload("shop", more=more_of({"label_app": "web"}))
    assert shown.labels()[-1] == ("label_app", "web")
    assert len(shown.labels()) == 6
    assert (shown.leaves_out("family"), shown.leaves_out("protocol")) == (True, False)
    assert not Workload().leaves_out("family")


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
