"""The networks that packets' remote addresses are looked up in, and the numbers of their classes."""

import sys
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Network, IPv6Network

from sockledger.kernel.libbpf import Map, NewMap
from sockledger.kernel.noted import boottime

Network = IPv4Network | IPv6Network

OTHER = "other"  # of addresses that no network has
UNKNOWN = "unknown"  # of numbers whose names somebody has removed
_OTHER_NUMBER = 1  # CLASS_OTHER in bpf/peers.h
_FAMILY_BITS = 32
_FIRST = bytes(4)


class Networks:
    """The maps of bpf/peers.h. A number is a class's for as long as anything is counted by it."""

    def __init__(self, maps: Mapping[str, Map], counted: Callable[[], Collection[int]]) -> None:
        """Read the names; *counted* returns the numbers that something is counted by."""
        self._maps = maps
        self._counted = counted
        names = maps["class_names"]
        self._names = {_OTHER_NUMBER: OTHER}
        for keys, values in names.batches():
            for (number,), (name,) in zip(
                names.key.struct.iter_unpack(keys), names.value.struct.iter_unpack(values), strict=True
            ):
                self._names[number] = name.split(b"\0")[0].decode()
        self._in_use: NewMap | None = None
        # of the networks in use; those of a predecessor, whose programs may run until ours do, may have any
        self._classes = set(self._names.values())

    def name(self, number: int) -> str:
        """Return what a class is called."""
        return self._names.get(number, UNKNOWN)

    def names(self) -> Mapping[int, str]:
        """Return what all classes are called, by number."""
        return self._names

    def put(self, networks: Mapping[Network, str]) -> set[str]:
        """Have the classes of addresses looked up in these networks, all at once.

        What is sent meanwhile counts by these or those before. Return the classes that there is no room for:
        their networks are other's.
        """
        classes = set(networks.values())
        numbers = self._make_numbers(classes)
        made = NewMap(self._maps["networks_inner"], max(len(networks), 1))
        try:
            for network, name in networks.items():
                number = numbers.get(name, _OTHER_NUMBER)
                made.update(_key(network), number.to_bytes(4, sys.byteorder))
            # returns after a grace period: whoever reads the next generation finds these networks
            self._maps["networks"].update(_FIRST, made.fd.to_bytes(4, sys.byteorder))
        except OSError:
            made.close()
            raise
        # not before: older kernels free a map in a map at once when nobody else has it (CVE-2023-52447)
        self.close()
        self._in_use = made
        self._classes = classes
        self._maps["networks_state"].update(_FIRST, boottime().to_bytes(8, sys.byteorder))
        return classes - numbers.keys()

    def _make_numbers(self, classes: set[str]) -> Mapping[str, int]:
        """Return the numbers of all classes; new ones are written down, as far as there is room."""
        numbers = {name: number for number, name in self._names.items()}
        if not (new := sorted(classes - numbers.keys())):
            return numbers
        table = self._maps["class_names"]
        counted = set(self._counted())
        if len(numbers) + len(new) > table.max_entries:
            self._forget(counted, classes)
        taken = {*self._names, *counted}
        free = (number for number in range(_OTHER_NUMBER + 1, table.max_entries + 2) if number not in taken)
        for name, number in zip(new, free, strict=False):
            if not table.make(table.key.struct.pack(number), table.value.struct.pack(name.encode())):
                break
            self._names[number] = name
        return {name: number for number, name in self._names.items()}

    def _forget(self, counted: set[int], classes: set[str]) -> None:
        """Give back the names that neither counts nor networks have, these or those in use."""
        kept = {OTHER, *self._classes, *classes}
        for number, name in list(self._names.items()):
            if number not in counted and name not in kept:
                self._maps["class_names"].delete(self._maps["class_names"].key.struct.pack(number))
                del self._names[number]

    def close(self) -> None:
        """Let go of the networks in use; they live on where they were put."""
        if self._in_use:
            self._in_use.close()
            self._in_use = None


def _key(network: Network) -> bytes:
    """Return a network as struct network."""
    length = _FAMILY_BITS + network.prefixlen
    family = network.version.to_bytes(4, sys.byteorder)
    return length.to_bytes(4, sys.byteorder) + family + network.network_address.packed.ljust(16, b"\0")
