"""The kernel half in use: its object, what it is attached to, the flush, and its maps' contents."""

import logging
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from sockledger.errors import UserError
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.features import forbids_reading, sees_all_processes, tells_calls
from sockledger.kernel.libbpf import (
    Link,
    LoadError,
    Object,
    OpenMap,
    Program,
    ProgramStats,
    program_stats,
)
from sockledger.kernel.links import HOT_PATH, Links, attach_cgroup, replace_program
from sockledger.kernel.maps import PENDING, SLOT, TOGETHER, Entries, begins_alone, policy
from sockledger.kernel.networks import Networks
from sockledger.kernel.noted import CgroupLabels, KeptLabelSets, NotedCgroups
from sockledger.kernel.objects import advice, open_object
from sockledger.kernel.pins import Pins, opened_map, pin_name
from sockledger.kernel.sums import (
    CLASSES_PER_CGROUP,
    LEAST_PORTS,
    PLACES,
    QUEUES,
    RETIRED_TOTALS,
    SUMS,
    TAGGED_TOTALS,
    TAGS_PER_CGROUP,
    TASK_TOTALS,
    TASKS_PER_CGROUP,
    TOTALS_PER_CGROUP,
    KeptSums,
    Sums,
    TotalsKey,
    Traffic,
)
from sockledger.kernel.tag_pin import TagPin
from sockledger.kernel.upgrade import bring_home, flush_others, sums_everywhere

logger = logging.getLogger(__name__)

# include/uapi/linux/bpf.h, enum bpf_attach_type
BPF_CGROUP_INET_INGRESS = 0
BPF_CGROUP_INET_EGRESS = 1

# bpf/udp.h, enum known; and the cookie of no socket
KNOWN_NONE, KNOWN_SEATED, KNOWN_ALL = range(3)
_NOBODY = bytes(8)

# The kernel's tick, which CLOCK_MONOTONIC_COARSE moves by.
CLOCK_MONOTONIC_COARSE = 6


@dataclass(frozen=True)
class Labels:
    """Label values of the object's enums, by their number."""

    protocol: dict[int, str]
    family: dict[int, str]
    role: dict[int, str]
    failure: dict[int, str]
    socket_family: dict[int, str]


@dataclass(frozen=True)
class Parts:
    """What is counted beside traffic; members of struct settings, but for *unix* and *tags*."""

    tcp: bool = True
    tcp_histograms: bool = False
    udp: bool = True
    peers: bool = False
    unix: bool = True
    tasks: bool = False  # what processes send and receive by sockets of all families, AF_UNIX among them
    tags: bool = True


class _Jumper(NamedTuple):
    """What a tracepoint's pinned link runs, which may be another daemon's."""

    fd: int
    ran_before: ProgramStats  # this daemon's start


# Ends first: whoever has counts is known at his end.
TASK_HOOKS = ("sl_task_exit", "sl_task_sent", "sl_task_received")
METERS = ("sl_meter_receive", "sl_meter_transmit")
# What is attached at all times, with a map that is there if it was.
ATTACHED = {
    "sl_cgroup_mkdir": "cgroups",
    "sl_cgroup_rmdir": "cgroups",
    "sl_cgroup_release": "cgroups",
    "sl_tcp_states": "tcp_totals",
    "sl_tcp_events": "tcp_totals",
    HOT_PATH: "totals",
    "sl_transmit": "totals",
    "sl_udp_drops": "udp_totals",
    "sl_udp_released": "udp_totals",
    **dict.fromkeys(TASK_HOOKS, "task_totals"),
}


def set_parts(
    opened: Object, root_id: int, parts: Parts, lease: int = 0, comms: int = 0, tags: int = 0
) -> None:
    """Set what the programs of an object will count, in which cgroup, and for how many jiffies on end.

    In each cgroup so many *comms* and *tags* are told apart.
    """
    flags = asdict(parts)
    del flags["unix"]
    flags["tags"] = tags if parts.tags else 0
    unseen = not sees_all_processes()
    value = opened.btf.struct("settings").pack(
        root=root_id, lease=lease, comms=comms, tasks_unseen=unseen, **flags
    )
    opened.maps[".rodata.settings"].set_initial_value(value)


class DataPath:
    """The BPF programs and maps of one daemon. Until `attach` nothing runs.

    With pins the kernel counts on without the daemon, and the next one goes on with what it has counted;
    without, `close` leaves nothing behind.
    """

    def __init__(
        self,
        root: CgroupRoot,
        *,
        cgroups: int,
        sockets: int,
        connections: int,
        label_sets: int = 0,
        comms: int = 20,
        tags: int = 16,
        parts: Parts = Parts(),
        pins: Pins | None = None,
        tag_pin: TagPin | None = None,
        lease: float = 0.0,
        image: bytes | None = None,
    ) -> None:
        """Load the object. *cgroups* and *label_sets* limit what has sums of its own.

        *sockets* limits how many have a seat of their own, *connections* the TCP sockets that are followed,
        *comms* and *tags* the names of processes and of sockets that are told apart in a cgroup. *tag_pin* is
        where others tag sockets. *lease*, in seconds, is for how long is counted without a flush; 0: for
        good. UserError if the kernel refuses to load it, or the pins are of another cgroup or version.
        """
        self._root = root
        self._object = open_object(image=image)
        self._parts = parts
        self._tells_calls = (parts.unix or parts.tasks) and tells_calls()
        self._pins = pins
        self._tag_pin = tag_pin if parts.tags else None
        self.programs = self._object.programs
        # without the object's variables
        self.maps = {name: each for name, each in self._object.maps.items() if "." not in name}
        self.links = Links(pins)
        self._jumpers: dict[str, _Jumper] = {}
        self._hooks: dict[str, int] = {}  # the ids of the programs in their slots

        set_parts(self._object, root.id, parts, round(lease * ticks_per_second()), comms, tags)
        for name, program in self.programs.items():
            if name == "sl_older":
                program.set_autoload(parts.tcp or parts.udp)
            elif name.startswith(("sl_tcp_", "sl_udp_", "sl_cgroup_", "sl_task_")):
                program.set_autoload(self._counts(name.removeprefix("sl_")))
        self.maps["sockets"].max_entries = sockets
        self.maps["cgroups"].max_entries = _room(pins, "cgroups", cgroups)
        self.maps["cgroup_labels"].max_entries = _room(pins, "cgroup_labels", cgroups + 1)  # the root's, too
        room = _room(pins, "label_sets", label_sets)
        self.maps["label_sets"].max_entries = max(room, 1)
        rows = cgroups + room
        per_cgroup = TOTALS_PER_CGROUP * (CLASSES_PER_CGROUP if parts.peers else 1)
        self.maps["totals"].max_entries = _room(pins, "totals", rows * per_cgroup + RETIRED_TOTALS)
        self.maps["seat_peers"].max_entries = sockets if parts.peers else 1
        classes = self.maps["class_names"].max_entries + 2 if parts.peers else 1
        self.maps["node_totals"].max_entries = _largest(pins, "node_totals", classes)
        self.maps["tcp_sockets"].max_entries = connections if parts.tcp else 1
        for name in SUMS:
            entries = rows
            if name.startswith("listen_"):
                entries = max(rows, LEAST_PORTS)
            elif name == TASK_TOTALS:
                others = len(self._object.btf.enum("socket_family"))
                entries = rows * (TASKS_PER_CGROUP if parts.tasks else 1) + others
            elif name == TAGGED_TOTALS:
                entries = rows * TAGS_PER_CGROUP
            self.maps[name].max_entries = _room(pins, name, entries + 2) if self._counts(name) else 1
        counted = [each for name, each in self.maps.items() if policy(name).pinned and self._counts(name)]
        self._map_pins = [pins.of_map(each) for each in counted] if pins else []
        tagged = self._tag_pin is not None and self._tag_pin.prepare()
        if pins:
            self._take_over_maps(pins)
        if self._tag_pin and tagged:
            self._take_over_tags(self._tag_pin)
        try:
            self._object.load()
        except LoadError as error:
            raise UserError(f"the kernel refuses the BPF programs: {error}: {advice(error)}") from None
        key, value = self.maps["totals"].key, self.maps["totals"].value
        _same_members(key.name, [field.name for field in key.fields], TotalsKey._fields)
        _same_members(value.name, [field.name for field in value.fields], Traffic._fields)
        self._key, self._value = key, value
        self._reconciliation = self.maps["reconciliation"].value
        self.sums = {name: Sums(self.maps[name]) for name in SUMS if self._counts(name)}
        for name, each in self.sums.items():
            if name != QUEUES:
                each.make_overflow()
        # in other daemons' times
        self._known_lapses = sums_everywhere(self.maps["flushes"], pins, self._map_pins)["lapses"]
        self.lost_before = sums_everywhere(self.maps["lost"], pins, self._map_pins)
        self.labels = Labels(
            *(
                {number: _label(enum, name) for number, name in self._object.btf.enum(enum).items()}
                for enum in ("protocol", "family", "role", "failure", "socket_family")
            )
        )
        self.kept = {name: KeptSums(self.maps[name]) for name in ("totals", *self.sums) if name != QUEUES}
        for kept in self.kept.values():
            kept.make_retired(self.labels.protocol, self.labels.family)
        # where cgroups' ends are not seen, they would stay for ever
        self.cgroups = NotedCgroups(self.maps["cgroups"], 0 if forbids_reading() else cgroups)
        self.cgroup_labels = CgroupLabels(self.maps["cgroup_labels"])
        self.label_sets = KeptLabelSets(self.maps["label_sets"], label_sets)
        self.networks = Networks(self.maps, self._peers_counted)
        self.most_names = {TASK_TOTALS: comms, TAGGED_TOTALS: tags}
        self._task_walk: Link | None = None  # made at the first flush
        self.closable = self.maps["closing"].value_size // 8  # so many cgroups at a time
        if pins:
            self._keep_maps(pins)
        if self._tag_pin:
            self._tag_pin.keep(self.maps["tags"])
        elif tag_pin:
            tag_pin.remove()  # or they would tag, and nobody count

    def _counts(self, name: str) -> bool:
        """Whether the part that a map or a program of this name belongs to is counted."""
        if name == "tcp_histograms":
            return self._parts.tcp_histograms
        match name.removeprefix("sl_").partition("_")[0]:
            case "tcp" | "listen":
                return self._parts.tcp
            case "udp":
                return self._parts.udp
            case "task" | "tasks":
                return self._tells_calls
            case "cgroup":
                return not forbids_reading()
            case "seat":
                return self._parts.peers
            case "tag" | "tags" | "tagged":
                return self._parts.tags
        return True

    # ---- pins

    def _take_over_maps(self, pins: Pins) -> None:
        """Let the object be loaded with the maps that are pinned."""
        pins.begin(self._root.id, self._map_pins)
        wanted = self.maps["tcp_sockets"].max_entries
        names = {each.map.name for each in self._map_pins}
        anew = pins.missing(names)
        if not TOGETHER.isdisjoint(anew):
            pins.remove_maps([path for path in pins.all("maps") if pin_name(path) in TOGETHER])
            anew |= TOGETHER
        if pins.resumed:
            if sums := sorted(name for name in anew if policy(name).entries is not Entries.LEFT):
                logger.warning("begins at 0, as it is not pinned", extra={"maps": ", ".join(sums)})
            pins.new_generation(filter(begins_alone, anew))
            kept = names - anew
            self.links.expected = {name for name, table in ATTACHED.items() if table in kept} & pins.attached
        for each in self._map_pins:
            pins.take_over(each)
        if (limit := self.maps["tcp_sockets"].max_entries) != wanted:
            logger.warning(
                "limits.connections stays as it is: a reboot or sockledger uninstall lets it change",
                extra={"wanted": wanted, "limit": limit},
            )

    def _take_over_tags(self, tag_pin: TagPin) -> None:
        """Let the object be loaded with the tags that sockets have: in them are numbers of places."""
        if self._pins and "tag_names" in self._pins.taken_over:
            tag_pin.take_over(self.maps["tags"])
        else:
            logger.warning("sockets lose their tags, as the names of these are not pinned")

    def _keep_maps(self, pins: Pins) -> None:
        """Pin all maps, and the flush. What jumps to a slot that is not there any more is taken off first."""
        for each in self._map_pins:
            if each.map.name.endswith(SLOT) and not each.path.exists():
                pins.remove_link(each.map.name.removesuffix(SLOT))
        self._pin_maps(pins, pins.replace)

    def _pin_maps(self, pins: Pins, pin_flush: Callable[[int, Path], object]) -> None:
        """Pin all maps, and note that they are.

        The flush after all that it fills, and after it what it empties: who finds that may run the flush.
        """
        for each in sorted(self._map_pins, key=lambda each: each.map.name == PENDING):
            for path in pins.flushes([each.path]):
                pin_flush(self.programs["sl_flush"].fd, path)
            pins.keep_map(each)
        pins.complete(self._root.id)

    @property
    def generations(self) -> Mapping[str, str]:
        """What tells apart when sums began at 0, by the maps that may do so alone."""
        return self._pins.generations if self._pins else {}

    # ---- attaching

    def attach(self) -> None:
        """Attach all programs, or replace those that are pinned. UserError if the cgroup refuses.

        First what notes cgroups, then the ends of connections, then those that are older, then the ends of
        UDP sockets and packets; then drops of datagrams, for what a socket has dropped before its packets are
        counted is not ours.
        """
        parts = self._parts
        if self._pins:  # or what a socket has dropped would be an older one's
            flush_others(self._pins, self._map_pins, self.grace_period)
        if parts.udp and not (self._known_sockets() and self._pins and self._pins.link_ids(HOT_PATH)):
            self._note_known(KNOWN_NONE)  # at once: the map may be full soon
        self.flush_sockets()  # the lease begins
        if parts.udp and self._known_sockets() == KNOWN_NONE:
            self.flush_udp()  # what has an entry begins anew, too
        try:
            if self._counts("cgroup"):
                # whichever comes last finds what the others have noted, or notes it, in the map in use now
                for name in ("sl_cgroup_release", "sl_cgroup_rmdir", "sl_cgroup_mkdir"):
                    self._hook(name)
            if parts.tcp:
                self._hook("sl_tcp_states")
                self._attach_root("sl_tcp_events")
            found = (parts.tcp or parts.udp) and self._look_for_older()
            if parts.udp:
                known = KNOWN_ALL if found and sees_all_processes() else KNOWN_SEATED
                self._note_known(max(known, self._known_sockets()))
                self._attach_root("sl_udp_released")  # which looks where these give seats:
            self._attach_root(HOT_PATH)
            self._attach_root("sl_transmit")
            if self._tells_calls:
                for name in TASK_HOOKS:
                    self._hook(name)
            if parts.udp:
                self._hook("sl_udp_drops")
        except UserError:
            self._undo_links()
            self.links.close()
            raise
        if self._pins:
            self.links.remove_others(but=METERS)  # these are known at the first flush
            bring_home(self._pins, self._map_pins, self.grace_period)
            self._pins.note_attached(self.links.held.keys() & ATTACHED.keys())
        self.cgroups.note_older(self._root)  # after those that are gone: room may be scarce

    def _hook(self, name: str) -> None:
        """Put a tracepoint's program in its slot, and attach what jumps there."""
        if name in self.links.expected and self.maps[name + SLOT].lookup(bytes(4)) is None:
            logger.warning("its slot was empty: counts are missing", extra={"program": name})
        self._fill_slot(name)
        self._hooks[name] = self.programs[f"{name}_now"].id

        def attach() -> Link:
            try:
                return self.programs[name].attach()
            except OSError as error:
                reason = f"{error.strerror}: {advice(error)}"
                raise UserError(f"attaching program {name} failed: {reason}") from None

        if self._pins:
            # before its link: nobody who finds that finds it without its program, or with another's
            is_new = not self._pins.link(name).exists()
            fd = self._pins.keep_program(name, self.programs[name].fd, is_new)
            self._jumpers[name] = _Jumper(fd, program_stats(fd))
        self.links.add(name, attach, lambda _: True)

    def _fill_slot(self, name: str) -> None:
        self.maps[name + SLOT].update(bytes(4), self.programs[f"{name}_now"].fd.to_bytes(4, sys.byteorder))

    def _changed_slots(self) -> set[str]:
        """Return the hooks whose slot somebody has emptied, or given another program."""
        return {
            name
            for name, program in self._hooks.items()
            if self.maps[name + SLOT].lookup(bytes(4)) != program.to_bytes(4, sys.byteorder)
        }

    def _attach_root(self, name: str) -> None:
        program, path = self.programs[name], str(self._root.path)

        def attach() -> Link:
            try:
                return attach_cgroup(program, self._root.fd, path)
            except FileNotFoundError:
                raise UserError(f"{path}: this cgroup, which is to be counted in, is gone") from None

        self.links.add(name, attach, partial(replace_program, program, self._root.id))

    def _known_sockets(self) -> int:
        noted = self.maps["udp_sockets"].lookup(_NOBODY)
        return self.maps["udp_sockets"].value.unpack(noted)["drops"] if noted else KNOWN_NONE

    def _note_known(self, known: int) -> None:
        """Note of which UDP sockets is known what they had dropped before they were counted."""
        table = self.maps["udp_sockets"]
        table.update(_NOBODY, table.value.pack(drops=known))

    def _look_for_older(self) -> bool:
        """Take in sockets that nobody knows: older ones, or those of a time when nothing was counted.

        Those that are not found now are at their first packet, or at their end. Return whether it was
        possible.
        """
        try:
            link = self.programs["sl_older"].attach()
            try:
                link.run_iterator()
            finally:
                link.destroy()
        except OSError as error:
            logger.warning("older sockets are not looked for", extra={"error": str(error)})
            return False
        return True

    def undo(self) -> None:
        """Detach what `attach` has attached; without a predecessor's pins leave none."""
        self._undo_links()
        if self._pins and not self._pins.resumed:
            self._pins.remove()
            if self._tag_pin:
                self._tag_pin.remove()

    def _undo_links(self) -> None:
        """Detach what was not attached before; first it is noted that this is meant to be."""
        if self._pins and self._pins.resumed:
            self._pins.note_attached(self._pins.attached - self.links.new)
        self.links.undo()

    def stats(self, name: str) -> ProgramStats:
        """Return the kernel's counts for a program that is attached, since this daemon's start."""
        if jumper := self._jumpers.get(name):
            return program_stats(jumper.fd).since(jumper.ran_before)
        return program_stats(self.programs[name].fd)

    def detached(self) -> set[str]:
        """Return the programs that the kernel does not run any more."""
        return (self.links.detached() & self.programs.keys()) | self._changed_slots()

    def attach_again(self) -> None:
        """Attach again what was detached by others, with a line in the log for each."""
        for name in self._changed_slots():
            self._fill_slot(name)
            logger.warning("put back in its slot", extra={"program": name})
        self.links.attach_again()

    def pin_again(self) -> None:
        """Pin again what was unpinned by others, with a line in the log; the lock must be held.

        UserError if another daemon has pinned its own there.
        """
        pins = self._pins
        if pins is None:
            return
        if not self._owns(pins):
            if pins.link_ids(HOT_PATH) - {self.links.held[HOT_PATH].id}:
                raise UserError(f"{pins.folder}: another daemon's programs are pinned there: stop this one")
            pins.clear()  # what is there no start of ours would go on with: it may be half of another's
        before = pins.names()
        pins.make_folders()
        for name, jumper in self._jumpers.items():
            pins.keep(jumper.fd, pins.hook(name))
        self.links.pin_again(pins)
        self._pin_maps(pins, pins.keep)
        again = pins.names() - before
        if self._tag_pin and self._tag_pin.keep(self.maps["tags"]):
            again.add("tags")
        if again:
            logger.warning("pinned again", extra={"pins": ", ".join(sorted(again))})

    def _owns(self, pins: Pins) -> bool:
        """Whether a start would go on with what is pinned, and it is ours."""
        [control] = (each for each in self._map_pins if each.map.name == "control")
        try:
            return (
                pins.counted_in() == self._root.id and pins.map_id(control.path) == OpenMap(control.map.fd).id
            )
        except ValueError:  # a root that is none of ours
            return False

    def close(self) -> None:
        """Let go of everything: without pins all is detached and freed."""
        self.links.close()
        self.networks.close()
        if self._task_walk:
            self._task_walk.destroy()
        while self._jumpers:
            os.close(self._jumpers.popitem()[1].fd)
        for kept in self.kept.values():
            kept.close()
        self._object.close()

    # ---- meters

    def add_meter(self, cgroup_id: int, path: Path) -> None:
        """Count all packets of a cgroup and its descendants in its own storage.

        UserError if it refuses, FileNotFoundError if *path* is not this cgroup's any more.
        """

        def attach(program: Program) -> Link:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_ino != cgroup_id:
                    raise FileNotFoundError(path)
                return attach_cgroup(program, fd, str(path))
            finally:
                os.close(fd)

        for name, program in self._meter(cgroup_id):
            try:
                self.links.add(name, partial(attach, program), partial(replace_program, program, cgroup_id))
            except (UserError, OSError):
                self.remove_meter(cgroup_id)
                raise

    def remove_meter(self, cgroup_id: int) -> None:
        """Take a meter off; its count goes with its cgroup."""
        for name, _ in self._meter(cgroup_id):
            if name in self.links.held:
                self.links.remove(name)

    def _meter(self, cgroup_id: int) -> list[tuple[str, Program]]:
        """Return the names of a meter's links, with their programs."""
        return [(f"{name}-{cgroup_id}", self.programs[name]) for name in METERS]

    # ---- the flush, and its steps

    def flush(self) -> dict[str, int]:
        """Bring home all that is counted; return how many sockets there are, by the map that they are in."""
        sockets = {"sockets": self.flush_sockets()}
        if self._parts.tcp:
            sockets["tcp_sockets"] = self.flush_tcp()
        if self._parts.udp:
            sockets["udp_sockets"] = self.flush_udp()
        self.flush_tasks()
        self.grace_period()  # drains that began elsewhere have landed
        return sockets

    def flush_sockets(self) -> int:
        """Drain all pending counts into the totals; return how many seats were taken.

        Begins with a grace period: what has passed control is in a seat or in the totals then, and whoever
        still found a seat that the last flush retired has left it.
        """
        self.grace_period()
        taken = self.programs["sl_flush"].run()
        if (lapses := self.maps["flushes"].first()["lapses"]) > self._known_lapses:
            logger.warning("nothing was counted for a while: no flush came, and the lease was over")
            self._known_lapses = lapses
        return taken

    def flush_tcp(self) -> int:
        """Add to the totals what TCP sockets have counted; return how many there are."""
        if not self._parts.tcp:
            return 0
        self.sums[QUEUES].clear()
        return self.programs["sl_tcp_flush"].run()

    def flush_udp(self) -> int:
        """Add to the totals what UDP sockets have dropped; return how many there are that did."""
        return self.programs["sl_udp_flush"].run() if self._parts.udp else 0

    def flush_tasks(self) -> None:
        """Add to the totals what living tasks have sent and received; those that end do it themselves."""
        if not self._tells_calls:
            return
        if self._task_walk is None:
            self._task_walk = self.programs["sl_task_flush"].attach()
        self._task_walk.run_iterator()

    def places(self) -> dict[str, set[tuple[int, ...]]]:
        """Return the places that names have taken, by map of `PLACES`: each a cgroup's id and a number."""
        return {
            name: {
                place
                for keys, _ in self.maps[name].batches()
                for place in self.maps[name].key.unpack_all(keys)
            }
            for name in PLACES.values()
            if self._counts(name)
        }

    def forget_places(self, name: str, places: Iterable[tuple[int, ...]]) -> None:
        """Give back places."""
        table = self.maps[name]
        for place in places:
            table.delete(table.key.struct.pack(*place))

    def grace_period(self) -> None:
        """Return when every program that runs now has ended (an RCU grace period)."""
        inner = struct.pack("=I", self.maps["grace_inner"].fd)
        self.maps["grace_period"].update(bytes(4), inner)

    @contextmanager
    def closed(self, cgroups: Sequence[int]) -> Iterator[None]:
        """Let no program add to sums of *cgroups*, `closable` at most: what comes counts as other.

        Who is killed meanwhile has a successor with other programs, for which none is closed.
        """
        self._close(cgroups)
        try:
            self.grace_period()
            yield
        finally:
            self._close(())

    def _close(self, cgroups: Sequence[int]) -> None:
        ids = struct.pack(f"={len(cgroups)}Q", *cgroups)
        self.maps["closing"].update(bytes(4), ids.ljust(self.maps["closing"].value_size, b"\0"))

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

    def with_tcp_sockets(self) -> set[int]:
        """Return the ids of all cgroups that TCP sockets count for, now or later."""
        table = self.maps["tcp_sockets"]
        at, size = table.value.field("cgroup_id").offset, table.value_size
        return {
            int.from_bytes(values[start + at : start + at + 8], sys.byteorder)
            for _, values in table.batches()
            for start in range(0, len(values), size)
        }

    def overflow(self) -> Iterator[tuple[tuple[int, int], Traffic]]:
        """Yield what found the totals full, by (protocol, family)."""
        for index, key in enumerate(product(self.labels.protocol, self.labels.family)):
            value = self.maps["overflow"].lookup_index(index)
            yield key, Traffic._make(self._value.struct.unpack(value))

    def _peers_counted(self) -> set[int]:
        """Return the numbers of all classes that something is counted by.

        A grace period first: programs that have just been replaced may still be adding to classes of theirs.
        Then seats before totals, where what they have pending goes.
        """
        self.grace_period()
        seats = self.maps["sockets"]
        names = [field.name for field in seats.value.fields]
        owner, peer = names.index("owner"), names.index("peer")
        found = {
            seat[peer]
            for _, values in seats.batches()
            for seat in seats.value.unpack_all(values)
            if seat[owner]
        }
        found.update(key.peer for key, _ in self.totals())
        found.update(number for number, _ in self._node_rows())
        return found

    def _node_rows(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield the numbers of classes that the node's TCP figures are not all 0 of, with these."""
        table = self.maps["node_totals"]
        size, nothing = table.value_size, bytes(table.value_size)
        for keys, values in table.batches(256):
            for position, (number,) in enumerate(struct.iter_unpack("=I", keys)):
                row = values[position * size : (position + 1) * size]
                if row != nothing:
                    yield number, table.value.struct.unpack(row)

    def node_totals(self) -> Mapping[str, Mapping[str, int]]:
        """Return what is counted of the whole node's TCP, by class of peers and member of struct node_totals.

        Without a name is what has no class: all of it, without networks. With them what is all 0 is left out.
        """
        fields = [field.name for field in self.maps["node_totals"].value.fields]
        found: dict[str, Counter[str]] = {} if self._parts.peers else {"": Counter(dict.fromkeys(fields, 0))}
        for number, row in self._node_rows():
            of_class = found.setdefault(self.networks.name(number) if number else "", Counter())
            of_class.update(dict(zip(fields, row, strict=True)))
        return found

    def reconciliation(self) -> tuple[Traffic, Traffic]:
        """Return what was kept of the reconciliation: unattributed, overcounted."""
        kept = self._reconciliation.struct.unpack(self.maps["reconciliation"].lookup_index(0))
        return Traffic(*kept[: len(Traffic._fields)]), Traffic(*kept[len(Traffic._fields) :])

    def keep_reconciliation(self, unattributed: Traffic, overcounted: Traffic) -> None:
        """Keep it for this daemon's successors."""
        self.maps["reconciliation"].update(
            bytes(4), self._reconciliation.struct.pack(*unattributed, *overcounted)
        )

    def lost_updates(self) -> dict[str, int]:
        """Return how many updates had to go another way, by reason."""
        return self.maps["lost"].first()


def _room(pins: Pins | None, name: str, limit: int) -> int:
    """Return for how many a map needs room: while more are pinned than the limit, for as many as before.

    None may be dropped: what is counted would lose its name, or its sums. There is some more for those that
    come meanwhile. UserError if what is pinned is no map.
    """
    entries, room = [], limit
    for path in pins.of_name(name) if pins else ():
        with opened_map(path) as pinned:
            entries.append(pinned.entries())
            room = max(room, pinned.max_entries)
    needed = sum(entries) * 9 // 8
    if len(entries) > 1:  # a daemon was killed before they were one
        room = max(room, needed)
    return room if needed > limit else limit


def _largest(pins: Pins | None, name: str, entries: int) -> int:
    """Return the entries for an array, of which none may be dropped: all of them are there at all times."""
    for path in pins.of_name(name) if pins else ():
        with opened_map(path) as pinned:
            entries = max(entries, pinned.max_entries)
    return entries


def ticks_per_second() -> int:
    """Return the kernel's HZ, in which tcp_sock's chronographs count."""
    return round(1 / time.clock_getres(CLOCK_MONOTONIC_COARSE))


def _label(enum: str, name: str) -> str:
    return name.lower().removeprefix(f"{enum}_").replace("_", "-")


def _same_members(name: str, found: list[str], wanted: tuple[str, ...]) -> None:
    if tuple(found) != wanted:
        raise UserError(
            f"the BPF object is of another version (struct {name}: {', '.join(found)}): reinstall sockledger"
        )
