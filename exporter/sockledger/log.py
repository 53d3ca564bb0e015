"""The program's log: one line a record on stderr, as logfmt or JSON, as Prometheus exporters print it."""

import json
import logging
import math
import re
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from sockledger.errors import printable

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}

_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_LEVEL_NAMES = {number: name.upper() for name, number in LEVELS.items()} | {logging.CRITICAL: "ERROR"}
_BARE_VALUE = re.compile(r"[^\s\"=\\]+")
_NOT_IN_KEYS = re.compile(r"[^\w.-]")


def setup(level: str, format: str) -> None:  # noqa: A002
    """Log records of *level* (of `LEVELS`) and above to stderr in *format* (of `FORMATS`)."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(FORMATS[format], tracebacks=level == "debug"))
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)
    # tornado tells of each malformed request at level info: anybody can make those
    # and the Kubernetes client's HTTP of each request
    for library in ("tornado", "httpx2", "httpcore2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # A log that cannot be written must not fill stderr with tracebacks.
    logging.raiseExceptions = False


class _Formatter(logging.Formatter):
    """Renders the fields of a record: time, level, message, extra fields, error."""

    def __init__(self, render: Callable[[Mapping[str, object]], str], *, tracebacks: bool) -> None:
        super().__init__()
        self._render = render
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": _LEVEL_NAMES.get(record.levelno, record.levelname),
            "msg": _message(record),
        }
        for key, value in vars(record).items():
            if key not in _STANDARD_ATTRIBUTES:
                fields.setdefault(key, value)
        exception = record.exc_info[1] if record.exc_info else None
        if exception is not None:
            fields.setdefault("error", f"{type(exception).__name__}: {_text(exception)}")
            if self._tracebacks:
                fields.setdefault("traceback", "".join(traceback.format_exception(exception)))
        return self._render(fields)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        # Arguments that do not fit the message are a slip of the caller's, and no reason to lose it.
        return f"{_text(record.msg)} {_text(record.args)}"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} without text>"


def _logfmt(fields: Mapping[str, object]) -> str:
    return " ".join(f"{_NOT_IN_KEYS.sub('_', key)}={_quoted(_text(value))}" for key, value in fields.items())


def _quoted(text: str) -> str:
    if _BARE_VALUE.fullmatch(text) and text.isprintable():
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _json(fields: Mapping[str, object]) -> str:
    return json.dumps({key: _json_value(value) for key, value in fields.items()})


def _json_value(value: object) -> object:
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _text(value)


FORMATS: Mapping[str, Callable[[Mapping[str, object]], str]] = {"logfmt": _logfmt, "json": _json}
