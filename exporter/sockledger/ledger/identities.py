"""What cgroups are shown as. Who is named otherwise leaves what he has counted to the name that he had.

So no counter falls, and none begins with what another has shown already, when names change. The one in force
is in a map: what a daemon has shown is known to the next one, which may have other rules. Gauges go with the
living cgroup.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Set

from sockledger.kernel.noted import ENDED, CgroupLabels, NotedCgroup
from sockledger.workloads.naming import OVERFLOW, UNKNOWN, Missing, Workload

logger = logging.getLogger(__name__)

# Not told apart, so not among those that may be too many.
_APART = {OVERFLOW, UNKNOWN}

# Has the counters of cgroups stay with workloads; returns for which there is no room.
Leave = Callable[[Mapping[int, Workload]], set[int]]


class Identities:
    """The names in force, by cgroup id, of at most so many workloads that are told apart."""

    def __init__(self, labels: CgroupLabels, root_id: int, most: int) -> None:
        self._labels = labels
        self._root = {root_id}  # is not noted, and has a name all the same
        self._most = most
        self._noted = {number: Workload(*each) for number, each in labels.all().items()}
        self._known = dict(self._noted)  # those too for which there is no room in the map
        self._stuck = False
        self._shown: set[Workload] = set()  # that are told apart, and count
        self.over_limit = 0  # workloads that count as `OVERFLOW`

    def __len__(self) -> int:
        return len(self._noted)

    def of(self, cgroup_id: int) -> Workload | None:
        """Return what a cgroup is shown as, if that is known."""
        return self._known.get(cgroup_id)

    def settle(
        self,
        named: Mapping[int, Workload],
        missing: Mapping[int, Missing],
        noted: Mapping[int, NotedCgroup],
        counting: Collection[int],
        leave: Leave,
    ) -> tuple[dict[int, Workload], bool]:
        """Return what each of the cgroups *named* is shown as, and whether any has left its counters.

        That is their name, with what is *missing* of it as it was; but where there is no room to leave what
        they have counted, the one before. Who is removed keeps that in any case: some of what he counts may
        be there already. And so does who is not *named* now. Of those that are *counting*, new ones beyond
        the limit are all one.
        """
        lasting = noted.keys() | self._root
        for number in self._noted.keys() - lasting:
            self._labels.forget(number)
            del self._noted[number]
        for number in self._known.keys() - lasting - named.keys():
            del self._known[number]
        kept = {
            number: self._known[number]
            for number in self._known.keys() & noted.keys()
            if noted[number].removed != ENDED and (noted[number].removed or number not in named)
        }
        completed = {
            number: missing[number].completed(named[number], self._known[number])
            for number in missing.keys() & self._known.keys()
        }
        # who does not count any more, or yet, as a unit that is started again, keeps the place of his name
        living = {
            number
            for number, each in noted.items()
            if not each.removed and self._known.get(number) in self._shown
        }
        named = self._limited({**named, **completed, **kept}, living.union(counting), kept.keys())
        new = {number for number in named if self._known.get(number) != named[number]}
        renamed = {number: self._known[number] for number in new & self._known.keys()}
        staying = leave(renamed) if renamed else set()
        self._known |= {number: named[number] for number in new - staying}
        self._write(lasting)
        return {**named, **{number: renamed[number] for number in staying}}, bool(renamed.keys() - staying)

    def _limited(
        self, named: dict[int, Workload], counting: Collection[int], kept: Set[int]
    ) -> dict[int, Workload]:
        """Return the names with those that are too many replaced: the last that came to count.

        And those of who does not count yet, so that he has nothing to leave when he does.
        """
        shown = named.keys() & counting
        wanted = {named[number] for number in shown} - _APART
        self.over_limit = max(0, len(wanted) - self._most)
        if len(wanted) >= self._most:
            before, wanted = self._shown, {named[number] for number in shown & kept} - _APART

            def rank(number: int) -> tuple[bool, bool, bool, int]:
                workload, known = named[number], self._known.get(number)
                # of who was shown before this daemon only the name is known
                is_new = known is None or known in _APART
                return before.isdisjoint((workload, known)), is_new, known != workload, number

            for number in sorted(shown - kept, key=rank):
                if named[number] not in _APART and len(wanted) < self._most:
                    wanted.add(named[number])
            told_apart = wanted | _APART
            for number in named.keys() - kept:
                if named[number] not in told_apart:
                    named[number] = OVERFLOW
        self._shown = wanted
        return named

    def _write(self, lasting: Collection[int]) -> None:
        """Write down names before they are shown; without memory for it another time."""
        try:
            for number in self._known.keys() & lasting:
                if self._noted.get(number) != (each := self._known[number]):
                    self._labels.note(number, each)
                    self._noted[number] = each
            self._stuck = False
        except OSError as error:
            if not self._stuck:
                logger.warning(
                    "not noted what all cgroups are shown as: after a restart with other settings, some "
                    "may be shown twice",
                    extra={"error": str(error)},
                )
            self._stuck = True
