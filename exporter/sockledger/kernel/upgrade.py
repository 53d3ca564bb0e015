"""From the maps of another version, or of other limits, to those in use: nothing that was counted is lost.

Who is killed here begins again, or another does, with maps of yet another size: sums are moved inside the
kernel, and all else is copied.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from sockledger.errors import UserError
from sockledger.kernel.btf import Layout
from sockledger.kernel.libbpf import Map, Table, run_program
from sockledger.kernel.maps import Entries, policy
from sockledger.kernel.move import INDEX, SumsMap, move_all, translate
from sockledger.kernel.pins import MapPin, Pins, opened, opened_map, pin_name

logger = logging.getLogger(__name__)

# Of keys and of values; None: a plain number.
Layouts = tuple[Layout | None, Layout | None]


def flush_others(pins: Pins, maps: Collection[MapPin], grace_period: Callable[[], None]) -> set[Path]:
    """Have what is pending in other maps than *maps* brought home by their own flushes; return other maps."""
    left = pins.others(maps)
    if left:
        grace_period()
        for path in pins.flushes(left):
            with opened(path) as fd:
                run_program(fd, path.name)
        grace_period()
    return left


def sums_everywhere(target: Map, pins: Pins | None, maps: Collection[MapPin]) -> dict[str, int]:
    """Return an array's first sums by member, with those that other maps than *maps* have of them."""
    sums = Counter(target.first())
    if pins:
        for path in (each for each in pins.others(maps) if pin_name(each) == target.name):
            _, layout = pins.layouts(path)
            if layout:
                with opened_map(path) as source:
                    sums.update(layout.unpack(source.lookup_index(0)))
    return {field.name: sums[field.name] for field in target.value.fields}


def bring_home(pins: Pins, maps: Collection[MapPin], grace_period: Callable[[], None]) -> None:
    """Bring what other maps hold to *maps*, now that nothing counts there; remove their pins."""
    left = flush_others(pins, maps, grace_period)
    targets = {each.map.name: each.map for each in maps}
    names = {pin_name(path) for path in left} - targets.keys()
    if ended := {name for name in names if policy(name).entries is not Entries.LEFT}:
        logger.warning("ends, as it is not counted any more", extra={"maps": ", ".join(sorted(ended))})
    for path in left:
        _carry_over(pins, path, targets)
    # First what flushes empty: none is run without it, after a kill. It would fill what is unpinned next.
    pending = pins.flushes(left)
    pins.remove_maps(pending.values())
    for path in pins.all("programs") - pins.flushes(each.path for each in maps).keys():
        path.unlink()
    pins.remove_maps(left - {*pending.values()})


def _carry_over(pins: Pins, path: Path, maps: Mapping[str, Map]) -> None:
    """Bring what is in the map that is pinned at *path*, which nobody fills any more, to that of its name."""
    name = pin_name(path)
    entries = policy(name).entries
    if entries in (Entries.LEFT, Entries.FIXED) or name not in maps:
        return
    target = maps[name]
    layouts = pins.layouts(path)
    with opened_map(path) as source:
        if entries is Entries.COPIED:
            without_room = _copy(source, target, layouts)
            if without_room:  # new cgroups may have taken it, too
                raise UserError(
                    f"{path}: no room, or no memory, to carry it over: raise limits.cgroups and "
                    "limits.label_sets, or allow the daemon more memory, nothing is lost"
                )
        else:
            without_room = _move(source, target, layouts, maps["overflow"])
    logger.info("carried over", extra={"map": name, "without_room": without_room})


def _move(source: Table, target: Map, layouts: Layouts, overflow: Map) -> int:
    """Move sums; return how many rows found no room in *target*: these are added to what takes them."""
    key, value = layouts
    if value is None:
        raise ValueError(f"{target.name} holds no sums")
    moved = SumsMap(source, key or INDEX, value)
    to = SumsMap(target, target.key if key else INDEX, target.value)
    if target.name == "totals":
        return move_all(moved, to, SumsMap(overflow, INDEX, overflow.value), partial(_overflow_key, to.key))
    return move_all(moved, to, to, partial(_others_key, to.key))


def _overflow_key(layout: Layout, key: bytes) -> bytes:
    """Return where in the overflow a total counts for which there is no room."""
    members = layout.unpack(key)
    return INDEX.pack(index=members["protocol"] * len(layout.field("family").names) + members["family"])


def _others_key(layout: Layout, key: bytes) -> bytes:
    """Return where other sums count for which there is no room: with cgroup 0's, by what is an enum."""
    members = layout.unpack(key)
    return layout.pack(**{field.name: members[field.name] for field in layout.fields if field.names})


def _copy(source: Table, target: Map, layouts: Layouts) -> int:
    """Make the entries that *target* does not have; return for how many there is no room."""
    key_layout, value_layout = layouts
    without_room = 0
    for keys, values in source.batches():
        for index in range(len(keys) // source.key_size):
            key = keys[index * source.key_size :][: source.key_size]
            value = values[index * source.value_size :][: source.value_size]
            if key_layout:
                key = translate(key, key_layout, target.key)
            if value_layout:
                value = translate(value, value_layout, target.value)
            without_room += not target.make(key, value)
    return without_room
