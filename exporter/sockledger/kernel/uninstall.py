"""The end of all counts: nothing stays pinned, and so nothing attached."""

from pathlib import Path

from sockledger.errors import UserError
from sockledger.kernel.attachments import hot_paths
from sockledger.kernel.cgroups import find_root
from sockledger.kernel.filesystem import is_bpffs
from sockledger.kernel.lock import Lock
from sockledger.kernel.pins import Pins
from sockledger.kernel.tag_pin import TagPin


def uninstall(bpffs: Path, cgroupfs: Path | None) -> int:
    """Remove all pins, and return how many they were.

    UserError while a daemon runs, and if nothing is pinned but somebody counts all the same.
    """
    if not is_bpffs(bpffs):
        raise UserError(f"{bpffs}: not a BPF file system: name the one that was used with --path.bpffs")
    lock = Lock(bpffs)
    if not lock.try_acquire():
        raise UserError(f"{bpffs}: a daemon runs with what is pinned there: stop it first")
    try:
        removed = Pins(bpffs).remove()
        if not removed and hot_paths((root := find_root(cgroupfs)).id):
            raise UserError(
                f"nothing is pinned in {bpffs}, but a daemon's programs are attached at {root.path}: stop "
                "the daemon and try again, or name the BPF file system that it was given with --path.bpffs"
            )
        return removed + TagPin(bpffs).remove()
    finally:
        lock.release()
