"""Who has no name now keeps the one that he is shown as."""

from unittest.mock import Mock

from sockledger.kernel.noted import ENDED, CgroupLabels, NotedCgroup
from sockledger.ledger.identities import Identities
from sockledger.workloads.names import Workload

ROOT_ID = 1


def test_not_named_now() -> None:
    """As a pod's links may come late in the next daemon, which knows what the last one has shown."""
    named = {number: Workload(pod=f"pod{number}") for number in (2, 3, 4)}
    identities = Identities(Mock(CgroupLabels, all=lambda: named), ROOT_ID)
    noted = {
        2: NotedCgroup(0, 0, "/a"),
        3: NotedCgroup(7, 0, "/b"),
        4: NotedCgroup(ENDED, 0, "/c"),
        5: NotedCgroup(0, 0, "/d"),
    }
    settled, have_left = identities.settle({}, noted, Mock(side_effect=AssertionError))
    assert settled == {2: named[2], 3: named[3]}
    assert not have_left
