"""The log's two formats: one line a record, whatever is logged."""

import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockledger import log

TIME = 1767323045.678
logger = logging.getLogger("test")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, raising = logging.getLogger(), logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = logging.getLogRecordFactory()

    def make(*args: object, **kwargs: object) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.created = TIME
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", make)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert len(captured.err.splitlines()) == 1
    return captured.err[:-1]


def test_logfmt(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "logfmt")
    logger.info("up %d", 1, extra={"a": 1, "b": "", "d": 'q"\\', "e": "x=y", "f": "a\nb"})
    assert last_line(capsys) == (
        'time=2026-01-02T03:04:05.678Z level=INFO msg="up 1" a=1 b="" d="q\\"\\\\" e="x=y" f="a\\nb"'
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "json")
    extra = {"a": 1, "b": True, "c": None, "d": "a\nb\u2028", "e": 1.5, "f": float("nan"), "g": [1]}
    logger.info("up", extra=extra)
    assert json.loads(last_line(capsys)) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "INFO",
        "msg": "up",
        **extra,
        "f": "nan",
        "g": "[1]",
    }


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["DEBUG", "INFO", "WARN", "ERROR", "ERROR"]),
        ("info", ["INFO", "WARN", "ERROR", "ERROR"]),
        ("warn", ["WARN", "ERROR", "ERROR"]),
        ("error", ["ERROR", "ERROR"]),
    ],
)
def test_levels(capsys: pytest.CaptureFixture[str], level: str, shown: list[str]) -> None:
    log.setup(level, "json")
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(number, "x")
    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == shown


def log_an_exception() -> None:
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        logger.exception("failed")


def test_exception(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "logfmt")
    log_an_exception()
    assert last_line(capsys).endswith('level=ERROR msg=failed error="ValueError: bad\\nvalue"')


def test_exception_at_debug_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("debug", "logfmt")
    log_an_exception()
    assert ' traceback="Traceback (most recent call last):\\n  File \\"' in last_line(capsys)


def test_exception_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("debug", "logfmt")
    logger.error("failed", exc_info=True)
    assert last_line(capsys).endswith("msg=failed")


@pytest.mark.parametrize("name", log.FORMATS)
def test_values_without_text(capsys: pytest.CaptureFixture[str], name: str) -> None:
    log.setup("info", name)
    logger.info("x", extra={"a": Unprintable()})
    assert "<Unprintable without text>" in last_line(capsys)


@pytest.mark.parametrize("name", log.FORMATS)
def test_arguments_that_do_not_fit(capsys: pytest.CaptureFixture[str], name: str) -> None:
    log.setup("info", name)
    logger.info("count %d", "three")
    assert "count %d ('three',)" in last_line(capsys)


def test_extra_cannot_replace_time_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "logfmt")
    logger.info("x", extra={"time": 1, "level": 2})
    assert last_line(capsys) == "time=2026-01-02T03:04:05.678Z level=INFO msg=x"


def test_odd_key_stays_one_key(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "logfmt")
    logger.info("x", extra={'a b="\n': 1})
    assert last_line(capsys).endswith(" a_b___=1")


def test_set_up_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "logfmt")
    log.setup("info", "logfmt")
    logger.info("x")
    last_line(capsys)


class FullDisk:
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass


def test_unwritable_stderr_is_survived_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk()
    monkeypatch.setattr("sys.stderr", disk)
    log.setup("info", "logfmt")
    logger.info("x")
    assert disk.writes == 1


@pytest.mark.parametrize("name", log.FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters()), number=st.floats())
def test_any_text_is_one_line(
    capsys: pytest.CaptureFixture[str], name: str, text: str, number: float
) -> None:
    log.setup("info", name)
    logger.info("%s", text, extra={"a": text, "b": number})
    line = last_line(capsys)
    assert line.isprintable()
    if name == "json":
        assert json.loads(line)["msg"] == text
