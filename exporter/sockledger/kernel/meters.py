"""Meters: attach points below the root, chosen by globs and followed as cgroups come and go."""

import glob
import logging
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from sockledger.errors import UserError
from sockledger.kernel.cgroups import CgroupRoot, is_cgroup
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.sums import Traffic

logger = logging.getLogger(__name__)

# File descriptors: half of all are for meters, but for those that the daemon has open anyway.
_DESCRIPTORS = 2
_RESERVED = 96


class Meters:
    """The meters that *globs* (of cgroup paths) ask for. `follow` brings them up to date."""

    def __init__(self, globs: Sequence[str], root: CgroupRoot, datapath: DataPath) -> None:
        self._globs = globs
        self._root = root
        self._datapath = datapath
        self._paths: dict[int, str] = {}  # of attached meters, by cgroup id
        self._refused: set[int] = set()  # tried again at each flush, told of once
        self._crowded = False
        self._first = True

    def follow(self) -> None:
        """Attach to cgroups that have come, let go of those that are gone. A refusal is logged once."""
        found = self._matching()
        for cgroup_id in self._paths.keys() - found.keys():
            # a scan passes over a folder that it cannot open, for want of descriptors, say
            if self._is_there(cgroup_id, self._paths[cgroup_id]):
                found[cgroup_id] = self._paths[cgroup_id]
                continue
            self._datapath.remove_meter(cgroup_id)
            del self._paths[cgroup_id]
        self._refused &= found.keys()
        new = [cgroup_id for cgroup_id in found if cgroup_id not in self._paths]
        new.sort(key=self._refused.__contains__)  # those last
        most = max(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - _RESERVED) // _DESCRIPTORS
        room = most - len(self._paths)
        if len(new) > room and not self._crowded:
            logger.warning(
                "not all meters are attached, each takes two descriptors: raise the limit (LimitNOFILE=)",
                extra={"wanted": len(found), "attached": most},
            )
        self._crowded = len(new) > room
        for cgroup_id in new[: max(0, room)]:
            self._add(cgroup_id, found[cgroup_id])
        if self._first:
            self._datapath.links.remove_others()
            self._first = False

    def read(self) -> Iterator[tuple[int, str, Traffic]]:
        """Yield what each meter has counted, by cgroup id and path, without those that are gone meanwhile."""
        for cgroup_id, path in self._paths.items():
            count = self._datapath.control(cgroup_id)
            if count is not None:
                yield cgroup_id, path, count

    def _matching(self) -> dict[int, str]:
        found = {}
        for pattern in self._globs:
            names = glob.iglob(  # noqa: PTH207 - pathlib's knows no root_dir
                pattern.strip("/") + "/", root_dir=self._root.path, recursive=True, include_hidden=True
            )
            for name in names:
                path = "/" + name.strip("/")
                try:
                    cgroup_id = (self._root.path / name).stat().st_ino
                except OSError:
                    continue  # gone meanwhile
                if path != "/":
                    found[cgroup_id] = path
        return found

    def _is_there(self, cgroup_id: int, path: str) -> bool:
        try:
            return is_cgroup(Path(f"{self._root.path}{path}"), cgroup_id)
        except OSError:  # the folder is closed to us
            return self._datapath.control(cgroup_id) is not None

    def _add(self, cgroup_id: int, path: str) -> None:
        try:
            self._datapath.add_meter(cgroup_id, Path(f"{self._root.path}{path}"))
            self._paths[cgroup_id] = path
        except FileNotFoundError:
            pass  # gone meanwhile
        except (UserError, OSError) as error:
            if cgroup_id not in self._refused:
                logger.warning("meter not attached", extra={"error": str(error)})
            self._refused.add(cgroup_id)
