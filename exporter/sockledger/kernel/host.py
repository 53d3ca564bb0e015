"""Whether we are where the host is, which from inside a container nothing but the kernel tells."""

from contextlib import closing
from pathlib import Path

from sockledger.errors import UserError
from sockledger.kernel.libbpf import LoadError
from sockledger.kernel.objects import advice, open_object

NETWORK_NAMESPACE = Path("/proc/self/ns/net")


def in_host_network() -> bool:
    """Whether this is the host's network namespace; UserError if the kernel refuses to tell."""
    with closing(open_object()) as teller:
        teller.choose("sl_host_network")
        for unused in teller.maps.values():
            unused.leave_out()
        try:
            teller.load()
            return teller.programs["sl_host_network"].run() == NETWORK_NAMESPACE.stat().st_ino
        except (LoadError, OSError) as error:
            raise UserError(f"the kernel refuses to tell where we are: {error}: {advice(error)}") from None
