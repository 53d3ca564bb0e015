"""The networks that packets' remote addresses are looked up in, and the numbers of their classes."""

import sys
from collections.abc import Collection, Mapping
from contextlib import closing
from ipaddress import IPv4Network, IPv6Network

from sockledger.errors import UserError
from sockledger.kernel.libbpf import Map, NewMap
from sockledger.kernel.noted import boottime

Network = IPv4Network | IPv6Network

OTHER = "other"  # of addresses that no network has
UNKNOWN = "unknown"  # of numbers whose names somebody has removed
_OTHER_NUMBER = 1  # CLASS_OTHER in bpf/peers.h
_FAMILY_BITS = 32
_FIRST = bytes(4)


class Networks:
    """The maps of bpf/peers.h. Numbers are kept for good, for sums are kept by them."""

    def __init__(self, maps: Mapping[str, Map], in_use: Collection[int]) -> None:
        """*in_use* are numbers that sums have: nobody else gets them."""
        self._maps = maps
        names = maps["class_names"]
        self._names = {_OTHER_NUMBER: OTHER}
        for keys, values in names.batches():
            for (number,), (name,) in zip(
                names.key.struct.iter_unpack(keys), names.value.struct.iter_unpack(values), strict=True
            ):
                self._names[number] = name.split(b"\0")[0].decode()
        self._numbers = {name: number for number, name in self._names.items()}
        self._last = max(self._names.keys() | set(in_use))

    def name(self, number: int) -> str:
        """Return what a class is called."""
        return self._names.get(number, UNKNOWN)

    def names(self) -> Mapping[int, str]:
        """Return what all classes are called, by number."""
        return self._names

    def _number(self, name: str) -> int:
        """Return a class's number, which is written down if it is new; UserError if there is no room."""
        number = self._numbers.get(name)
        if number is None:
            number = self._last + 1
            table = self._maps["class_names"]
            if not table.make(table.key.struct.pack(number), table.value.struct.pack(name.encode())):
                raise UserError(
                    f"networks: no room, or no memory, for class {name}: the kernel keeps all names that "
                    "there ever were, sockledger uninstall ends them with all counts"
                )
            self._last = number
            self._names[number], self._numbers[name] = name, number
        return number

    def put(self, classes: Mapping[Network, str]) -> None:
        """Have the classes of addresses looked up in these networks, all at once.

        UserError if there is no room for the names. What is sent meanwhile counts by these or those before.
        """
        inner = self._maps["networks_inner"]
        with closing(NewMap(inner, max(len(classes), 1))) as made:
            for network, name in classes.items():
                made.update(_key(network), self._number(name).to_bytes(4, sys.byteorder))
            # returns after a grace period: whoever reads the next generation finds these networks
            self._maps["networks"].update(_FIRST, made.fd.to_bytes(4, sys.byteorder))
        self._maps["networks_state"].update(_FIRST, boottime().to_bytes(8, sys.byteorder))


def _key(network: Network) -> bytes:
    """Return a network as struct network."""
    length = _FAMILY_BITS + network.prefixlen
    family = network.version.to_bytes(4, sys.byteorder)
    return length.to_bytes(4, sys.byteorder) + family + network.network_address.packed.ljust(16, b"\0")
