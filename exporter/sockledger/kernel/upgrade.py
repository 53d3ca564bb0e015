"""From the maps of another version, or of other limits, to those in use: nothing that was counted is lost.

Who is killed here begins again: sums are moved inside the kernel, and all else is copied.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from sockledger.kernel.libbpf import Map, OpenMap
from sockledger.kernel.move import INDEX, SumsMap, move_all, translate
from sockledger.kernel.pins import FIXED, Pins, opened

logger = logging.getLogger(__name__)

# What a flush has emptied, makes anew, or is put in its place at each start.
_LEFT = ("sockets", "listen_queues", "sl_tcp_states_slot", "sl_udp_drops_slot", *FIXED)
# Not sums.
_COPIED = ("cgroups", "label_sets", "shown")


def carry_over(
    pins: Pins, path: Path, maps: Mapping[str, Map], overflow_key: Callable[[bytes], bytes]
) -> None:
    """Bring what is in the map that is pinned at *path*, which nobody fills any more, to that of its name.

    Totals for which there is no room are added to the overflow, at what *overflow_key* makes of their key.
    """
    name = path.name.partition("-")[0]
    source_key, source_value = pins.layouts(path)
    if name in _LEFT or name not in maps or source_value is None:
        return
    each = maps[name]
    target = SumsMap(each, each.key if source_key else INDEX, each.value)
    with opened(path) as fd:
        source = SumsMap(OpenMap(fd), source_key or INDEX, source_value)
        if name in _COPIED:
            without_room = _copy(source, target)
        elif name == "totals":
            overflow = SumsMap(maps["overflow"], INDEX, maps["overflow"].value)
            without_room = move_all(source, target, overflow, overflow_key)
        else:
            without_room = move_all(source, target, target, lambda _: bytes(target.key.size))
    logger.info("carried over", extra={"map": name, "without_room": without_room})


def _copy(source: SumsMap, target: SumsMap) -> int:
    """Make the entries that *target* does not have; return for how many there is no room."""
    without_room = 0
    for keys, values in source.table.batches():
        for index in range(len(keys) // source.key.size):
            key = keys[index * source.key.size :][: source.key.size]
            value = values[index * source.value.size :][: source.value.size]
            without_room += not target.table.make(
                translate(key, source.key, target.key), translate(value, source.value, target.value)
            )
    return without_room
