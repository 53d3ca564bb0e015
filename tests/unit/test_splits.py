"""Where sums go that are told apart by names, when cgroups are gone: those of processes, for all."""

import struct

from sockledger.ledger.splits import COMMS, NamedRows
from sockledger.workloads.naming import OVERFLOW, Workload

WEB, OTHERS = Workload(container="web"), Workload(container="others")
GONE, LABEL_SET, LIVING, STRANGER = 2, 1 << 63 | 1, 3, 4  # below 0: nothing counts there
NAMES = {GONE: WEB, LABEL_SET: WEB, LIVING: WEB, STRANGER: OTHERS}
FAMILY = 2


def comm(name: str) -> tuple[int, ...]:
    return struct.unpack("=2Q", name.encode().ljust(16, b"\0"))


def comms(*rows: tuple[int, str], most: int, leaving: tuple[int, ...] = (GONE,)) -> NamedRows:
    """Of rows under which something counts; but who has no name counts nothing."""
    found = [((number, *comm(name), FAMILY, 0), (int(number > 0), 0)) for number, name in rows]
    rows_now = [((abs(key[0]), *key[1:]), sums) for key, sums in found]
    return NamedRows(COMMS, rows_now, most, NAMES.get, leaving)


def target(found: NamedRows, name: str) -> tuple[int, str]:
    number, *of, family, unused = found.target((GONE, *comm(name), FAMILY, 0), WEB, LABEL_SET)
    assert (family, unused) == (FAMILY, 0)
    return number, COMMS.text(tuple(of))


def test_as_many_as_there_is_room_for() -> None:
    """Names of before that nothing counts under have no place."""
    found = comms((GONE, "a"), (GONE, "b"), (LABEL_SET, "c"), (-LABEL_SET, "d"), (STRANGER, "b"), most=2)
    assert target(found, "a") == (LABEL_SET, "a")
    assert target(found, "c") == (LABEL_SET, "c")
    assert target(found, "b") == (LABEL_SET, "")


def test_another_cgroup_that_is_shown_with_the_name() -> None:
    """Or the counter would fall. Not if it leaves itself, or has counted nothing under it."""
    rows = (GONE, "a"), (LABEL_SET, "c")
    assert target(comms(*rows, (LIVING, "a"), most=1), "a") == (LIVING, "a")
    assert target(comms(*rows, (LIVING, "a"), most=1, leaving=(GONE, LIVING)), "a") == (LABEL_SET, "")
    assert target(comms(*rows, (-LIVING, "a"), most=1), "a") == (LABEL_SET, "")


def test_the_rest_is_no_name() -> None:
    found = comms((LABEL_SET, "a"), (LABEL_SET, "other"), most=1)
    assert target(found, "") == (LABEL_SET, "")
    assert target(found, "other") == (LABEL_SET, "other")


def test_shown() -> None:
    assert COMMS.shown_as(WEB, comm("nginx")) == "nginx"
    assert COMMS.shown_as(WEB, COMMS.none) == ""
    assert (
        COMMS.shown_as(OVERFLOW, COMMS.none)
        == COMMS.shown_as(OVERFLOW, comm("nginx"))
        == COMMS.shown_as(WEB, COMMS.other)
        == "other"
    )
    assert COMMS.text(struct.unpack("=2Q", b"caf\xe9".ljust(16, b"\0"))) == "caf\\xe9"
