"""From a cgroup's id to the workload that people know."""

import logging
import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

from sockledger.kernel.cgroups import CgroupRoot

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
UNKNOWN = Workload(cgroup="unknown")  # a cgroup that was gone before we looked


def label_value(path: str) -> str:
    r"""Return a cgroup's path as it is shown: what is not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class Names:
    """Workloads by cgroup id. A cgroup that is gone keeps the name it had."""

    def __init__(self, root: CgroupRoot) -> None:
        self._root = root
        self._known: dict[int, Workload] = {}
        self._may_open = True  # open_by_handle_at needs CAP_DAC_READ_SEARCH

    def resolve(self, cgroup_ids: Collection[int]) -> dict[int, Workload]:
        """Return the workloads of *cgroup_ids*, and forget all others.

        What a passing fault keeps from being named is left out: under a stopgap name a counter would fall.
        """
        new = [cgroup_id for cgroup_id in cgroup_ids if cgroup_id not in self._known]
        self._known = {
            cgroup_id: self._known[cgroup_id] for cgroup_id in cgroup_ids if cgroup_id in self._known
        }
        try:
            for cgroup_id, path in self._paths(new):
                self._known[cgroup_id] = UNKNOWN if path is None else Workload(cgroup=label_value(path))
        except OSError as error:  # too many open files, say: another time
            logger.warning("cgroups not named", extra={"error": str(error)})
        return self._known

    def _paths(self, cgroup_ids: Collection[int]) -> Iterator[tuple[int, str | None]]:
        """Yield each cgroup's path, None if it is gone."""
        try:
            for cgroup_id in cgroup_ids if self._may_open else ():
                yield cgroup_id, self._root.path_of(cgroup_id)
        except PermissionError:
            self._may_open = False
        if cgroup_ids and not self._may_open:
            walked = dict(self._root.walk())
            for cgroup_id in cgroup_ids:
                yield cgroup_id, walked.get(cgroup_id)
