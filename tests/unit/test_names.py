import errno
import os
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.workloads.names import UNKNOWN, Names, Workload, label_value


class FakeRoot(CgroupRoot):
    """Cgroups that are nowhere."""

    def __init__(self, paths: dict[int, str], *, may_open: bool = True) -> None:
        self.paths = paths
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


@pytest.mark.parametrize("may_open", [True, False])
def test_named(may_open: bool) -> None:
    names = Names(FakeRoot({1: "/", 2: "/a", 3: "/a/b"}, may_open=may_open))
    assert names.resolve({1, 3}) == {1: Workload(cgroup="/"), 3: Workload(cgroup="/a/b")}


@pytest.mark.parametrize("may_open", [True, False])
def test_a_removed_cgroup_keeps_its_name(may_open: bool) -> None:
    root = FakeRoot({2: "/a"}, may_open=may_open)
    names = Names(root)
    names.resolve({2})
    root.paths.clear()
    assert names.resolve({2, 3}) == {2: Workload(cgroup="/a"), 3: UNKNOWN}


def test_each_is_looked_up_once() -> None:
    root = FakeRoot({2: "/a", 3: "/b"})
    names = Names(root)
    names.resolve({2})
    names.resolve({2, 3})
    names.resolve({2, 3})
    assert root.opened == [2, 3]
    assert root.walks == 0


def test_without_the_capability_it_walks_and_tries_no_more() -> None:
    root = FakeRoot({2: "/a", 3: "/b"}, may_open=False)
    names = Names(root)
    names.resolve({2})
    names.resolve({2})
    names.resolve({2, 3})
    assert root.opened == [2]
    assert root.walks == 2


def test_those_not_asked_for_are_forgotten() -> None:
    names = Names(FakeRoot({2: "/a", 3: "/b"}))
    names.resolve({2, 3})
    assert names.resolve({3}).keys() == {3}


def test_what_is_no_utf8_stays_apart() -> None:
    paths = {number: os.fsdecode(name) for number, name in enumerate((b"/\xff", b"/\xfe", "/\xfc".encode()))}
    named = Names(FakeRoot(paths)).resolve(paths.keys())
    assert [named[number].cgroup for number in paths] == [r"/\xff", r"/\xfe", "/ü"]


def test_label_value_is_utf8() -> None:
    for byte in range(1, 256):
        label_value(os.fsdecode(bytes([byte]))).encode()


@pytest.mark.parametrize("may_open", [True, False])
def test_a_passing_fault_is_not_remembered(monkeypatch: pytest.MonkeyPatch, may_open: bool) -> None:
    root = FakeRoot({2: "/a"}, may_open=may_open)
    names = Names(root)
    with monkeypatch.context() as patched:
        fault = Mock(side_effect=OSError(errno.EMFILE, "too many open files"))
        patched.setattr(root, "path_of" if may_open else "walk", fault)
        assert names.resolve({2}) == {}
    assert names.resolve({2}) == {2: Workload(cgroup="/a")}
