"""From a cgroup's id to the workload that people know."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.noted import ENDED, NotedCgroup, boottime
from sockledger.workloads.engines import EngineNames
from sockledger.workloads.naming import OVERFLOW, UNKNOWN, Missing, Naming, Workload
from sockledger.workloads.paths import cut
from sockledger.workloads.pod_watch import PodWatch
from sockledger.workloads.pods import PodNames

logger = logging.getLogger(__name__)

HIERARCHY = 1  # the id of the hierarchy's root, and of the kernel's own packets
WAIT_SECONDS = 5.0  # for the name of a new container
_MOST_TOLD = 1000


class CgroupNotes(Protocol):
    """Where cgroups are noted, as `kernel.noted.NotedCgroups`: for so many there is *room*."""

    room: int

    def note(self, cgroup_id: int, path: str, gone: int = 0) -> bool:
        """Note a cgroup that is not there, *gone* since then; return whether there is room for it."""


class _Name(NamedTuple):
    """What a path is called. Unless that is *final* a better one may come, and soon if it is *awaited*."""

    workload: Workload
    final: bool = True
    awaited: bool = False
    missing: Missing = Missing()  # may be what it was


class _Known(NamedTuple):
    """What is known of a path; no name: it is waited for."""

    name: _Name | None
    since: float  # when it was looked at first


class Names:
    """Workloads by cgroup id, as noted in the kernel. A cgroup keeps the path that it had first."""

    def __init__(
        self,
        root: CgroupRoot,
        notes: CgroupNotes,
        naming: Naming,
        pods: PodNames | None = None,
        engines: EngineNames | None = None,
        watch: PodWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._notes = notes
        self._naming = naming
        self._pods = pods or PodNames()
        self._engines = engines or EngineNames()
        self._watch = watch or PodWatch()
        self._clock = clock
        self._paths: dict[int, str] = {}
        self._known: dict[str, _Known] = {}  # by path: each is looked at once, if its name is final
        self._new_names = False
        self._shortened: set[tuple[str, str]] = set()  # pods that were told of

    def resolve(
        self, cgroup_ids: Collection[int], noted: Mapping[int, NotedCgroup]
    ) -> tuple[Mapping[int, Workload], Mapping[int, Missing]]:
        """Return the workloads of *cgroup_ids* and of all that are *noted*, and forget all others.

        And what is missing of some, as somebody who knows it does not answer.
        What is not noted, as there was no room, is looked for in the hierarchy. What a passing fault keeps
        from being named is left out: under another name a counter would fall. So is, for a few seconds, a new
        container whose name has not come.
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
        self._look_at(set(paths.values()))
        names = {number: name for number, path in paths.items() if (name := self._known[path].name)}
        missing = {number: name.missing for number, name in names.items() if name.missing}
        return {number: name.workload for number, name in names.items()}, missing

    def look(self) -> None:
        """Look whether names have come; they may be gone at the next `resolve`."""
        self._new_names |= any([self._pods.look(), self._engines.look(), self._watch.look()])

    def sources_up(self) -> dict[str, bool]:
        """Return whether each that is configured to be asked for names answers."""
        kubernetes = {"kubernetes": self._watch.answers} if self._watch.on else {}
        return self._engines.up() | kubernetes

    def of_path(self, path: str) -> Workload:
        """Return what a cgroup of this path is called, or might be."""
        return self._name(path).workload

    def _look_at(self, paths: Collection[str]) -> None:
        """Name *paths*, and forget all others."""
        self.look()
        new_names, self._new_names, now = self._new_names, False, self._clock()
        known: dict[str, _Known] = {}
        for path in paths:
            each = self._known.get(path) or _Known(None, now)
            if not each.name or (new_names and not each.name.final):
                name = self._name(path)
                # who is shown already is so until a better name comes, or none does
                waiting = name.awaited and now - each.since < WAIT_SECONDS
                self._new_names |= waiting
                each = each._replace(name=each.name if waiting else name)
            known[path] = each
        self._known = known

    def _name(self, path: str) -> _Name:
        """Return what a path is called, as far as it is known."""
        if not path:
            return _Name(UNKNOWN)
        if not self._naming.tells_apart(path):
            return _Name(OVERFLOW)
        path = cut(path, self._naming.level)
        workload, identity = self._naming.by_path(path)
        final, awaited = True, False
        missing: set[str] = set()
        labels: Collection[str] = ()
        if uid := identity.pod_uid:
            found, told = self._pods.find(uid, identity.container_id), self._watch.find(uid)
            final = found is not None and not self._watch.on  # labels may change
            unheard = self._watch.on and not told
            awaited = (not found and self._pods.present) or (unheard and self._watch.answers)
            if unheard:
                labels = self._watch.chosen
            if told:
                workload = workload._replace(namespace=told.namespace, pod=told.name, more=told.more)
            if best := found or self._pods.guess(uid):
                container = best.name or workload.container
                workload = workload._replace(namespace=best.namespace, pod=best.pod, container=container)
            else:  # it may have had links
                if unheard or (self._pods.known and not told):
                    missing |= {"namespace", "pod"}
                if self._pods.known and identity.container_id:
                    missing.add("container")
        elif identity.container_id and self._engines.know(identity.runtime):
            name = self._engines.find(identity.runtime, identity.container_id)
            final, awaited = name is not None, name is None
            if awaited:
                missing.add("container")
            workload = workload._replace(container=name or workload.container)
        shown = self._naming.shown(workload, path)
        if shown.more != workload.more:
            self._tell_of_length(workload)
        return _Name(shown, final, awaited, Missing(missing - self._naming.hidden, labels))

    def _tell_of_length(self, workload: Workload) -> None:
        pod = workload.namespace, workload.pod
        if pod in self._shortened:
            return
        if len(self._shortened) >= _MOST_TOLD:
            self._shortened.clear()
        self._shortened.add(pod)
        logger.warning(
            "a pod's labels do not fit beside its names: the longest are left out",
            extra={"namespace": workload.namespace, "pod": workload.pod},
        )

    def _note(self, cgroup_id: int, *, alive: bool) -> None:
        """Note what a cgroup is called, so that it stays so for the next daemon, too."""
        path = self._paths[cgroup_id]
        if alive:
            self._notes.note(cgroup_id, path)
        else:
            now = boottime()
            # a path that is too long is known to this daemon alone
            self._notes.note(cgroup_id, path, now) or self._notes.note(cgroup_id, "", now)
