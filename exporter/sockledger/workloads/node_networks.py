"""The node's own addresses and the networks that it is in, as rtnetlink tells of them.

Imported only where they are asked for: pyroute2 takes 10 MB.
"""

import errno
import os
from collections.abc import Collection
from ipaddress import ip_address, ip_network
from socket import AF_NETLINK, NETLINK_ROUTE, SOCK_NONBLOCK, SOCK_RAW, socket
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
)

from sockledger.errors import UserError
from sockledger.kernel.networks import Network
from sockledger.workloads.networks import HOST, SUBNET

# include/uapi/linux/rtnetlink.h
_MAIN_TABLE, _UNICAST = 254, 1
_GROUPS = {
    HOST: RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR,
    SUBNET: RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE | RTMGRP_LINK,  # IPv4's go with a link, silently
}


class NodeNetworks:
    """What is asked for of both."""

    def __init__(self, names: Collection[str]) -> None:
        """*names* are of `HOST` and `SUBNET`. UserError if there is no netlink."""
        self._names = names
        try:
            # none of pyroute2's, which fails for good once the kernel has dropped some
            self._events = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE)
            self._events.bind((0, sum(_GROUPS[name] for name in set(names))))
            self._dumps = IPRoute()
        except OSError as error:
            raise UserError(f"node_networks: rtnetlink: {error.strerror}: leave it out") from None

    def have_changed(self) -> bool:
        """Whether any may have changed since the last time."""
        changed = False
        while True:
            try:
                self._events.recv(1)  # that there is one says enough
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # too many at a time: the kernel has dropped some
                    raise
            changed = True

    def networks(self) -> dict[Network, str]:
        """Return those there are; OSError if netlink fails.

        The loopback's are nobody's: it has a class of its own.
        """
        try:
            return self._read()
        except NetlinkError as error:
            raise OSError(error.code, f"rtnetlink: {os.strerror(error.code)}") from None

    def _read(self) -> dict[Network, str]:
        found: dict[Network, str] = {}
        if SUBNET in self._names:
            for route in self._dumps.get_routes(table=_MAIN_TABLE):
                if route["type"] == _UNICAST and route.get("RTA_DST") and not _leads_on(route):
                    found[ip_network(f"{route.get('RTA_DST')}/{route['dst_len']}")] = SUBNET
        if HOST in self._names:
            for each in self._dumps.get_addr():
                address = ip_address(each.get("IFA_LOCAL") or each.get("IFA_ADDRESS"))
                if not address.is_loopback:
                    found[ip_network(address)] = HOST
        return found

    def close(self) -> None:
        """Let go of the sockets."""
        self._events.close()
        self._dumps.close()


def _leads_on(route: Any) -> bool:
    """Whether a route leads beyond the link, or does not say (net.ipv4.nexthop_compat_mode)."""
    beyond = ("RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH")
    return not route.get("RTA_OIF") or any(route.get(name) for name in beyond)
