"""Who has no name now keeps the one that he is shown as."""

from unittest.mock import Mock

import pytest

from sockledger.kernel.noted import ENDED, CgroupLabels, NotedCgroup
from sockledger.ledger.identities import Identities
from sockledger.workloads.naming import LABELS, OVERFLOW, UNKNOWN, Missing, Workload

ROOT_ID = 1
MORE = '{"label_team":"a"}'
WEB = Workload("shop", "web-0", "nginx", more=MORE)


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
    settled, have_left = identities.settle({}, {}, noted, {2, 3, 4, 5}, Mock(side_effect=AssertionError))
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
        removed = {
            number: each._replace(removed=int(number not in counting)) for number, each in noted.items()
        }
        settled, _ = identities.settle(names, {}, removed, counting, Mock(return_value=set()))
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
        settled, _ = identities.settle(names, {}, noted, counting, leave)
    leave.assert_not_called()
    assert settled == dict.fromkeys(names, OVERFLOW) | {2: names[2]}
    assert identities.over_limit == 4


def test_what_is_missing_stays_as_it_was() -> None:
    """As an engine may not answer when a daemon begins."""
    web, by_id = Workload(container="web"), Workload(container="0123456789ab")
    identities = Identities(Mock(CgroupLabels, all=lambda: {2: web}), ROOT_ID, 9)
    noted = dict.fromkeys((2, 3), NotedCgroup(0, 0, "/"))
    named, missing = {2: by_id, 3: by_id}, dict.fromkeys((2, 3), Missing({"container"}))
    settled, _ = identities.settle(named, missing, noted, {2, 3}, Mock(side_effect=AssertionError))
    assert settled == {2: web, 3: by_id}
    settled, _ = identities.settle(named, {}, noted, {2, 3}, Mock(return_value=set()))
    assert settled == named


@pytest.mark.parametrize(
    ("named", "missing", "settled"),
    [
        # labels, that the server does not tell; the rest is known, and may be another
        (Workload("shop", "web-0", "nginx"), {"more"}, Workload("shop", "web-0", "nginx", more=MORE)),
        (Workload("shop"), {"more"}, Workload("shop", more=MORE)),
        # links: none is there, and settings have changed
        (Workload(pod="uid", container="id"), {"namespace", "pod", "container"}, WEB._replace(more="")),
        (Workload(pod="uid"), {"namespace", "pod"}, Workload("shop", "web-0")),
        (Workload(), {"namespace"}, Workload("shop")),
        (Workload(pod="uid", cgroup="/a"), {"pod"}, Workload(pod="web-0", cgroup="/a")),
        (Workload("shop", "web-0", "nginx", unit="a.service"), {"unit"}, None),
        (Workload("shop", "web-0", "nginx"), {"other labels"}, None),
    ],
)
def test_only_what_is_missing_stays(named: Workload, missing: set[str], settled: Workload | None) -> None:
    """So what is known by now, and what settings have, is heeded while somebody does not answer."""
    identities = Identities(Mock(CgroupLabels, all=lambda: {2: WEB}), ROOT_ID, 9)
    noted = {2: NotedCgroup(0, 0, "/")}
    found, _ = identities.settle(
        {2: named},
        {2: Missing(missing & {*LABELS}, {"label_team"} if "more" in missing else {"label_app"})},
        noted,
        {2},
        Mock(return_value=set()),
    )
    assert found == {2: settled or named}


def test_who_is_renamed_keeps_his_place() -> None:
    """Though he has left all that he counted, and may be idle for a while."""
    identities = Identities(Mock(CgroupLabels, all=dict), ROOT_ID, 2)
    names = {number: Workload(pod=f"pod{number}") for number in (2, 3, 4)}
    noted = dict.fromkeys(names, NotedCgroup(0, 0, "/"))
    leave = Mock(return_value=set())
    settled, _ = identities.settle(names, {}, noted, {3, 4}, leave)
    assert settled == names | {2: OVERFLOW}
    renamed = names | {4: Workload(pod="another")}
    for counting in ({2, 3, 4}, {2, 3}, {2, 3}, {2, 3, 4}):
        settled, _ = identities.settle(renamed, {}, noted, counting, leave)
        assert settled == renamed | {2: OVERFLOW}


A, B, C, NEW = (Workload(pod=pod) for pod in ("a", "b", "c", "new"))


@pytest.mark.parametrize(
    ("most", "flushes", "settled"),
    [
        # renamed, while others, who have names already, begin to count
        (2, [({2: A, 3: B, 4: C}, {4}), ({2: A, 3: B, 4: NEW}, {2, 3, 4})], {2: A, 3: OVERFLOW, 4: NEW}),
        # of two that were one, who is not renamed
        (1, [({2: A, 3: A}, {2, 3}), ({2: NEW, 3: A}, {2, 3})], {2: OVERFLOW, 3: A}),
        # another cgroup of what is shown, also if it has not counted yet when the first goes
        (1, [({2: B, 3: A}, {3}), ({2: B, 4: A}, {2, 4})], {2: OVERFLOW, 4: A}),
        (1, [({2: B, 3: A}, {3}), ({2: B, 3: A, 4: A}, {2, 3}), ({2: B, 4: A}, {2})], {2: OVERFLOW, 4: A}),
    ],
)
def test_who_keeps_a_place(
    most: int, flushes: list[tuple[dict[int, Workload], set[int]]], settled: dict[int, Workload]
) -> None:
    identities = Identities(Mock(CgroupLabels, all=dict), ROOT_ID, most)
    for named, counting in flushes:
        noted = dict.fromkeys(named, NotedCgroup(0, 0, "/"))
        found, _ = identities.settle(named, {}, noted, counting, Mock(return_value=set()))
    assert found == settled


@pytest.mark.parametrize("before", [OVERFLOW, UNKNOWN, None])
def test_who_had_a_place_keeps_it_in_a_new_daemon(before: Workload | None) -> None:
    """Also if all are named otherwise now."""
    labels = {3: A} | ({2: before} if before else {})
    identities = Identities(Mock(CgroupLabels, all=lambda: labels), ROOT_ID, 1)
    noted = dict.fromkeys((2, 3), NotedCgroup(0, 0, "/"))
    settled, _ = identities.settle({2: B, 3: NEW}, {}, noted, {2, 3}, Mock(return_value=set()))
    assert settled == {2: OVERFLOW, 3: NEW}
