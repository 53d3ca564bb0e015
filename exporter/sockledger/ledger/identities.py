"""What cgroups are shown as. Who is named otherwise leaves what he has counted to the name that he had.

So no counter falls, and none begins with what another has shown already, when names change. The one in force
is in a map: what a daemon has shown is known to the next one, which may have other rules. Gauges go with the
living cgroup.
"""

import logging
from collections.abc import Callable, Mapping

from sockledger.kernel.noted import ENDED, CgroupLabels, NotedCgroup
from sockledger.workloads.names import Workload

logger = logging.getLogger(__name__)

# Has the counters of cgroups stay with workloads; returns for which there is no room.
Leave = Callable[[Mapping[int, Workload]], set[int]]


class Identities:
    """The names in force, by cgroup id."""

    def __init__(self, labels: CgroupLabels, root_id: int) -> None:
        self._labels = labels
        self._root = {root_id}  # is not noted, and has a name all the same
        self._known = {number: Workload._make(each) for number, each in labels.all().items()}
        self._unwritten: set[int] = set()
        self._stuck = False

    def __len__(self) -> int:
        return len(self._known)

    def of(self, cgroup_id: int) -> Workload | None:
        """Return what a cgroup is shown as, if that is known."""
        return self._known.get(cgroup_id)

    def settle(
        self, named: Mapping[int, Workload], noted: Mapping[int, NotedCgroup], leave: Leave
    ) -> tuple[dict[int, Workload], bool]:
        """Return what each of the cgroups *named* is shown as, and whether any has left its counters.

        That is their name, but where there is no room to leave what they have counted: then the one before.
        Who is removed keeps that in any case: some of what he counts may be there already. And so does who is
        not *named* now.
        """
        for number in self._known.keys() - noted.keys() - self._root:
            self._labels.forget(number)
            self._unwritten.discard(number)
            del self._known[number]
        kept = {
            number: self._known[number]
            for number in self._known.keys() & noted.keys()
            if noted[number].removed != ENDED and (noted[number].removed or number not in named)
        }
        named = {**named, **kept}
        lasting = named.keys() & (noted.keys() | self._root)
        new = {number for number in lasting if self._known.get(number) != named[number]}
        renamed = {number: self._known[number] for number in new & self._known.keys()}
        staying = leave(renamed) if renamed else set()
        for number in new - staying:
            self._known[number] = named[number]
            self._unwritten.add(number)
        self._write()
        return {**named, **{number: renamed[number] for number in staying}}, bool(renamed.keys() - staying)

    def _write(self) -> None:
        """Write down names before they are shown; without memory for it another time."""
        try:
            for number in list(self._unwritten):
                self._labels.note(number, self._known[number])
                self._unwritten.discard(number)
        except OSError as error:
            if not self._stuck:
                logger.warning(
                    "not noted what all cgroups are shown as: after a restart with other rules, some may be "
                    "shown twice",
                    extra={"error": str(error)},
                )
        self._stuck = bool(self._unwritten)
