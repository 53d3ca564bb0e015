"""The kernel half in use: its object, what it is attached to, the flush, and its maps' contents."""

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from typing import NamedTuple

from sockledger.errors import UserError
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.libbpf import Link, LoadError, Object, Program

# include/uapi/linux/bpf.h, enum bpf_attach_type
BPF_CGROUP_INET_INGRESS = 0
BPF_CGROUP_INET_EGRESS = 1

# The program at the root's ingress, which every version has under this name: see kernel/attachments.py.
HOT_PATH = "sl_receive"

# Typical cgroups use two protocols over two families.
TOTALS_PER_CGROUP = 4


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
    tag: int


@dataclass(frozen=True)
class Labels:
    """Label values of the key's enums, by their number."""

    protocol: dict[int, str]
    family: dict[int, str]


def object_image() -> bytes:
    """Return the compiled BPF object that is part of the package; UserError if it was not built."""
    try:
        return (files("sockledger.kernel") / "sockledger.bpf.o").read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: the BPF object is missing: build the package (make build)"
        ) from None


def open_object(image: bytes | None = None) -> Object:
    """Open *image*, the package's own by default; UserError if it is damaged."""
    try:
        return Object(object_image() if image is None else image, "sockledger")
    except OSError as error:
        raise UserError(f"the BPF object is damaged ({error.strerror}): reinstall sockledger") from None


class DataPath:
    """The BPF programs and maps of one daemon. Until `attach` nothing runs; `close` leaves nothing behind."""

    def __init__(self, root: CgroupRoot, *, cgroups: int, sockets: int, image: bytes | None = None) -> None:
        """Load the object. *cgroups* limits the totals, *sockets* how many have a seat of their own.

        UserError if the kernel refuses to load it.
        """
        self._root = root
        self._object = open_object(image)
        self.programs = self._object.programs
        self.maps = self._object.maps
        self.links: dict[str, Link] = {}
        self._meters: dict[int, tuple[Link, Link]] = {}

        self.maps["sockets"].max_entries = sockets
        self.maps["totals"].max_entries = cgroups * TOTALS_PER_CGROUP
        try:
            self._object.load()
        except LoadError as error:
            raise UserError(f"the kernel refuses the BPF programs: {error}: {advice(error)}") from None
        key, value = self.maps["totals"].key, self.maps["totals"].value
        _same_members(key.name, [field.name for field in key.fields], TotalsKey._fields)
        _same_members(value.name, [field.name for field in value.fields], Traffic._fields)
        self._key, self._value = key, value
        self.labels = Labels(
            {number: name.lower() for number, name in key.field("protocol").names.items()},
            {number: name.lower() for number, name in key.field("family").names.items()},
        )

    def attach(self) -> None:
        """Attach the hot path. UserError if the cgroup refuses; then nothing stays attached."""
        try:
            for name in (HOT_PATH, "sl_transmit"):
                self.links[name] = attach_cgroup(self.programs[name], self._root.fd, str(self._root.path))
        except UserError:
            self._detach()
            raise

    def detached(self) -> set[str]:
        """Return the programs of the hot path that the kernel does not run any more."""
        return {name for name, link in self.links.items() if not link.attached()}

    def _detach(self) -> None:
        for cgroup_id in list(self._meters):
            self.remove_meter(cgroup_id)
        while self.links:
            self.links.popitem()[1].destroy()

    def close(self) -> None:
        """Detach everything and free the maps."""
        self._detach()
        self._object.close()

    # ---- meters

    def add_meter(self, cgroup_id: int, cgroup_fd: int, path: str) -> None:
        """Count all packets of a cgroup and its descendants in its own storage; UserError if it refuses."""
        receive = attach_cgroup(self.programs["sl_meter_receive"], cgroup_fd, path)
        try:
            transmit = attach_cgroup(self.programs["sl_meter_transmit"], cgroup_fd, path)
        except UserError:
            receive.destroy()
            raise
        self._meters[cgroup_id] = receive, transmit

    def remove_meter(self, cgroup_id: int) -> None:
        """Take a meter off; its count goes with its cgroup."""
        for link in self._meters.pop(cgroup_id):
            link.destroy()

    # ---- the flush's steps

    def flush_sockets(self) -> int:
        """Drain all pending counts into the totals; return how many seats were taken.

        Begins with a grace period: what has passed control is in a seat or in the totals then, and whoever
        still found a seat that the last flush retired has left it.
        """
        self.grace_period()
        return self.programs["sl_flush"].run()

    def grace_period(self) -> None:
        """Return when every program that runs now has ended (an RCU grace period)."""
        inner = struct.pack("=I", self.maps["grace_inner"].fd)
        self.maps["grace_period"].update(bytes(4), inner)

    # ---- the maps' contents

    def control(self, cgroup_id: int) -> Traffic | None:
        """Return what went through an attach point, None if its cgroup is gone."""
        layout = self.maps["control"].value
        sums = []
        for attach_type in (BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS):
            key = self.maps["control"].key.pack(cgroup_inode_id=cgroup_id, attach_type=attach_type)
            values = self.maps["control"].lookup_percpu(key)
            if values is None:
                return None
            each = [layout.unpack(value) for value in values]
            sums += [sum(count["bytes"] for count in each), sum(count["packets"] for count in each)]
        return Traffic(*sums)

    def totals(self) -> Iterator[tuple[TotalsKey, Traffic]]:
        """Yield the totals of every (cgroup, protocol, family, peer, tag)."""
        for keys, values in self.maps["totals"].batches():
            for key, value in zip(self._key.unpack_all(keys), self._value.unpack_all(values), strict=True):
                yield TotalsKey._make(key), Traffic._make(value)

    def overflow(self) -> Iterator[tuple[tuple[int, int], Traffic]]:
        """Yield what found the totals full, by (protocol, family)."""
        for index, key in enumerate(product(self.labels.protocol, self.labels.family)):
            value = self.maps["overflow"].lookup_index(index)
            yield key, Traffic._make(self._value.struct.unpack(value))

    def lost_updates(self) -> dict[str, int]:
        """Return how many updates had to go another way, by reason."""
        each = [self.maps["lost"].value.unpack(v) for v in self.maps["lost"].lookup_percpu(bytes(4)) or ()]
        return {reason: sum(values[reason] for values in each) for reason in each[0]}


def advice(error: LoadError | OSError) -> str:
    """Return what to do about an object that does not load."""
    if error.errno == errno.ENOMEM:
        return "allow the daemon more memory, or lower limits.sockets and limits.cgroups"
    if error.errno == errno.EMFILE:
        return "raise the limit of open files (LimitNOFILE=)"
    return "see sockledger doctor"


def attach_cgroup(program: Program, cgroup_fd: int, path: str) -> Link:
    """Attach a program to a cgroup; UserError with the likely cause if the kernel refuses."""
    try:
        return program.attach_cgroup(cgroup_fd)
    except OSError as error:
        if not isinstance(error, PermissionError):
            raise UserError(f"{path}: attaching program {program.name} failed: {error.strerror}") from None
        raise UserError(
            f"{path}: the cgroup refuses program {program.name}: another program is attached there, or above "
            "it, exclusively (no BPF_F_ALLOW_MULTI), or CAP_NET_ADMIN is missing: see bpftool cgroup show"
        ) from None


def _same_members(name: str, found: list[str], wanted: tuple[str, ...]) -> None:
    if tuple(found) != wanted:
        raise UserError(
            f"the BPF object is of another version (struct {name}: {', '.join(found)}): reinstall sockledger"
        )
