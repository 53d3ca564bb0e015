"""Which networks remote addresses are looked up in: those that users name, and some that everybody has.

The narrowest that has an address says its class. What is named twice, by a user and here, is the user's.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
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


class PeerNetworks:
    """The networks of now. *put* has them looked up in."""

    def __init__(
        self,
        classes: Classes,
        services: Sequence[Network],
        put: Callable[[Mapping[Network, str]], None],
        file: Path | None = None,
        load: Callable[[Path], Classes] = lambda _: {},
        node: "NodeNetworks | None" = None,
    ) -> None:
        """Put those there are; UserError if that fails. *load* reads *file*; UserError if it is refused."""
        self._node = node
        self._classes = classes
        self._services = services
        self._put = put
        self._file = file
        self._load = load
        self.file_ok = True  # the last time that it was read
        self._identity: tuple[int, ...] | None = None
        self._networks: Mapping[Network, str] = {}
        self._stale = self._stuck = False
        if file:
            self._identity = _identity(file)
            self._classes = load(file)
        self._refresh()

    def look(self) -> None:
        """Look what is new. A file is read again if it is another; one that is refused changes nothing."""
        self._stale |= self._node is not None and self._node.have_changed()
        if self._file and (identity := _identity(self._file)) != self._identity:
            self._identity = identity
            try:
                self._classes = self._load(self._file)
                self.file_ok = self._stale = True
            except UserError as error:
                logger.error("networks refused, going on with the old ones", extra={"error": str(error)})  # noqa: TRY400
                self.file_ok = False
        if self._stale:
            try:
                self._refresh()
                self._stale = self._stuck = False
            except (UserError, OSError) as error:
                if not self._stuck:
                    logger.error("networks stay as they are", extra={"error": str(error)})  # noqa: TRY400
                self._stuck = True

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
        if networks != self._networks:
            self._put(networks)
            logger.info("networks in use", extra={"networks": len(networks)})
        self._networks = networks


def _is_within(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]


def _identity(file: Path) -> tuple[int, ...] | None:
    """Return what changes with a file: a ConfigMap's is another one each time. None: it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
