"""From a cgroup's id to its path, by handle."""

import os
from contextlib import ExitStack

import pytest
from tests.kernel.machine import Cgroup, new_cgroup

from sockledger.kernel.cgroups import CgroupRoot


@pytest.mark.parametrize(
    "name", ["plain", "with space", "gone (deleted)", " (deleted)", "é", os.fsdecode(b"\xff")]
)
def test_named_while_it_lives(parent: Cgroup, name: str) -> None:
    with ExitStack() as stack:
        root = CgroupRoot(parent.path)
        stack.callback(os.close, root.fd)
        with new_cgroup(parent.path, name) as cgroup:
            number = cgroup.id
            assert root.path_of(number) == f"/{name}"
        assert root.path_of(number) is None


def test_gone_beside_one_that_is_called_so(parent: Cgroup) -> None:
    root = CgroupRoot(parent.path)
    with new_cgroup(parent.path, "a (deleted)") as other:
        with new_cgroup(parent.path, "a") as cgroup:
            held = os.open(cgroup.path, os.O_RDONLY)
            number = cgroup.id
        assert root.path_of(number) is None
        assert root.path_of(other.id) == "/a (deleted)"
        os.close(held)
    os.close(root.fd)
