"""Sums in the kernel's maps: what is read of them, and their way to other keys when a cgroup is gone."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

from sockledger.kernel.libbpf import Map
from sockledger.kernel.move import Mover

# Maps of sums, but for the totals.
SUMS = (
    "tcp_totals",
    "listen_totals",
    "listen_queues",
    "tcp_histograms",
    "udp_totals",
    "task_totals",
    "tagged_totals",
)
# Members that are no counters: what there is now.
GAUGES = ("connections[", "sockets[")
TASK_TOTALS, TAGGED_TOTALS = "task_totals", "tagged_totals"
# Where names have places by which sums are told apart, by the sums' map.
PLACES = {TASK_TOTALS: "task_comms", TAGGED_TOTALS: "tag_names"}
# Of what lives only from one flush to the next.
QUEUES = "listen_queues"

# Below it are the ids of cgroups, above it those of label sets, for which sums of cgroups that are gone are
# kept. It is itself where sums end when nobody needs to know whose they were.
RETIRED = 1 << 63

# Typical cgroups use two protocols over two families.
TOTALS_PER_CGROUP = 4
# And talk to three classes of peers.
CLASSES_PER_CGROUP = 3
# By protocol and family.
RETIRED_TOTALS = 8
# A cgroup may listen on many ports.
LEAST_PORTS = 1024
# Where processes are told apart: a few names, each with the families that it uses.
TASKS_PER_CGROUP = 6
TAGS_PER_CGROUP = 4


class Traffic(NamedTuple):
    """Bytes from the IP header on, and wire segments; the members of struct totals."""

    receive_bytes: int
    receive_packets: int
    transmit_bytes: int
    transmit_packets: int

    def plus(self, other: "Traffic") -> "Traffic":
        """Return the sum, member by member."""
        return Traffic(*map(int.__add__, self, other))


class TotalsKey(NamedTuple):
    """The members of struct totals_key."""

    cgroup_id: int
    protocol: int
    family: int
    peer: int
    unused: int


class Sums:
    """A map of sums by cgroup: keys and values are structs of numbers, here tuples in their order."""

    def __init__(self, table: Map) -> None:
        self._table = table
        self._key, self._value = table.key, table.value
        self.fields = tuple(field.name for field in self._value.fields)

    def at(self, *names: str) -> tuple[int, ...]:
        """Return the positions of members by their names in C."""
        return tuple(map(self.fields.index, names))

    def make_overflow(self) -> None:
        """Make the entries that take what finds no room: cgroup 0's, for each value of an enum in the key."""
        for members in product(*(field.names or (0,) for field in self._key.fields)):
            self._table.make(self._key.struct.pack(*members))

    def clear(self) -> None:
        """Delete all."""
        self._table.clear()

    def rows(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Yield all keys, the cgroup's id first, with their values."""
        for keys, values in self._table.batches():
            yield from zip(self._key.unpack_all(keys), self._value.unpack_all(values), strict=True)


class KeptSums:
    """A map of sums that outlive their cgroups: they go to other keys, and none is lost on the way."""

    def __init__(self, table: Map) -> None:
        """Load a program that moves them; UserError if the kernel refuses it."""
        self._table = table
        self._key = table.key
        self.room = table.max_entries
        words = {word: word for word in range(table.value_size // 8)}
        self._mover = self._counters = Mover(table, table, words)
        gauges = {field.offset // 8 for field in table.value.fields if field.name.startswith(GAUGES)}
        if gauges:
            counters = {word: word for word in words if word not in gauges}
            self._counters = Mover(table, table, counters)

    def make(self, key: tuple[int, ...]) -> bool:
        """Make an entry, unless there is one; return whether there was room."""
        return self._table.make(self._key.struct.pack(*key))

    def make_retired(self, protocols: Iterable[int], families: Iterable[int]) -> None:
        """Make the entries that `retired` returns."""
        for protocol, family in product(protocols, families):
            members = {"protocol": protocol, "family": family}
            self.make(self.retired(tuple(members.get(field.name, 0) for field in self._key.fields)))

    def retired(self, key: tuple[int, ...]) -> tuple[int, ...]:
        """Return where an entry's sums end."""
        fields = zip(self._key.fields[1:], key[1:], strict=True)
        return (RETIRED, *(value if field.name in ("protocol", "family") else 0 for field, value in fields))

    def move(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        """Move an entry's sums to those of another, inside the kernel."""
        self._mover.move(self._key.struct.pack(*source), self._key.struct.pack(*target))

    def move_counters(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        """Move an entry's counters to those of another; its gauges stay."""
        self._counters.move(self._key.struct.pack(*source), self._key.struct.pack(*target))

    def is_empty(self, key: tuple[int, ...]) -> bool:
        """Whether an entry's sums are all 0, or there is none."""
        return not any(self._table.lookup(self._key.struct.pack(*key)) or b"")

    def delete(self, key: tuple[int, ...]) -> None:
        """Delete an entry."""
        self._table.delete(self._key.struct.pack(*key))

    def close(self) -> None:
        """Free the programs."""
        for mover in {self._mover, self._counters}:
            mover.close()
