"""What a collector hands to an encoder: metric families and their series."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate

from prometheus_client.utils import floatToGoString

# A typed name for a function that prometheus_client leaves without types.
go_float: Callable[[float], str] = floatToGoString


class MetricType(StrEnum):
    """The metric types in use, spelled as both text formats spell them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SUMMARY = "summary"
    HISTOGRAM = "histogram"


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
        """The name that its samples bear, before the suffixes of a summary's and a histogram's series."""
        return f"{self.name}_total" if self.type is MetricType.COUNTER else self.name


class Series:
    """A label set that has been shown or is about to be: its labels, rendered once, and its birth number.

    Label sets are numbered as they appear (`ledger.births`). 0 is for series that are never young. *suffix*
    says which part of a summary or a histogram it is: ``_bucket``, ``_count`` or ``_sum``.
    """

    __slots__ = ("labels", "number", "suffix", "text")

    def __init__(self, labels: Sequence[tuple[str, str]], number: int = 0, suffix: str = "") -> None:
        self.labels = tuple(labels)
        self.number = number
        self.suffix = suffix
        self.text = suffix + _render_labels(self.labels)


@dataclass(slots=True)
class Family:
    """One metric with its samples: (series, value)."""

    metric: Metric
    samples: list[tuple[Series, int | float]] = field(default_factory=list)


def histogram_values(counts: Sequence[int], total: float) -> list[int | float]:
    """Return the values of a histogram's series, in the order of `Births.histogram`.

    *counts* are each bucket's own, the one up to infinity last; *total* is the sum of what was observed.
    """
    buckets = list(accumulate(counts))
    return [*buckets, buckets[-1], total]


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
