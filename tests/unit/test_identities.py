"""Who has no name now keeps the one that he is shown as."""

from unittest.mock import Mock

import pytest

from sockledger.kernel.noted import ENDED, CgroupLabels, NotedCgroup
from sockledger.ledger.identities import Identities
from sockledger.workloads.naming import OVERFLOW, UNKNOWN, Workload

ROOT_ID = 1


def test_not_named_now() -> None:
    """As a pod's links may come late in the next daemon, which knows what the last one has shown."""
    named = {number: Workload(pod=f"pod{number}") for number in (2, 3, 4)}
    identities = Identities(Mock(CgroupLabels, all=lambda: named), ROOT_ID, 9)
    noted = {
        2: NotedCgroup(0, 0, "/a"),
        3: NotedCgroup(7, 0, "/b"),
        4: NotedCgroup(ENDED, 0, "/c"),
        5: NotedCgroup(0, 0, "/d"),
    }
    settled, have_left = identities.settle({}, (), noted, {2, 3, 4, 5}, Mock(side_effect=AssertionError))
    assert settled == {2: named[2], 3: named[3]}
    assert not have_left


@pytest.mark.parametrize("lasting", [True, False])
def test_too_many(lasting: bool) -> None:
    """Who is shown stays so, also without room to note it; others take the places of those that go."""
    names = {number: Workload(pod=f"pod{number}") for number in range(2, 7)} | {7: UNKNOWN, 8: OVERFLOW}
    noted = dict.fromkeys(names, NotedCgroup(0, 0, "/")) if lasting else {}
    identities = Identities(Mock(CgroupLabels, all=dict), ROOT_ID, 2)

    def pods(*counting: int) -> list[int]:
        """Those that are told apart."""
        settled, _ = identities.settle(names, (), noted, counting, Mock(return_value=set()))
        assert settled[7] == UNKNOWN
        assert all(settled[number] in (names[number], OVERFLOW) for number in names)
        return [number for number in counting if settled[number] == names[number]]

    assert pods(4, 5, 7, 8) == [4, 5, 7, 8]
    assert identities.over_limit == 0
    assert pods(2, 4, 5, 6) == [4, 5]
    assert identities.over_limit == 2
    assert pods(2, 5, 6) == [2, 5]


def test_the_limit_is_kept_by_those_who_begin_to_count() -> None:
    """They have no name of their own in force, which would be shown on when they leave it."""
    names = {number: Workload(pod=f"pod{number}") for number in range(2, 7)}
    noted = dict.fromkeys(names, NotedCgroup(0, 0, "/"))
    identities = Identities(Mock(CgroupLabels, all=dict), ROOT_ID, 1)
    leave = Mock(return_value=set())
    for counting in ((), (2,), (2, 3, 4, 5, 6)):
        leave.reset_mock()
        settled, _ = identities.settle(names, (), noted, counting, leave)
    leave.assert_not_called()
    assert settled == dict.fromkeys(names, OVERFLOW) | {2: names[2]}
    assert identities.over_limit == 4


def test_a_stopgap_replaces_no_name() -> None:
    """As an engine may not answer when a daemon begins."""
    web, stopgap = Workload(container="web"), Workload(container="0123456789ab")
    identities = Identities(Mock(CgroupLabels, all=lambda: {2: web}), ROOT_ID, 9)
    noted = dict.fromkeys((2, 3), NotedCgroup(0, 0, "/"))
    named = {2: stopgap, 3: stopgap}
    settled, _ = identities.settle(named, {2, 3}, noted, {2, 3}, Mock(side_effect=AssertionError))
    assert settled == {2: web, 3: stopgap}
    settled, _ = identities.settle(named, (), noted, {2, 3}, Mock(return_value=set()))
    assert settled == named
