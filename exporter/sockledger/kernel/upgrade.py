"""From the maps of another version, or of other limits, to those in use: nothing that was counted is lost.

Who is killed here begins again: sums are moved inside the kernel, and all else is copied.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from sockledger.errors import UserError
from sockledger.kernel.btf import Layout
from sockledger.kernel.libbpf import Map, OpenMap, Table
from sockledger.kernel.move import INDEX, SumsMap, move_all, translate
from sockledger.kernel.pins import FIXED, Pins, opened, pin_name

logger = logging.getLogger(__name__)

# What a flush has emptied, makes anew, or is put in its place at each start.
_LEFT = ("sockets", "listen_queues", *FIXED)
# Not sums.
_COPIED = ("cgroups", "label_sets", "shown")


# Of keys and of values; None: a plain number.
Layouts = tuple[Layout | None, Layout | None]
Key = Callable[[bytes], bytes]


def carry_over(pins: Pins, path: Path, maps: Mapping[str, Map], overflow_key: Key) -> None:
    """Bring what is in the map that is pinned at *path*, which nobody fills any more, to that of its name.

    Totals for which there is no room are added to the overflow, at what *overflow_key* makes of their key.
    """
    name = pin_name(path)
    if name in _LEFT or name.endswith("_slot") or name not in maps:
        return
    target = maps[name]
    layouts = pins.layouts(path)
    with opened(path) as fd:
        if name in _COPIED:
            without_room = _copy(OpenMap(fd), target, layouts)
            if without_room:  # its size is large enough
                raise UserError(f"{path}: no memory to carry it over: allow the daemon more, nothing is lost")
        else:
            without_room = _move(OpenMap(fd), target, layouts, maps["overflow"], overflow_key)
    logger.info("carried over", extra={"map": name, "without_room": without_room})


def _move(source: Table, target: Map, layouts: Layouts, overflow: Map, overflow_key: Key) -> int:
    """Move sums; return how many rows found no room in *target*."""
    key, value = layouts
    if value is None:
        raise ValueError(f"{target.name} holds no sums")
    moved = SumsMap(source, key or INDEX, value)
    to = SumsMap(target, target.key if key else INDEX, target.value)
    if target.name == "totals":
        return move_all(moved, to, SumsMap(overflow, INDEX, overflow.value), overflow_key)
    return move_all(moved, to, to, lambda _: bytes(target.key_size))


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
