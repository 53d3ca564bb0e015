"""The kernel's list of hot paths, from which a daemon learns that another one counts already."""

import os
from contextlib import ExitStack

from tests.kernel.ledger import attached
from tests.kernel.machine import Cgroup, new_cgroup

from sockledger.kernel.attachments import hot_paths
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.links import HOT_PATH


def test_listed_while_attached(parent: Cgroup, client: Cgroup) -> None:
    root, below = CgroupRoot(parent.path), CgroupRoot(client.path)
    assert hot_paths(root.id) == []
    with attached(root) as first, attached(root) as second, attached(below) as elsewhere:
        links = [path.links.held[HOT_PATH].id for path in (first, second)]
        assert hot_paths(root.id) == links
        assert links == sorted(links), "the one that was first has the lowest id"
        assert hot_paths(below.id) == [elsewhere.links.held[HOT_PATH].id]
    assert hot_paths(root.id) == hot_paths(below.id) == []
    os.close(root.fd)
    os.close(below.fd)


def test_more_than_one_read_returns(parent: Cgroup) -> None:
    """The kernel hands over what an iterator prints in parts of 32 KiB, so of 1,024 links."""
    root = CgroupRoot(parent.path)
    expected = {}
    with attached(root) as path, ExitStack() as stack:
        for number in range(20):
            below = CgroupRoot(stack.enter_context(new_cgroup(parent.path, f"many-{number}")).path)
            stack.callback(os.close, below.fd)
            links = [path.programs[HOT_PATH].attach_cgroup(below.fd) for _ in range(60)]
            for link in links:
                stack.callback(link.destroy)
            expected[below.id] = [link.id for link in links]
        assert {cgroup_id: hot_paths(cgroup_id) for cgroup_id in expected} == expected
    os.close(root.fd)
