"""Which networks remote addresses are looked up in: those that users name, and some that everybody has.

The narrowest that has an address says its class. What is named twice, by a user and here, is the user's.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from sockledger.errors import UserError
from sockledger.kernel.networks import OTHER, UNKNOWN, Network

if TYPE_CHECKING:
    from sockledger.workloads.node_networks import NodeNetworks

logger = logging.getLogger(__name__)

Classes = Mapping[str, Sequence[Network]]  # by what they are called

LOOPBACK, SERVICE = "loopback", "service"
HOST, SUBNET = "host", "subnet"  # the node's addresses, and the networks that it is in
BUILT_IN = (LOOPBACK, SERVICE, HOST, SUBNET, OTHER, UNKNOWN)
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


_SHARE = 10  # after a refresh so many times as long as it took is for others
_RETRY_SECONDS = 60.0  # after one that found no room for all classes, and a file that was refused
_MOST_SECONDS = 60.0  # after one that failed, in the end
_MOST_SHOWN = 5  # in one line


class PeerNetworks:
    """The networks of now. *put* has them looked up in."""

    def __init__(
        self,
        classes: Classes,
        services: Sequence[Network],
        put: Callable[[Mapping[Network, str]], Collection[str]],
        file: Path | None = None,
        load: Callable[[Path], Classes] = lambda _: {},
        node: "NodeNetworks | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put those there are; OSError if that fails.

        *put* returns the classes that there is no room for. *load* reads *file*; UserError if it is refused.
        """
        self._node = node
        self._classes = classes
        self._services = services
        self._put = put
        self._file = file
        self._load = load
        self._clock = clock
        self._refused = ""  # why the file was, the last time that it was read
        self._read_at = 0.0
        self._identity: tuple[int, ...] | None = None
        self._networks: Mapping[Network, str] = {}
        self._without_room: Collection[str] = ()
        self._told: Collection[str] = ()
        self._stale = False
        self._next = self._retry = 0.0
        self._complaint = ""
        self._pause = 0.0
        if file:
            self._identity = _identity(file)
            self._classes = load(file)
        self._refresh()

    @property
    def as_configured(self) -> bool:
        """Whether the file was valid when it was last read, and is in use, with room for all classes."""
        return not (self._refused or self._complaint or self._without_room)

    def look(self) -> None:
        """Look what is new. A file is read again if it is another; one that is refused changes nothing."""
        self._stale |= self._node is not None and self._node.have_changed()
        began = self._clock()
        if self._file:
            self._look_at_file(self._file, began)
        due = self._stale or (self._without_room and began >= self._retry)
        if not due or began < self._next:
            return
        try:
            self._refresh()
        except OSError as error:
            if str(error) != self._complaint:
                logger.error("networks stay as they are", extra={"error": str(error)})  # noqa: TRY400
            self._complaint = str(error)
            self._pause = min(2 * max(self._pause, 1.0), _MOST_SECONDS)
        else:
            self._complaint = ""
            self._pause = 0.0
            self._stale = False
            self._retry = began + _RETRY_SECONDS
            self._tell_of_room()
        now = self._clock()
        self._next = now + max(self._pause, _SHARE * (now - began))

    def _look_at_file(self, file: Path, now: float) -> None:
        identity = _identity(file)
        # what could not be read may be readable now
        if identity == self._identity and not (self._refused and now >= self._read_at):
            return
        anew, self._identity, self._read_at = identity != self._identity, identity, now + _RETRY_SECONDS
        try:
            self._classes = self._load(file)
        except UserError as error:
            if anew or str(error) != self._refused:
                logger.error("networks refused, going on with the old ones", extra={"error": str(error)})  # noqa: TRY400
            self._refused = str(error)
        else:
            self._refused, self._stale = "", True
            self._next = self._pause = 0.0

    def _tell_of_room(self) -> None:
        if self._without_room and self._without_room != self._told:
            logger.error(
                "no room for all classes of networks, for names stay with their counts: these count as other",
                extra={
                    "classes": ", ".join(sorted(self._without_room)[:_MOST_SHOWN]),
                    "number": len(self._without_room),
                },
            )
        self._told = self._without_room

    def close(self) -> None:
        """Let go of the node's."""
        if self._node:
            self._node.close()

    def _refresh(self) -> None:
        networks: dict[Network, str] = dict.fromkeys(_LOOPBACK, LOOPBACK)
        networks |= {
            network: name
            for network, name in (self._node.networks() if self._node else {}).items()
            # a node may have services' addresses, too (kube-proxy with IPVS)
            if not any(_is_within(network, service) for service in self._services)
        }
        networks |= dict.fromkeys(self._services, SERVICE)
        for name, each in self._classes.items():
            networks |= dict.fromkeys(each, name)
        if networks == self._networks and not self._without_room:
            return
        without_room = self._put(networks)
        if networks != self._networks:
            logger.info("networks in use", extra={"networks": len(networks)})
        self._networks, self._without_room = networks, without_room


def _is_within(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]


def _identity(file: Path) -> tuple[int, ...] | None:
    """Return what changes with a file: a ConfigMap's is another one each time. None: it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
