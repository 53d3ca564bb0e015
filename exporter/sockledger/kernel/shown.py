"""The kernel's map of the counters that scrapers have got: `ledger.births.Shown`."""

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping

from sockledger.kernel.libbpf import Map

_BYTES = 8  # of a key, and of a value


class ShownMap:
    """A map of numbers by numbers, with the methods of a dict that are needed."""

    def __init__(self, table: Map) -> None:
        self._table = table

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield all keys with their values."""
        for keys, values in self._table.batches():
            yield from zip(array("Q", keys), array("Q", values), strict=True)

    def update(self, entries: Mapping[int, int], /) -> None:
        """Add all of *entries*; OSError where there is no room, then only some of them are there."""
        self._table.update_many(_packed(entries.keys()), _packed(entries.values()))

    def __delitem__(self, key: int, /) -> None:
        try:
            self._table.delete(key.to_bytes(_BYTES, sys.byteorder))
        except FileNotFoundError:
            raise KeyError(key) from None


def _packed(numbers: Iterable[int]) -> bytes:
    return array("Q", numbers).tobytes()
