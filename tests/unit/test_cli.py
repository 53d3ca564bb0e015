"""The command line: every flag, what it refuses, and the exit statuses."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock, call

import pytest

from sockledger import __version__, cli
from sockledger.config import RunOptions
from sockledger.errors import UserError
from sockledger.kernel.doctor import Finding

ENTRY_POINT = "from sockledger.cli import entry_point; entry_point()"

DEFAULTS = {
    "config_file": None,
    "pin": True,
    "listen_addresses": (("", 10042),),
    "telemetry_path": "/metrics",
    "systemd_socket": False,
    "max_requests": 40,
    "exporter_metrics": True,
    "collectors": frozenset({"traffic", "programs"}),
    "tcp_histograms": False,
    "log_level": "info",
    "log_format": "logfmt",
    "cgroupfs": None,
    "bpffs": Path("/sys/fs/bpf"),
}


@dataclass
class Spec:
    default: bool
    help: str = "100% of it"


def parse_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text} has no port")
    return host, int(port)


@pytest.fixture(autouse=True)
def run_options(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """Stand-ins for what cli imports when needed; the daemon's notes how it was called."""
    calls: list[RunOptions] = []

    def run(options: RunOptions) -> int:
        calls.append(options)
        return 0

    stand_in(monkeypatch, "sockledger.daemon", run=run)
    stand_in(monkeypatch, "sockledger.web.listen", parse_address=parse_address)
    collectors = {"traffic": Spec(default=True), "tasks": Spec(default=False), "programs": Spec(default=True)}
    stand_in(monkeypatch, "sockledger.collectors.registry", COLLECTORS=collectors)
    return calls


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    monkeypatch.setattr(import_module(parent), child, module, raising=False)


def raising(error: BaseException) -> Callable[..., int]:
    def run(*args: object) -> int:
        raise error

    return run


def test_run_by_default(run_options: list[RunOptions]) -> None:
    assert cli.main(["run"]) == 0
    assert run_options == [RunOptions(**DEFAULTS)]  # type: ignore[arg-type]


GOOD_FLAGS = [
    (["--config.file", "a.yml"], {"config_file": Path("a.yml")}),
    (["--config.file=a.yml"], {"config_file": Path("a.yml")}),
    (["--web.listen-address", "h:1"], {"listen_addresses": (("h", 1),)}),
    (["--web.listen-address=h:1", "--web.listen-address=:2"], {"listen_addresses": (("h", 1), ("", 2))}),
    (["--web.telemetry-path", "/a/b-c_d.~1"], {"telemetry_path": "/a/b-c_d.~1"}),
    (["--web.systemd-socket"], {"systemd_socket": True}),
    (["--web.max-requests", "0"], {"max_requests": 0}),
    (["--web.disable-exporter-metrics"], {"exporter_metrics": False}),
    (["--no-collector.traffic"], {"collectors": frozenset({"programs"})}),
    (["--collector.tasks"], {"collectors": frozenset({"traffic", "tasks", "programs"})}),
    (["--no-collector.traffic", "--collector.traffic"], {}),
    *((["--log.level", level], {"log_level": level}) for level in ("debug", "info", "warn", "error")),
    *((["--log.format", name], {"log_format": name}) for name in ("logfmt", "json")),
    (["--path.cgroupfs", "/c"], {"cgroupfs": Path("/c")}),
    (["--path.bpffs", "/b"], {"bpffs": Path("/b")}),
    (["--no-pin"], {"pin": False}),
]


@pytest.mark.parametrize(("flags", "changed"), GOOD_FLAGS, ids=[" ".join(flags) for flags, _ in GOOD_FLAGS])
def test_good_flag(run_options: list[RunOptions], flags: list[str], changed: dict[str, object]) -> None:
    assert cli.main(["run", *flags]) == 0
    assert run_options == [RunOptions(**(DEFAULTS | changed))]  # type: ignore[arg-type]


BAD_COMMAND_LINES = [
    ([], "the following arguments are required: COMMAND"),
    (["walk"], "invalid choice: 'walk'"),
    (["--vers"], "the following arguments are required: COMMAND"),
    (["run", "x\ny"], "unrecognized arguments: x\\ny"),
    (["run", "--config.fil", "x"], "unrecognized arguments: --config.fil x"),
    (
        ["run", "--config.file", ""],
        "argument --config.file: the path is empty; give one or leave the flag out",
    ),
    (["run", "--config.file"], "argument --config.file: expected one argument"),
    (["run", "--web.listen-address", "h"], "argument --web.listen-address: h has no port"),
    (
        ["run", "--web.telemetry-path", ""],
        'argument --web.telemetry-path: "" is no path to serve; begin with "/"',
    ),
    (["run", "--web.telemetry-path", "metrics"], '"metrics" is no path to serve; begin with "/"'),
    (["run", "--web.telemetry-path", "/m?x"], '"/m?x" is no path to serve'),
    (["run", "--web.telemetry-path", "/m\n"], '"/m\\n" is no path to serve'),
    (
        ["run", "--web.telemetry-path", "/-/healthy"],
        "/-/healthy is taken by the health check; give another path",
    ),
    (["run", "--web.telemetry-path", "/-/ready"], "/-/ready is taken by the health check; give another path"),
    (
        ["run", "--web.config.file", "w.yml"],
        "argument --web.config.file: TLS and authentication are not in this version yet; leave the flag out, "
        "and put a proxy in front or listen on 127.0.0.1 only",
    ),
    (["run", "--web.systemd-socket=yes"], "argument --web.systemd-socket: ignored explicit argument 'yes'"),
    (["run", "--web.max-requests", "-1"], '"-1" is not a whole number, 0 (no limit) or greater'),
    (["run", "--web.max-requests", "1_0"], '"1_0" is not a whole number'),
    (["run", "--web.max-requests", "9" * 5000], "is not a whole number"),
    (["run", "--web.disable-exporter-metrics=no"], "ignored explicit argument 'no'"),
    (["run", "--collector.nonsense"], "unrecognized arguments: --collector.nonsense"),
    (["run", "--log.level", "loud"], "argument --log.level: invalid choice: 'loud'"),
    (["run", "--log.format", "xml"], "argument --log.format: invalid choice: 'xml'"),
    (["run", "--path.cgroupfs", ""], "argument --path.cgroupfs: the path is empty"),
    (["run", "--path.bpffs", ""], "argument --path.bpffs: the path is empty"),
    (["check"], "the following arguments are required: --config.file (see sockledger check --help)"),
    (["check", "--config.file", ""], "argument --config.file: the path is empty"),
    (["doctor", "--no-pin"], "unrecognized arguments: --no-pin"),
    (["doctor", "--config.file=a.yml"], "unrecognized arguments: --config.file=a.yml"),
    (["doctor", "--path.bpffs", ""], "argument --path.bpffs: the path is empty"),
]


@pytest.mark.parametrize(
    ("argv", "message"), BAD_COMMAND_LINES, ids=[" ".join(a)[:60] for a, _ in BAD_COMMAND_LINES]
)
def test_bad_command_line(
    capsys: pytest.CaptureFixture[str], run_options: list[RunOptions], argv: list[str], message: str
) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sockledger: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert run_options == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sockledger {__version__}\n"


def test_help_has_every_flag_in_its_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    general, rest = text.split("\nWeb:\n")
    web, rest = rest.split("\nCollectors:\n")
    collectors, rest = rest.split("\nLogging:\n")
    logging, paths = rest.split("\nPaths:\n")
    assert flags_in(general) == {"--help", "--config.file", "--no-pin"}
    assert flags_in(web) == {
        "--web.listen-address",
        "--web.telemetry-path",
        "--web.config.file",
        "--web.systemd-socket",
        "--web.max-requests",
        "--web.disable-exporter-metrics",
    }
    names = ("traffic", "tasks", "programs")
    assert flags_in(collectors) == {
        *(f"--{no}collector.{name}" for name in names for no in ("", "no-")),
        "--collector.tcp.histograms",
    }
    assert flags_in(logging) == {"--log.level", "--log.format"}
    assert flags_in(paths) == {"--path.cgroupfs", "--path.bpffs"}
    assert collectors.count("100% of it (default: on)") == 2
    assert collectors.count("100% of it (default: off)") == 1


def flags_in(text: str) -> set[str]:
    lines = [line for line in text.splitlines() if line.startswith("  -")]
    return {word.rstrip(",") for line in lines for word in line.split() if word.startswith("--")}


@pytest.mark.parametrize("command", ["run", "check", "doctor"])
def test_help_has_every_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main(["--help"]) == 0
    assert f"\n    {command} " in capsys.readouterr().out


def test_check_of_a_valid_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text("flush: {interval: 5s}")
    assert cli.main(["check", "--config.file", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: configuration is valid\n", "")


def test_check_of_a_file_with_an_odd_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a\n\udcff"
    file.touch()
    assert cli.main(["check", "--config.file", str(file)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a\\n\\udcff: configuration is valid\n"


def test_check_without_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["check", "--config.file", os.devnull]) == 0


def test_check_of_an_invalid_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text("a: 1\nb: 1")
    assert cli.main(["check", "--config.file", str(file)]) == 1
    lines = "".join(
        f"{file}:{n}: {key}: unknown key; allowed: attach, flush, limits, persist, workloads, labels, "
        "aggregate, include, exclude, networks, networks_file, service_networks, node_networks, tags\n"
        for n, key in [(1, "a"), (2, "b")]
    )
    assert capsys.readouterr() == ("", lines)


def test_daemon_status_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sockledger.daemon", run=lambda options: 1)
    assert cli.main(["run"]) == 1


def test_user_errors_are_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sockledger.daemon", run=raising(UserError("a: no; do b\nc: no; do d")))
    assert cli.main(["run"]) == 1
    assert capsys.readouterr() == ("", "sockledger: a: no; do b\nsockledger: c: no; do d\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, "none left", "/a\n"), r"/a\n: none left: raise the limit of open files"),
        (OSError(errno.ENFILE, "b: none left"), "b: none left: raise the machine's limit of open files"),
        (OSError(errno.ENOMEM, "none left"), "none left: allow the daemon more memory"),
    ],
)
def test_what_is_short_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: OSError, line: str
) -> None:
    stand_in(monkeypatch, "sockledger.daemon", run=raising(error))
    assert cli.main(["run"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith(f"sockledger: {line}")


def test_other_errors_are_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sockledger.daemon", run=raising(OSError(errno.EIO, "a")))
    with pytest.raises(OSError, match="a"):
        cli.main(["run"])


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    examine = Mock(return_value=[Finding("a", ok=True, detail="b"), Finding("c", ok=False, detail="d")])
    stand_in(monkeypatch, "sockledger.kernel.doctor", examine=examine)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "ok    a: b\nFAIL  c: d\n"
    examine.return_value = [Finding("c", ok=False, detail="d", needed=False)]
    assert cli.main(["doctor", "--path.cgroupfs=/c", "--path.bpffs=/b"]) == 0
    assert capsys.readouterr().out == "no    c: d\n"
    assert examine.mock_calls == [call(None, Path("/sys/fs/bpf")), call(Path("/c"), Path("/b"))]


def test_interrupted_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sockledger.kernel.doctor", examine=raising(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130


def test_interrupted_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sockledger.config.load", raising(KeyboardInterrupt()))
    assert cli.main(["check", "--config.file", "x"]) == 130


def test_stdout_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["--help"]) == 1
        monkeypatch.undo()


def test_stdout_of_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "révé.yml"
    file.touch()
    run = subprocess.run(
        [sys.executable, "-c", ENTRY_POINT, "check", "--config.file", file],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert run.stdout == f"{tmp_path}/r\\xe9v\\xe9.yml: configuration is valid\n"


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        (["check", "--config.file", "/dev/null"], ""),
        (["check", "--config.file", "/dev/null"], "1"),
        (["doctor"], "1"),
        (["--help"], ""),  # argparse itself passes over it if unbuffered
    ],
)
def test_stdout_is_full(command: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-c", ENTRY_POINT, *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert run.stderr == "sockledger: standard output: No space left on device: the output is cut\n"
    assert run.returncode == 1


def test_entry_point_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sockledger", "run", "--nonsense"])
    with pytest.raises(SystemExit) as caught:
        cli.entry_point()
    assert caught.value.code == 2
