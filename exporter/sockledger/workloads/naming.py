"""What a cgroup is called by its path, and which are told apart at all, as users want it."""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from sockledger.kernel.noted import fits
from sockledger.workloads.paths import LEAF, Identity, identify


class Workload(NamedTuple):
    """The labels of a workload's series: five that each has, empty where they do not apply, and some *more*.

    An empty label, given by us, keeps Prometheus from filling in our own pod's.
    """

    namespace: str = ""
    pod: str = ""
    container: str = ""
    unit: str = ""
    cgroup: str = ""
    more: str = ""  # as `more_of` writes them

    def labels(self) -> list[tuple[str, str]]:
        """Return names and values."""
        return [*zip(LABELS, self, strict=False), *_parsed(self.more).items()]

    def texts(self) -> tuple[str, ...]:
        """Return what hashes of it are made of, which are the same in every version."""
        return self if self.more else self[:-1]


LABELS = Workload._fields[:-1]  # of every workload

OVERFLOW = Workload(cgroup="other")  # totals that found their map full, and what is not told apart
UNKNOWN = Workload(cgroup="unknown")  # a cgroup that was gone before we looked, and was not noted

_ID_CHARACTERS = 12  # of a container's id, as docker ps shows it


@dataclass(frozen=True, slots=True)
class Missing:
    """What nobody tells of a name now: *members* of `Workload`, and names of labels beside these."""

    members: Collection[str] = ()
    labels: Collection[str] = ()

    def __bool__(self) -> bool:
        return bool(self.members or self.labels)

    def completed(self, workload: Workload, before: Workload) -> Workload:
        """Return a workload with what is missing as it was *before*, where that is known."""
        known = {name: value for name in self.members if (value := getattr(before, name))}
        labels = {name: value for name, value in _parsed(before.more).items() if name in self.labels}
        if labels:
            known["more"] = more_of(labels)
        return _fitted(workload._replace(**known)) if known else workload


def more_of(labels: Mapping[str, str]) -> str:
    """Return labels beside `LABELS` as one text without NULs, the same for the same ones; empty for none."""
    if not labels:
        return ""
    valid = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in labels.items()}
    return json.dumps(valid, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=4096)
def _parsed(more: str) -> Mapping[str, str]:
    return json.loads(more) if more else {}


def label_value(path: str) -> str:
    r"""Return a cgroup's path, or a part of it, as it is shown: what is not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Naming:
    """How workloads are told apart. What is not, is summed."""

    rules: Sequence[re.Pattern[str]] = ()  # the first that is found in a path names it, by its groups
    level: str | int = LEAF  # what is below it is not told apart: see `paths.cut`
    hidden: frozenset[str] = frozenset()  # labels that are always empty
    with_path: bool = False  # whether what has another name is told apart by its path, too
    include: Sequence[str] = ()  # globs of cgroups that are told apart with all below them; none: all
    exclude: Sequence[str] = ()  # and of others that are not

    def tells_apart(self, path: str) -> bool:
        """Whether a cgroup is told apart from others."""
        included = not self.include or _matches_any(path, self.include)
        return included and not _matches_any(path, self.exclude)

    def by_path(self, path: str) -> tuple[Workload, Identity]:
        """Return what a path says of whose it is, and what runtimes and managers call it, if no rule does."""
        for rule in self.rules:
            if match := rule.search(path):
                return Workload(**{name: text or "" for name, text in match.groupdict().items()}), Identity()
        found = identify(path)
        container = found.container or found.container_id[:_ID_CHARACTERS]
        return Workload(pod=found.pod_uid, container=container, unit=found.unit), found

    def shown(self, workload: Workload, path: str) -> Workload:
        """Return a workload as it is shown: where nothing better names it, by its path."""
        if self.with_path or not any(workload):
            workload = workload._replace(cgroup=path)
        shown = {name: "" if name in self.hidden else label_value(getattr(workload, name)) for name in LABELS}
        return _fitted(workload._replace(**shown))


def _fitted(workload: Workload) -> Workload:
    """Return a workload without the longest of those labels for which there is no room to note them.

    What the next daemon does not know again would be shown twice.
    """
    while workload.more and not fits(workload):
        more = dict(_parsed(workload.more))
        del more[max(more, key=lambda name: (len(f"{name}{more[name]}".encode()), name))]
        workload = workload._replace(more=more_of(more))
    return workload


def _matches_any(path: str, globs: Sequence[str]) -> bool:
    parts = path.strip("/").split("/")
    return any(_is_below(parts, glob.strip("/").split("/")) for glob in globs)


def _is_below(path: Sequence[str], glob: Sequence[str]) -> bool:
    """Whether a path, or one above it, is as a glob has it."""
    ends = {0}  # how many parts of the path the glob may stand for so far
    for part in glob:
        if part == "**":
            ends = set(range(min(ends), len(path) + 1))
        else:
            ends = {end + 1 for end in ends if end < len(path) and fnmatchcase(path[end], part)}
        if not ends:
            return False
    return True
