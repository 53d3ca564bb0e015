"""Whether we are where the host is, which from inside a container nothing but the kernel tells."""

from pathlib import Path

from sockledger.errors import UserError
from sockledger.kernel.libbpf import LoadError
from sockledger.kernel.objects import advice, program_alone

NETWORK_NAMESPACE = Path("/proc/self/ns/net")


def in_host_network() -> bool:
    """Whether this is the host's network namespace; UserError if the kernel refuses to tell."""
    try:
        with program_alone("sl_host_network") as teller:
            return teller.run() == NETWORK_NAMESPACE.stat().st_ino
    except (LoadError, OSError) as error:
        raise UserError(f"the kernel refuses to tell where we are: {error}: {advice(error)}") from None
