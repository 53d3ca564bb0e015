"""From a cgroup's id to the workload that people know."""

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.noted import ENDED, NotedCgroup, boottime
from sockledger.workloads.paths import identify

logger = logging.getLogger(__name__)


class Workload(NamedTuple):
    """The five labels of every workload's series, empty where they do not apply.

    An empty label, given by us, keeps Prometheus from filling in our own pod's.
    """

    namespace: str = ""
    pod: str = ""
    container: str = ""
    unit: str = ""
    cgroup: str = ""


OVERFLOW = Workload(cgroup="other")  # totals that found their map full
UNKNOWN = Workload(cgroup="unknown")  # a cgroup that was gone before we looked, and was not noted

HIERARCHY = 1  # the id of the hierarchy's root, and of the kernel's own packets
_ID_CHARACTERS = 12  # of a container's id, as docker ps shows it


def label_value(path: str) -> str:
    r"""Return a cgroup's path, or a part of it, as it is shown: what is not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class CgroupNotes(Protocol):
    """Where cgroups are noted, as `kernel.noted.NotedCgroups`: for so many there is *room*."""

    room: int

    def note(self, cgroup_id: int, path: str, gone: int = 0) -> bool:
        """Note a cgroup that is not there, *gone* since then; return whether there is room for it."""


class Names:
    """Workloads by cgroup id, as noted in the kernel. A cgroup keeps the name that it had first."""

    def __init__(self, root: CgroupRoot, notes: CgroupNotes, rules: Sequence[re.Pattern[str]] = ()) -> None:
        """*rules* are users' own, as `workload_of` takes them."""
        self._root = root
        self._notes = notes
        self._rules = rules
        self._paths: dict[int, str] = {}
        self._workloads: dict[str, Workload] = {}  # by path: each is looked at once

    def resolve(
        self, cgroup_ids: Collection[int], noted: Mapping[int, NotedCgroup]
    ) -> Mapping[int, Workload]:
        """Return the workloads of *cgroup_ids* and of all that are *noted*, and forget all others.

        What is not noted, as there was no room, is looked for in the hierarchy. What a passing fault keeps
        from being named is left out: under a stopgap name a counter would fall.
        """
        before = self._paths
        paths = {
            cgroup_id: before.get(cgroup_id, each.path)
            for cgroup_id, each in noted.items()
            if each.removed != ENDED
        }
        others = [cgroup_id for cgroup_id in cgroup_ids if cgroup_id not in noted]
        paths |= {cgroup_id: before[cgroup_id] for cgroup_id in others if cgroup_id in before}
        self._paths = paths
        to_note = set(others) - {HIERARCHY, self._root.id} if len(noted) < self._notes.room else set()
        try:
            asked = [each for each in others if each in to_note or each not in paths]
            for cgroup_id, path in self._root.paths_of(asked):
                paths.setdefault(cgroup_id, path or "")
                if cgroup_id in to_note:
                    self._note(cgroup_id, alive=path is not None or not self._root.sees_all)
        except OSError as error:  # too many open files, say: another time
            logger.warning("cgroups not named", extra={"error": str(error)})
        known = self._workloads
        self._workloads = {path: known.get(path) or self.of_path(path) for path in set(paths.values())}
        return {cgroup_id: self._workloads[path] for cgroup_id, path in paths.items()}

    def of_path(self, path: str) -> Workload:
        """Return what a cgroup of this path is called."""
        return workload_of(path, self._rules)

    def _note(self, cgroup_id: int, *, alive: bool) -> None:
        """Note what a cgroup is called, so that it stays so for the next daemon, too."""
        path = self._paths[cgroup_id]
        if alive:
            self._notes.note(cgroup_id, path)
        else:
            now = boottime()
            # a path that is too long is known to this daemon alone
            self._notes.note(cgroup_id, path, now) or self._notes.note(cgroup_id, "", now)


def workload_of(path: str, rules: Sequence[re.Pattern[str]] = ()) -> Workload:
    """Return the workload of a cgroup, by its path below the root; empty: nobody knows it.

    The first of *rules* that is found in the path names it by its groups, which are called as labels. Where
    nothing better names it, the path does.
    """
    if not path:
        return UNKNOWN
    for rule in rules:
        if match := rule.search(path):
            workload = Workload(**{name: text or "" for name, text in match.groupdict().items()})
            break
    else:
        found = identify(path)
        container = found.container or found.container_id[:_ID_CHARACTERS]
        workload = Workload(pod=found.pod_uid, container=container, unit=found.unit)
    return Workload(*map(label_value, workload if any(workload) else Workload(cgroup=path)))
