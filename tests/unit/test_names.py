import errno
import os
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.noted import ENDED, NotedCgroup
from sockledger.workloads.names import Names
from sockledger.workloads.naming import UNKNOWN, Naming, Workload, label_value


class FakeRoot(CgroupRoot):
    """Cgroups that are nowhere."""

    def __init__(self, paths: dict[int, str], *, may_open: bool = True) -> None:
        self.paths = paths
        self.id = 1
        self._may_open = self.sees_all = True
        self.may_open = may_open
        self.opened: list[int] = []
        self.walks = 0

    def path_of(self, cgroup_id: int) -> str | None:
        self.opened.append(cgroup_id)
        if not self.may_open:
            raise PermissionError
        return self.paths.get(cgroup_id)

    def walk(self) -> Iterator[tuple[int, str]]:
        self.walks += 1
        yield from self.paths.items()


class Notes(dict[int, NotedCgroup]):
    """What is noted."""

    def __init__(self, noted: dict[int, NotedCgroup] | None = None, *, room: int = 0) -> None:
        super().__init__(noted or {})
        self.room = room

    def note(self, cgroup_id: int, path: str, gone: int = 0) -> bool:
        if len(self) == self.room or len(path) > LONGEST:
            return False
        self.setdefault(cgroup_id, NotedCgroup(gone, 0, path))
        return True


LONGEST = 100


@pytest.mark.parametrize("may_open", [True, False])
def test_named(may_open: bool) -> None:
    names = Names(FakeRoot({1: "/", 2: "/a", 3: "/a/b"}, may_open=may_open), Notes(), Naming())
    assert names.resolve({1, 3}, {})[0] == {1: Workload(cgroup="/"), 3: Workload(cgroup="/a/b")}


@pytest.mark.parametrize("may_open", [True, False])
def test_a_removed_cgroup_keeps_its_name(may_open: bool) -> None:
    root = FakeRoot({2: "/a"}, may_open=may_open)
    names = Names(root, Notes(), Naming())
    names.resolve({2}, {})
    root.paths.clear()
    assert names.resolve({2, 3}, {})[0] == {2: Workload(cgroup="/a"), 3: UNKNOWN}


def test_each_is_looked_up_once() -> None:
    root = FakeRoot({2: "/a", 3: "/b"})
    names = Names(root, Notes(), Naming())
    names.resolve({2}, {})
    names.resolve({2, 3}, {})
    names.resolve({2, 3}, {})
    assert root.opened == [2, 3]
    assert root.walks == 0


def test_without_the_capability_it_walks_and_tries_no_more() -> None:
    root = FakeRoot({2: "/a", 3: "/b"}, may_open=False)
    names = Names(root, Notes(), Naming())
    names.resolve({2}, {})
    names.resolve({2}, {})
    names.resolve({2, 3}, {})
    assert root.opened == [2]
    assert root.walks == 2


def test_those_not_asked_for_are_forgotten() -> None:
    names = Names(FakeRoot({2: "/a", 3: "/b"}), Notes(), Naming())
    names.resolve({2, 3}, {})
    assert names.resolve({3}, {})[0].keys() == {3}


def test_what_is_no_utf8_stays_apart() -> None:
    paths = {number: os.fsdecode(name) for number, name in enumerate((b"/\xff", b"/\xfe", "/\xfc".encode()))}
    named = Names(FakeRoot(paths), Notes(), Naming()).resolve(paths.keys(), Notes())[0]
    assert [named[number].cgroup for number in paths] == [r"/\xff", r"/\xfe", "/ü"]


def test_label_value_is_utf8() -> None:
    for byte in range(1, 256):
        label_value(os.fsdecode(bytes([byte]))).encode()


@pytest.mark.parametrize("may_open", [True, False])
def test_a_passing_fault_is_not_remembered(monkeypatch: pytest.MonkeyPatch, may_open: bool) -> None:
    root = FakeRoot({2: "/a"}, may_open=may_open)
    names = Names(root, Notes(), Naming())
    with monkeypatch.context() as patched:
        fault = Mock(side_effect=OSError(errno.EMFILE, "too many open files"))
        patched.setattr(root, "path_of" if may_open else "walk", fault)
        assert names.resolve({2}, {})[0] == {}
    assert names.resolve({2}, {})[0] == {2: Workload(cgroup="/a")}


def test_what_is_noted_is_not_looked_for() -> None:
    root = FakeRoot({2: "/other"})
    noted = {
        2: NotedCgroup(0, 0, "/a"),
        3: NotedCgroup(7, 0, "/b"),
        4: NotedCgroup(ENDED, 7, ""),
        5: NotedCgroup(7, 0, ""),
    }
    assert Names(root, Notes(noted, room=9), Naming()).resolve({2}, noted)[0] == {
        2: Workload(cgroup="/a"),
        3: Workload(cgroup="/b"),
        5: UNKNOWN,
    }
    assert root.opened == []


def test_what_is_looked_for_is_noted() -> None:
    """So that the next daemon calls it the same, and it ends."""
    notes = Notes(room=9)
    root = FakeRoot({1: "/", 2: "/a", 10: "/root"})
    root.id = 10
    Names(root, notes, Naming()).resolve({1, 2, 3, 10}, {})
    assert notes.keys() == {2, 3}
    assert notes[2] == (0, 0, "/a")
    assert notes[3].path == ""
    assert (notes[3].removed > 0, notes[3].released) == (True, 0)
    assert Names(root, notes, Naming()).resolve({2, 3}, notes)[0] == {2: Workload(cgroup="/a"), 3: UNKNOWN}


def test_noted_when_there_is_room() -> None:
    notes = Notes({9: NotedCgroup(0, 0, "/z")}, room=1)
    root = FakeRoot({2: "/a", 3: "/" + "b" * LONGEST, 4: "/c"})
    names = Names(root, notes, Naming())
    assert names.resolve({2, 3, 4}, dict(notes))[0].keys() == {2, 3, 4, 9}
    assert notes.keys() == {9}
    assert root.opened == [2, 3, 4]
    names.resolve({2, 3, 4}, dict(notes))
    assert root.opened == [2, 3, 4], "without room there is no need"
    del notes[9], root.paths[4]
    notes.room = 3
    assert names.resolve({2, 3, 4}, {})[0] == {
        number: Workload(cgroup=path) for number, path in ((2, "/a"), (3, "/" + "b" * LONGEST), (4, "/c"))
    }
    assert notes[2] == (0, 0, "/a")
    assert 3 not in notes, "too long, and there"
    assert notes[4].path == "/c"
    assert (notes[4].removed > 0, notes[4].released) == (True, 0)
    del root.paths[3]
    assert names.resolve({3}, {})[0][3] == Workload(cgroup="/" + "b" * LONGEST)
    assert notes[3].path == ""


@pytest.mark.parametrize("sees_all", [True, False])
def test_what_cannot_be_seen_is_not_gone(sees_all: bool) -> None:
    """It has no name, and its end is for the kernel to tell."""
    root, notes = FakeRoot({}, may_open=False), Notes(room=1)
    root.sees_all = sees_all
    assert Names(root, notes, Naming()).resolve({2}, notes)[0] == {2: UNKNOWN}
    assert bool(notes[2].removed) == sees_all
