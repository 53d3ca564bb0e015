"""The ledger: flushes the kernel half and holds what the last flush found. User space keeps no sums."""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.meters import Meters
from sockledger.kernel.noted import boottime
from sockledger.kernel.sums import PLACES, RETIRED, TotalsKey, Traffic
from sockledger.ledger.births import Births, Owner
from sockledger.ledger.identities import Identities
from sockledger.ledger.ports import PORTS, Ports
from sockledger.ledger.reconciliation import NO_TRAFFIC, Reconciliation
from sockledger.ledger.retirement import Key, Retirement, Tables
from sockledger.ledger.splits import SPLITS
from sockledger.workloads.names import Names
from sockledger.workloads.naming import OVERFLOW, Naming, Workload, label_value

logger = logging.getLogger(__name__)

MAX_AGE_SECONDS = 1.0  # a scrape flushes anew what is older
_WORD = (1 << 64) - 1
OVERFLOW_ID = 0  # no cgroup's: what found the sums of its own full

# By reason of a lost update: said once, when it first occurs.
WARNINGS = {
    "totals_full": "the totals are full: what is new counts as cgroup other, raise limits.cgroups",
    "connections_full": "too many TCP sockets are open: not all are followed, raise limits.connections",
    "connections_busy": "memory was short for a TCP socket, or a flush was at its last connection: "
    "not all are followed",
    "udp_sockets_full": "too many UDP sockets drop datagrams, or memory is short: drops are missing",
    "end_unseen": "a TCP socket was gone without a sign: its last figures are missing",
    "task_storage": "memory was short for what a task has sent and received: it is counted, only slower",
    "tag_full": "there was no room, or no memory, for a tag: it counts as other, raise limits.cgroups",
    "name_full": "there was no room, or no memory, for a cgroup's name, or its path is longer than 414 "
    "bytes: it may count as unknown, raise limits.cgroups, or allow the daemon more memory",
}


class Account(NamedTuple):
    """Whose traffic, and of what kind: what the series of the traffic metrics are told apart by."""

    workload: Workload
    protocol: str
    family: str


KINDS = Account._fields[1:]


class AttachPoint(NamedTuple):
    """Where all packets of a cgroup and those below it are counted; seldom several that are shown alike.

    A cgroup that is made again under its path is another.
    """

    path: str
    cgroup_ids: tuple[str, ...] = ()  # none: the root


ROOT = AttachPoint("/")

# Sums in the order of the struct that they come from: `DataPath.sums[…].fields`.
Record = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Books:
    """What one flush found."""

    workloads: frozenset[Workload]  # that are shown, if they have any sums
    accounts: dict[Account, Traffic]
    peers: dict[tuple[Workload, str], Traffic]  # by class, of what has one
    sums: dict[str, dict[tuple[Workload, Record], Record]]  # by map, by workload and the rest of its key
    node: Mapping[str, Mapping[str, int]]  # by class of peers, by the members of struct node_totals
    attach_points: dict[AttachPoint, Traffic]
    lost_updates: dict[str, int]  # by reason
    entries: dict[str, int]  # in use, by map
    over_limit: int  # workloads that are not told apart, as there are too many
    seconds: float  # how long the flush took
    began: int  # CLOCK_BOOTTIME in nanoseconds


class Ledger:
    """All of the counting of one daemon. Not for more than one thread."""

    def __init__(
        self,
        datapath: DataPath,
        root: CgroupRoot,
        meters: Meters,
        *,
        gone: float = 600.0,
        names: Names | None = None,
        hidden: Collection[str] = (),
        most_workloads: int = sys.maxsize,
        births: Births | None = None,
        clock: Callable[[], int] = boottime,
    ) -> None:
        """*gone*: for so many seconds a cgroup that is gone is shown on, by *clock*, in nanoseconds.

        Of workloads, as *names* has them, there are at most *most_workloads*; others count as `OVERFLOW`.
        Of `KINDS` those that are *hidden* are not shown.
        *births* are told whose sums have ended, and know what scrapers have seen.
        """
        self.datapath = datapath
        self.hidden = frozenset(hidden)
        self._births = births or Births({}, clock=clock)
        have_seen = self._births.scrapers.have_seen
        self.ports = Ports(datapath, gone, self._births, clock)
        self._ended = True  # of what the last daemon ended it may not have told
        self._clock = clock
        self.reconciliation = Reconciliation(*datapath.reconciliation())
        self._root = root
        self._meters = meters
        self._names = names or Names(root, datapath.cgroups, Naming())
        self._identities = Identities(datapath.cgroup_labels, root.id, most_workloads)
        self._retirement = Retirement(
            datapath,
            gone,
            have_seen,
            self._births.end_all,
            clock,
            self._identities.of,
            self._end_name,
        )
        self._flushed = float("-inf")
        self._detached: set[str] = set()
        self._lost = datapath.lost_before
        self._warned: set[str] = set()
        self.books = Books(frozenset(), {}, {}, {}, {}, {}, {}, {}, 0, 0.0, 0)

    def name_sources_up(self) -> Mapping[str, bool]:
        """Return whether each that is configured to be asked for names answers."""
        return self._names.sources_up()

    def look_for_names(self) -> None:
        """See what containers are called that may be gone at the next flush."""
        self._names.look()

    def refresh(self) -> None:
        """Flush, unless the last flush is recent enough for a scrape."""
        if time.monotonic() - self._flushed > MAX_AGE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Drain all sockets, read all totals, and reconcile them with the root's own count."""
        start, began = time.monotonic(), self._clock()
        self._meters.follow()
        before = self.datapath.control(self._root.id)
        sockets = self.datapath.flush()
        totals = dict(self.datapath.totals())
        overflow = dict(self.datapath.overflow())
        after = self.datapath.control(self._root.id)
        everything = sum_up([*totals.values(), *overflow.values()])
        # without the cgroup that stands for the root nothing is left to compare with
        found = self.reconciliation
        if before and after and found.compare(before, everything, after):
            self.datapath.keep_reconciliation(found.unattributed, found.overcounted)
            logger.error(
                "the books do not balance",
                extra={"before": before, "totals": everything, "after": after},
            )
        attach_points = {ROOT: after} if after else {}
        metered: defaultdict[str, list[tuple[str, Traffic]]] = defaultdict(list)
        for cgroup_id, path, traffic in self._meters.read():
            # seldom the same for two: a byte \xff is shown as the text \\xff is
            metered[label_value(path)].append((str(cgroup_id), traffic))
        for path, meters in metered.items():
            point = AttachPoint(path, tuple(number for number, _ in meters))
            attach_points[point] = sum_up([traffic for _, traffic in meters])
        lost = self.datapath.lost_updates()
        for reason, text in WARNINGS.items():
            if lost[reason] > self._lost[reason] and reason not in self._warned:
                logger.warning(text)
                self._warned.add(reason)
        for name in (detached := self.datapath.detached()) - self._detached:
            logger.error("a program has been detached: counts are missing", extra={"program": name})
        self._detached = detached
        self._flushed = time.monotonic()
        sums = self._sums()
        places = self.datapath.places()
        noted = self.datapath.cgroups.all()  # after these: all that are new have been noted
        ids = {key.cgroup_id for key in totals}.union(*({key[0] for key in rows} for rows in sums.values()))
        asked = {each for each in ids if 0 < each < RETIRED}
        tables = self._tables(totals, sums)
        counting = _counting(totals, sums)
        idle = {number for number in asked - counting if number in noted and noted[number].removed}
        named, have_left = self._identities.settle(
            *self._names.resolve(asked, noted),
            noted,
            asked - idle,
            lambda renamed: self._retirement.leave(renamed, tables),
        )
        if have_left:
            totals, sums = dict(self.datapath.totals()), self._sums()
            counting = _counting(totals, sums)
        visible = self._retirement.shown(named, noted, counting)
        if self._retirement.begin_anew(noted, visible, self._tables(totals, sums), self._name_of):
            totals, sums = dict(self.datapath.totals()), self._sums()
        workloads = {**visible, OVERFLOW_ID: OVERFLOW}
        if PORTS in sums:
            removed = {number for number, each in noted.items() if each.removed}
            self.ports.advance(began, sums, lost["totals_busy"], workloads, removed)
        self.books = Books(
            workloads=frozenset(workloads.values()),
            accounts=self._accounts(totals, overflow, workloads),
            peers=self._peers(totals, workloads),
            sums={name: _by_workload(rows, workloads) for name, rows in sums.items()},
            node=self.datapath.node_totals(),
            attach_points=attach_points,
            lost_updates=lost,
            entries=sockets
            | {"totals": len(totals), "cgroups": len(noted), "cgroup_labels": len(self._identities)}
            | {"label_sets": len(self._retirement.label_sets)}
            | {"class_names": len(self.datapath.networks.names()) - 1}  # other is not noted
            | {name: len(taken) for name, taken in places.items()}
            | {name: len(rows) for name, rows in sums.items()},
            over_limit=self._identities.over_limit,
            seconds=self._flushed - start,
            began=began,
        )
        self._ended |= self._retirement.advance(began, self._tables(totals, sums), noted, visible)
        for table, name in PLACES.items():
            known_ids = {self._root.id, *noted, *(key[0] for key in sums.get(table, ()))}
            self._forget_places(name, [each for each in places.get(name, ()) if each[0] not in known_ids])
        if self._ended and asked <= named.keys() | noted.keys():  # all that count are known
            known: set[Owner] = set(workloads.values())
            known |= {Workload(*each.labels) for each in self._retirement.label_sets}
            # a meter that nobody asks for now may be asked for again, and goes on where it was
            known |= {(str(number),) for number, each in noted.items() if not each.removed}
            self._births.forget(known | {point.cgroup_ids for point in attach_points})
            self._ended = False

    def _forget_places(self, name: str, unknown: Collection[tuple[int, ...]]) -> None:
        """Give back places of cgroups that are gone: for one that lives there may be no room elsewhere."""
        gone = {number for number, path in self._root.paths_of({each[0] for each in unknown}) if path is None}
        if self._root.sees_all:
            self.datapath.forget_places(name, [each for each in unknown if each[0] in gone])

    def _end_name(self, table: str, workload: Workload, key: Key) -> None:
        """End a name's counter, now that its row's sums count without it."""
        split = SPLITS[table]
        rows = self.books.sums.get(table, {})
        if ended := rows.pop((workload, key[1:]), None):
            hidden = workload, (*split.none, *split.rest_of(key))
            rows[hidden] = tuple(map(_plus, rows[hidden], ended)) if hidden in rows else ended
        rest = split.rest_of(key)
        family = self.datapath.labels.socket_family[rest[0]] if rest else None
        labels = split.labels(workload, split.text(split.name_of(key)), family)
        self._births.end(split.group, labels, table, owner=workload)

    def _name_of(self, cgroup_id: int, path: str) -> Workload:
        return self._identities.of(cgroup_id) or self._names.of_path(path)

    def _sums(self) -> dict[str, dict[Record, Record]]:
        return {name: dict(table.rows()) for name, table in self.datapath.sums.items()}

    def _tables(
        self, totals: Mapping[TotalsKey, Traffic], sums: Mapping[str, Mapping[Record, Record]]
    ) -> Tables:
        """Return all sums that are kept, by map."""
        kept = {name: rows.items() for name, rows in sums.items() if name in self.datapath.kept}
        return {"totals": totals.items()} | kept

    def _accounts(
        self,
        totals: dict[TotalsKey, Traffic],
        overflow: dict[tuple[int, int], Traffic],
        workloads: Mapping[int, Workload],
    ) -> dict[Account, Traffic]:
        protocols, families = self.datapath.labels.protocol, self.datapath.labels.family
        rows = [
            (workloads[key.cgroup_id], key.protocol, key.family, traffic)
            for key, traffic in totals.items()
            if key.cgroup_id in workloads
        ]
        rows += [(OVERFLOW, *kind, traffic) for kind, traffic in overflow.items() if any(traffic)]
        accounts: dict[Account, Traffic] = {}
        for workload, protocol, family, traffic in rows:
            account = Account(workload, protocols[protocol], families[family])
            accounts[account] = traffic.plus(accounts[account]) if account in accounts else traffic
        return accounts

    def _peers(
        self, totals: dict[TotalsKey, Traffic], workloads: Mapping[int, Workload]
    ) -> dict[tuple[Workload, str], Traffic]:
        found: dict[tuple[Workload, str], Traffic] = {}
        for key, traffic in totals.items():
            if key.peer and key.cgroup_id in workloads:
                of = workloads[key.cgroup_id], self.datapath.networks.name(key.peer)
                found[of] = traffic.plus(found[of]) if of in found else traffic
        return found


def _counting(totals: Mapping[TotalsKey, Traffic], sums: Mapping[str, Mapping[Record, Record]]) -> set[int]:
    """Return the cgroups and label sets that have any sums."""
    found = {key.cgroup_id for key, traffic in totals.items() if any(traffic)}
    return found.union(*({key[0] for key, record in rows.items() if any(record)} for rows in sums.values()))


def _by_workload(
    rows: Mapping[tuple[int, ...], Record], workloads: Mapping[int, Workload]
) -> dict[tuple[Workload, Record], Record]:
    found: dict[tuple[Workload, Record], Record] = {}
    for (cgroup_id, *rest), record in rows.items():
        if cgroup_id not in workloads or (cgroup_id == OVERFLOW_ID and not any(record)):
            continue
        key = workloads[cgroup_id], tuple(rest)
        found[key] = tuple(map(_plus, found[key], record)) if key in found else record
    return found


def _plus(one: int, other: int) -> int:
    """Return the sum of two words: a gauge's row is negative where what it began with was moved."""
    return (one + other) & _WORD


def sum_up(parts: list[Traffic]) -> Traffic:
    """Return the sum, member by member."""
    return Traffic(*map(sum, zip(*parts, strict=True))) if parts else NO_TRAFFIC
