"""What pins and upgrades do with each of the object's maps."""

from dataclasses import dataclass
from enum import Enum, auto

# Behind a hook's name, its slot's.
SLOT = "_slot"
# What is pending, which the flush brings home.
PENDING = "sockets"


class Entries(Enum):
    """What becomes of a map's entries when one of another layout or size takes its place."""

    MOVED = auto()  # sums: they are added to those that are there
    # No sums: those that are there stay. If a change of limits was killed and undone, a cgroup's end that was
    # noted meanwhile is not seen: its name stays until the room is needed.
    COPIED = auto()
    LEFT = auto()  # a flush has emptied it, or it is filled anew
    FIXED = auto()  # no sums, and they cannot stay behind: neither layout nor size changes before the pins go


@dataclass(frozen=True)
class Policy:
    """What is done with one map."""

    entries: Entries = Entries.MOVED
    core: bool = False  # without it the others are worth nothing: a new one means a new VERSION
    pinned: bool = True


# All others are sums that others can do without.
_POLICIES = {
    # one side of the books, and the other
    PENDING: Policy(Entries.LEFT, core=True),
    "totals": Policy(core=True),
    "overflow": Policy(core=True),
    "control": Policy(Entries.FIXED, core=True),
    # between two walks what is dead is read once more
    "flushes": Policy(core=True),
    # without it counters would fall
    "shown": Policy(Entries.COPIED, core=True),
    "cgroups": Policy(Entries.COPIED),
    "label_sets": Policy(Entries.COPIED),
    "cgroup_labels": Policy(Entries.COPIED),
    "tcp_sockets": Policy(Entries.FIXED),
    "udp_sockets": Policy(Entries.FIXED),
    "tasks": Policy(Entries.FIXED),
    "task_comms": Policy(Entries.FIXED),
    "tag_names": Policy(Entries.FIXED),
    "lease": Policy(Entries.FIXED),
    "class_names": Policy(Entries.COPIED),
    # a seat whose peer is not known here is looked up again
    "seat_peers": Policy(Entries.LEFT),
    # from one flush to the next
    "listen_queues": Policy(Entries.LEFT),
    # pinned where others may write to it
    "tags": Policy(pinned=False),
    # each daemon's own
    "grace_inner": Policy(pinned=False),
    "grace_period": Policy(pinned=False),
    "closing": Policy(pinned=False),
    "networks_inner": Policy(pinned=False),
    "networks": Policy(pinned=False),
    "networks_state": Policy(pinned=False),
}
_SLOTS = Policy(Entries.LEFT)  # each start puts its own program there


def policy(name: str) -> Policy:
    """Return what is done with the map of this name."""
    return _SLOTS if name.endswith(SLOT) else _POLICIES.get(name, Policy())


def begins_alone(name: str) -> bool:
    """Whether a map has sums that may begin at 0 while others go on."""
    each = policy(name)
    return each.entries is Entries.MOVED and not each.core


# Gauges are what connections begin and end with: of these two none goes on without the other.
TOGETHER = {"tcp_sockets", "tcp_totals"}
CORE = {name for name, each in _POLICIES.items() if each.core}
FIXED = {name for name, each in _POLICIES.items() if each.entries is Entries.FIXED}
