"""What a collector hands to an encoder: metric families and their series."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class MetricType(StrEnum):
    """The metric types in use, spelled as both text formats spell them."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the metric tables: code, help text and the docs' metrics page come from it.

    *name* is the family's: a counter's samples add ``_total``. *labels* are its own labels, without the
    workload's. *cardinality* says in words how many series there can be.
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    cardinality: str = "1"

    @property
    def sample_name(self) -> str:
        """The name that its samples bear."""
        return f"{self.name}_total" if self.type is MetricType.COUNTER else self.name


class Series:
    """A label set that has been shown or is about to be: its labels, rendered once, and its birth number.

    Label sets are numbered as they appear (`ledger.births`). 0 is for series that are never young.
    """

    __slots__ = ("labels", "number", "text")

    def __init__(self, labels: Sequence[tuple[str, str]], number: int = 0) -> None:
        self.labels = tuple(labels)
        self.number = number
        self.text = _render_labels(self.labels)


@dataclass(slots=True)
class Family:
    """One metric with its samples: (series, value)."""

    metric: Metric
    samples: list[tuple[Series, int | float]] = field(default_factory=list)


def _render_labels(labels: Sequence[tuple[str, str]]) -> str:
    """Label part of a sample line with the space behind it: sorted, escaped, valid UTF-8."""
    if not labels:
        return " "
    parts = []
    for name, value in sorted(labels):
        value = value.encode("utf-8", "backslashreplace").decode()  # a path may hold lone surrogates
        value = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        parts.append(f'{name}="{value}"')
    return "{" + ",".join(parts) + "} "
