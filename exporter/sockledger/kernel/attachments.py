"""Which hot paths are attached on this machine, whichever daemon's: the pins in one bpffs do not tell."""

import struct

from sockledger.errors import UserError
from sockledger.kernel.libbpf import LoadError
from sockledger.kernel.links import HOT_PATH
from sockledger.kernel.objects import advice, program_alone

_ATTACHMENT = struct.Struct("=QQ16s")  # struct attachment in bpf/attachments.h


def hot_paths(cgroup_id: int) -> list[int]:
    """Return the ids of the links that attach a hot path to this cgroup; UserError if the kernel refuses."""
    try:
        with program_alone("sl_attachments") as lister:
            link = lister.attach()
            try:
                found = _ATTACHMENT.iter_unpack(link.run_iterator())
            finally:
                link.destroy()
    except (LoadError, OSError) as error:
        raise UserError(f"the kernel refuses to list BPF links: {error}: {advice(error)}") from None
    name = HOT_PATH.encode()
    return [link_id for at, link_id, program in found if at == cgroup_id and program.rstrip(b"\0") == name]
