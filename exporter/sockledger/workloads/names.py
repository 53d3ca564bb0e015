"""From a cgroup's id to the workload that people know."""

import os
from collections.abc import Collection
from typing import NamedTuple

from sockledger.kernel.cgroups import CgroupRoot


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
UNKNOWN = Workload(cgroup="unknown")  # a cgroup that was gone before we looked


def label_value(path: str) -> str:
    r"""Return a cgroup's path as it is shown: what is not UTF-8 as ``\xNN``, so that two names stay two."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class Names:
    """Workloads by cgroup id. A cgroup that is gone keeps the name it had."""

    def __init__(self, root: CgroupRoot) -> None:
        self._root = root
        self._known: dict[int, Workload] = {}
        self._may_open = True  # open_by_handle_at needs CAP_DAC_READ_SEARCH

    def resolve(self, cgroup_ids: Collection[int]) -> dict[int, Workload]:
        """Return the workloads of *cgroup_ids*, and forget all others."""
        new = [cgroup_id for cgroup_id in cgroup_ids if cgroup_id not in self._known]
        self._known = {
            cgroup_id: self._known[cgroup_id] for cgroup_id in cgroup_ids if cgroup_id in self._known
        }
        if new:
            paths = self._paths(new)
            for cgroup_id in new:
                path = paths.get(cgroup_id)
                self._known[cgroup_id] = UNKNOWN if path is None else Workload(cgroup=label_value(path))
        return self._known

    def _paths(self, cgroup_ids: Collection[int]) -> dict[int, str | None]:
        if self._may_open:
            try:
                return {cgroup_id: self._root.path_of(cgroup_id) for cgroup_id in cgroup_ids}
            except PermissionError:
                self._may_open = False
        return dict(self._root.walk())
