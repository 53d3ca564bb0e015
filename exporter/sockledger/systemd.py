"""What the daemon tells systemd that started it: ready, reloading, stopping, and that it is not stuck.

The protocol is one datagram of lines to a socket that the environment names (sd_notify(3)), so there is no
library for it here.
"""

import logging
import os
from socket import AF_UNIX, SOCK_DGRAM, socket

logger = logging.getLogger(__name__)

_SEND_SECONDS = 1.0  # a manager that does not read must not hold up the daemon


def notify(*lines: str) -> None:
    """Tell systemd *lines*, such as ``READY=1``; does nothing where it did not ask for that."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # in the abstract namespace
    try:
        with socket(AF_UNIX, SOCK_DGRAM) as sending:
            sending.settimeout(_SEND_SECONDS)
            sending.connect(address)
            sending.send("\n".join(lines).encode())
    except OSError as error:
        logger.warning("systemd is not told", extra={"what": lines[0], "error": str(error)})


def watchdog_seconds() -> float | None:
    """Return how long systemd waits for ``WATCHDOG=1`` before it restarts us; None: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for the process that started us
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
