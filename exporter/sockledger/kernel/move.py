"""Moves sums from one entry to another inside the kernel, so that none is lost to whoever kills the daemon.

What is moved may be added to meanwhile. Only for what is sums of 64 bits: they are added up.
"""

import struct
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from sockledger.errors import UserError
from sockledger.kernel.btf import Field, Layout
from sockledger.kernel.libbpf import LoadError, Table
from sockledger.kernel.objects import advice, open_object

# bpf/move.bpf.c
_KEY_BYTES = 40
_WORDS = 128
_DROPPED = 0xFF
_KEYS = struct.Struct(f"{_KEY_BYTES}s{_KEY_BYTES}s")  # struct keys
_SOMETHING, _NO_ENTRY = 1, 2  # enum moved

_WORD_BYTES = 8

# The key of an array.
INDEX = Layout("index", 4, (Field("index", 0, 4, {}),))


@dataclass(frozen=True)
class SumsMap:
    """A map of sums, and the layouts of its keys and values."""

    table: Table
    key: Layout
    value: Layout


def words_by_name(source: Layout, target: Layout) -> dict[int, int]:
    """Return which word of a value in *target* is called like which word of one in *source*."""
    words = {field.name: _word(target, field) for field in target.fields}
    return {_word(source, field): words[field.name] for field in source.fields if field.name in words}


def _word(layout: Layout, field: Field) -> int:
    if field.size != _WORD_BYTES:
        raise ValueError(f"struct {layout.name}: {field.name} is no sum of 64 bits")
    return field.offset // _WORD_BYTES


class Mover:
    """A program that adds the words of entries in one map to entries in another, or in the same."""

    def __init__(self, source: Table, target: Table, words: Mapping[int, int]) -> None:
        """Load it. *words* says which word of the target takes which of the source; others stay.

        UserError if the kernel refuses it.
        """
        if max(source.key_size, target.key_size) > _KEY_BYTES:
            raise ValueError(f"a key of {source.name} or {target.name} is longer than {_KEY_BYTES} bytes")
        plan = bytearray([_DROPPED] * _WORDS)
        for word, wanted in words.items():
            plan[word] = wanted
        self._object = open_object("move")
        self._object.maps["source"].reuse(source.fd)
        self._object.maps["target"].reuse(target.fd)
        self._object.maps[".rodata.plan"].set_initial_value(bytes(plan))
        try:
            self._object.load()
        except LoadError as error:
            raise UserError(f"the kernel refuses to move sums: {error}: {advice(error)}") from None
        self._program = self._object.programs["sl_move"]

    def move(self, from_key: bytes, to_key: bytes) -> bool:
        """Move one entry's sums; return whether there were any. KeyError if there is no such entry."""
        result = self._program.run(_KEYS.pack(from_key, to_key))
        if result == _NO_ENTRY:
            raise KeyError(f"no entry {from_key.hex()}, or none {to_key.hex()} to move it to")
        return result == _SOMETHING

    def close(self) -> None:
        """Free the program; the maps stay."""
        self._object.close()


def move_all(
    source: SumsMap, target: SumsMap, overflow: SumsMap, overflow_key: Callable[[bytes], bytes]
) -> int:
    """Move all that is in *source*, which nobody fills any more, into a map of another layout or size.

    Members are matched by name: those that *source* does not have are 0, sums that *target* does not have
    stay behind, and rows add up that differ only in members of the key that *target* does not have. A row
    for which there is no room is added to *overflow*, at what *overflow_key* makes of its key in *target*;
    return how many were. The source's entries stay, emptied: who was killed may do it again.
    """
    without_room = 0
    with (
        closing(Mover(source.table, target.table, words_by_name(source.value, target.value))) as mover,
        closing(Mover(source.table, overflow.table, words_by_name(source.value, overflow.value))) as aside,
    ):
        for keys, _ in source.table.batches():
            for at in range(0, len(keys), source.key.size):
                key = keys[at : at + source.key.size]
                wanted = translate(key, source.key, target.key)
                if target.table.make(wanted):
                    mover.move(key, wanted)
                elif aside.move(key, overflow_key(wanted)):
                    without_room += 1
    return without_room


def translate(element: bytes, source: Layout, target: Layout) -> bytes:
    """Return a key or a value in another layout: members by name, what is new is 0.

    So is an enum's value that *target* does not know.
    """
    members = source.unpack(element)
    values = {}
    for field in target.fields:
        value = members.get(field.name, 0)
        values[field.name] = value if value in field.names or not field.names else 0
    return target.pack(**values)
