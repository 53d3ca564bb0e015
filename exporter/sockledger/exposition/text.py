"""Renders metric families as Prometheus text or OpenMetrics 1.0.0, and chooses between the two.

The bytes are those of `prometheus_client`; this encoder exists because it is many times faster.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from sockledger.exposition.family import Family, Metric, MetricType, Series, go_float

# A typed name for a function that prometheus_client leaves without types.
_generate_openmetrics: Callable[[CollectorRegistry], bytes] = generate_openmetrics

_EOF = b"# EOF\n"

_WEIGHT = re.compile(r"q\s*=\s*([01](?:\.[0-9]{0,3})?)")  # of an offer in an Accept header: RFC 9110, 12.4.2

# Integers below are exact as floats; floatToGoString sees to all others.
_EXACT = 2**53

# Samples joined at a time: few enough for the processor's cache, which saves a fifth of the time.
_CHUNK = 1000

# By number of digits: what floatToGoString writes behind the mantissa of an integer of 7 digits or more.
_EXPONENT_AND_NEWLINE = [f"e+{digits - 1:02d}\n" for digits in range(len(str(_EXACT)) + 1)]


def render(families: Iterable[Family], *, seen: int | None, openmetrics: bool) -> bytes:
    """Render *families* as one page.

    A series whose birth number is above *seen* is shown as 0, unless it is a gauge's, so that the scraper's
    next sample is an increase that rate() counts. With None all show their values.
    """
    page = []
    for family in families:
        metric, samples = family.metric, family.samples
        page.append(_header(metric, openmetrics=openmetrics).encode())
        newest_shown = math.inf if seen is None or metric.type is MetricType.GAUGE else seen
        for start in range(0, len(samples), _CHUNK):
            chunk = samples[start : start + _CHUNK]
            page.append(_sample_lines(metric.sample_name, chunk, newest_shown).encode())
    if openmetrics:
        page.append(_EOF)
    return b"".join(page)


def add_registry(page: bytes, registry: CollectorRegistry, *, openmetrics: bool) -> bytes:
    """Put what `prometheus_client` collects in *registry* before the samples of *page*, a rendered page."""
    if openmetrics:
        return _generate_openmetrics(registry).removesuffix(_EOF) + page
    return generate_text(registry) + page


def negotiate(accept: str | None) -> tuple[bool, str]:
    """Choose from an Accept header: whether the answer is OpenMetrics, and its content type.

    The decision is `prometheus_client`'s. Its content type, though, repeats whatever version and escaping the
    client asks for; ours states what `render` writes.
    """
    try:
        _, offered = choose_encoder(_weighed(accept or ""))
    except TypeError:  # it compares a version like "1.x" with numbers
        return False, CONTENT_TYPE_PLAIN_0_0_4
    content_type, separator, escaping = offered.partition("; escaping=")
    openmetrics = content_type.startswith("application/openmetrics-text")
    if openmetrics:
        content_type = CONTENT_TYPE_OPENMETRICS
    if escaping and escaping != "allow-utf-8":
        escaping = "underscores"  # the other schemes rewrite underscores, too
    return openmetrics, content_type + separator + escaping


def _weighed(accept: str) -> str:
    """Take OpenMetrics out of an Accept header that refuses it or prefers text; the library ignores that."""
    offers = accept.split(",")
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for offer in offers:
        name, *parameters = (part.strip().lower() for part in offer.split(";"))
        weights = [_WEIGHT.fullmatch(parameter) for parameter in parameters]
        weight = next((float(match[1]) for match in weights if match), 1.0)
        best[name] = max(weight, best.get(name, 0.0))
    if best["application/openmetrics-text"] and best["application/openmetrics-text"] >= best["text/plain"]:
        return accept
    return ",".join(offer for offer in offers if "application/openmetrics-text" not in offer.lower())


def _header(metric: Metric, *, openmetrics: bool) -> str:
    """HELP and TYPE lines."""
    name = metric.name if openmetrics else metric.sample_name
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {metric.type}\n"


def _sample_lines(name: str, samples: Sequence[tuple[Series, int | float]], newest_shown: float) -> str:
    """Sample lines, with 0 for series born after *newest_shown*."""
    exponent = _EXPONENT_AND_NEWLINE
    # One comprehension whose common cases call no Python function: a page has 100,000 samples and more.
    return "".join(
        [
            f"{name}{series.text}0.0\n"
            if series.number > newest_shown
            else f"{name}{series.text}{go_float(value)}\n"
            if type(value) is not int or value >= _EXACT or value < 0
            else f"{name}{series.text}{value}.0\n"
            if value < 1_000_000
            else f"{name}{series.text}{(digits := str(value))[0]}.{digits[1:]}{exponent[len(digits)]}"
            if value % 10
            else f"{name}{series.text}{_mantissa(digits := str(value))}{exponent[len(digits)]}"
            for series, value in samples
        ]
    )


def _mantissa(digits: str) -> str:
    """Digits with the point behind the first one and without the zeros at the end."""
    return f"{digits[0]}.{digits[1:]}".rstrip("0.")
