"""The command line: flags in, exit status out."""

import argparse
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from sockledger import __version__, config, log
from sockledger.errors import UserError, printable, remedy

_USAGE_ERROR = 2
_INTERRUPTED = 130
_HEALTH_PATHS = ("/-/healthy", "/-/ready")


def entry_point() -> NoReturn:
    """Run the console script."""
    if sys.argv[1:2] == ["run"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon handles it: by default it kills
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in *argv* and return the exit status: 2 for usage errors, 1 for all others."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr's: a path may hold anything
    try:
        try:
            arguments = _parser().parse_args(argv)
        except SystemExit as stop:  # argparse has printed help, the version or an error
            _print(end="")
            return int(stop.code or 0)
        status: int = arguments.handler(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            _complain(f"sockledger: {line}")
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        return 1
    except OSError as error:
        if (advice := remedy(error)) is None:
            raise
        what = "" if error.filename is None else f"{error.filename}: "
        _complain(f"sockledger: {printable(what)}{error.strerror}: {advice}")
        return 1
    return status


def _complain(text: str) -> None:
    if sys.stderr is not None:  # print takes stdout instead of none
        print(text, file=sys.stderr)


def _print(text: str = "", end: str = "\n") -> None:
    """Print on stdout at once; UserError if that fails, BrokenPipeError if nobody reads on."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        # The interpreter flushes once more at its exit, and would complain.
        with Path(os.devnull).open("w") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"standard output: {error.strerror}: the output is cut") from None


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE_ERROR, f"sockledger: error: {printable(message)} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="sockledger",
        description="Prometheus exporter of exact network traffic per cgroup.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sockledger {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, add_flags, text in (
        ("run", _add_run_flags, "count traffic and serve it to Prometheus"),
        ("check", _add_check_flags, "validate a configuration file"),
        ("uninstall", _add_uninstall_flags, "detach all programs and remove what is pinned in bpffs"),
        ("doctor", _add_doctor_flags, "tell what this kernel and these privileges allow"),
        ("tag", _add_tag_flags, "say what a socket is for: its traffic is counted per tag, too"),
        ("untag", _add_untag_flags, "take a socket's tag away"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            allow_abbrev=False,
        )
        add_flags(command)
    return parser


def _add_run_flags(parser: _Parser) -> None:
    _add_config_flag(parser)
    parser.add_argument(
        "--no-pin",
        dest="pin",
        action="store_false",
        help="leave nothing in the kernel at the end: a restart begins at 0 "
        "(default: all stays pinned in bpffs, and the kernel counts on)",
    )
    _add_web_flags(parser.add_argument_group("Web"))
    _add_collector_flags(parser.add_argument_group("Collectors"))
    logging = parser.add_argument_group("Logging")
    logging.add_argument(
        "--log.level",
        dest="log_level",
        choices=tuple(log.LEVELS),
        default="info",
        help="log only what is at least as severe (default: %(default)s)",
    )
    logging.add_argument(
        "--log.format",
        dest="log_format",
        choices=tuple(log.FORMATS),
        default="logfmt",
        help="format of the log on stderr (default: %(default)s)",
    )
    _add_path_flags(parser)
    parser.usage = "%(prog)s [FLAGS]"
    parser.set_defaults(handler=_run)


def _add_web_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--web.listen-address",
        dest="listen_addresses",
        action="append",
        type=_address,
        metavar="ADDRESS",
        help="address and port to listen on, repeatable (default: :10042)",
    )
    group.add_argument(
        "--web.telemetry-path",
        dest="telemetry_path",
        type=_telemetry_path,
        default="/metrics",
        metavar="PATH",
        help="path under which to serve metrics (default: %(default)s)",
    )
    group.add_argument(
        "--web.config.file",
        dest="web_config_file",
        type=_refuse_web_config,
        metavar="PATH",
        help="TLS and authentication; not in this version yet, refused",
    )
    group.add_argument(
        "--web.systemd-socket",
        dest="systemd_socket",
        action="store_true",
        help="listen on the sockets systemd passes instead of --web.listen-address",
    )
    group.add_argument(
        "--web.max-requests",
        dest="max_requests",
        type=_count,
        default=40,
        metavar="N",
        help="scrapes served at the same time, 0 for no limit (default: %(default)s)",
    )
    group.add_argument(
        "--web.disable-exporter-metrics",
        dest="exporter_metrics",
        action="store_false",
        help="leave out metrics about the exporter's process (process_*)",
    )


def _add_collector_flags(group: argparse._ArgumentGroup) -> None:
    from sockledger.collectors.registry import COLLECTORS

    for name, spec in COLLECTORS.items():
        text = f"{spec.help} (default: {'on' if spec.default else 'off'})"
        group.add_argument(
            f"--collector.{name}",
            dest=_collector_dest(name),
            action=argparse.BooleanOptionalAction,
            help=text.replace("%", "%%"),
        )
    group.add_argument(
        "--collector.tcp.histograms",
        dest="tcp_histograms",
        action="store_true",
        help="per workload histograms in place of summaries: 33 series more each",
    )


def _collector_dest(name: str) -> str:
    return f"collector.{name}"


def _add_check_flags(parser: _Parser) -> None:
    _add_config_flag(parser, required=True)
    parser.set_defaults(handler=_check)


def _add_doctor_flags(parser: _Parser) -> None:
    _add_path_flags(parser)
    parser.set_defaults(handler=_doctor)


def _add_uninstall_flags(parser: _Parser) -> None:
    _add_path_flags(parser)
    parser.set_defaults(handler=_uninstall)


def _add_tag_flags(parser: _Parser) -> None:
    _add_socket_flags(parser)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--create", action="store_true", help="refuse if the socket has a tag already")
    only.add_argument("--replace", action="store_true", help="refuse if the socket has no tag yet")
    parser.add_argument(
        "name", metavar="NAME", help="the tag: 1 to 31 ASCII characters without spaces, such as checkout-api"
    )
    parser.set_defaults(handler=_tag)


def _add_untag_flags(parser: _Parser) -> None:
    _add_socket_flags(parser)
    parser.set_defaults(handler=_untag)


def _add_socket_flags(parser: _Parser) -> None:
    group = parser.add_argument_group("Socket")
    group.add_argument("--pid", type=_number, required=True, metavar="PID", help="a process that has it open")
    group.add_argument(
        "--fd", type=_number, required=True, metavar="FD", help="its descriptor there (see /proc/PID/fd)"
    )
    _add_bpffs_flag(parser.add_argument_group("Paths"))


def _add_config_flag(parser: _Parser, *, required: bool = False) -> None:
    parser.add_argument(
        "--config.file",
        dest="config_file",
        type=_path,
        required=required,
        metavar="PATH",
        help="YAML configuration file" + ("" if required else " (default: none, all defaults)"),
    )


def _add_path_flags(parser: _Parser) -> None:
    group = parser.add_argument_group("Paths")
    group.add_argument(
        "--path.cgroupfs",
        dest="cgroupfs",
        type=_path,
        metavar="PATH",
        help="mount point of cgroup v2, or a cgroup to count in (default: found in /proc/self/mountinfo)",
    )
    _add_bpffs_flag(group)


def _add_bpffs_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--path.bpffs",
        dest="bpffs",
        type=_path,
        default=Path("/sys/fs/bpf"),
        metavar="PATH",
        help="mount point of the BPF file system (default: %(default)s)",
    )


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; give one or leave the flag out")
    return Path(text)


def _address(text: str) -> tuple[str, int]:
    from sockledger.web.listen import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _telemetry_path(text: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9._~/-]*", text):
        raise argparse.ArgumentTypeError(
            f'"{text}" is no path to serve; begin with "/", then letters, digits and any of ._~/-'
        )
    if text in _HEALTH_PATHS:
        raise argparse.ArgumentTypeError(f"{text} is taken by the health check; give another path")
    return text


def _refuse_web_config(_text: str) -> NoReturn:
    raise argparse.ArgumentTypeError(
        "TLS and authentication are not in this version yet; leave the flag out, and put a proxy in front"
        " or listen on 127.0.0.1 only"
    )


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number, 0 (no limit) or greater')
    return int(text)


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number, 0 or greater')
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from sockledger import daemon
    from sockledger.collectors.registry import COLLECTORS

    chosen = {name: getattr(arguments, _collector_dest(name)) for name in COLLECTORS}
    options = config.RunOptions(
        config_file=arguments.config_file,
        pin=arguments.pin,
        listen_addresses=tuple(arguments.listen_addresses or [_address(":10042")]),
        telemetry_path=arguments.telemetry_path,
        systemd_socket=arguments.systemd_socket,
        max_requests=arguments.max_requests,
        exporter_metrics=arguments.exporter_metrics,
        collectors=frozenset(
            name
            for name, spec in COLLECTORS.items()
            if (spec.default if chosen[name] is None else chosen[name])
        ),
        tcp_histograms=arguments.tcp_histograms,
        log_level=arguments.log_level,
        log_format=arguments.log_format,
        cgroupfs=arguments.cgroupfs,
        bpffs=arguments.bpffs,
    )
    return daemon.run(options)


def _check(arguments: argparse.Namespace) -> int:
    try:
        config.load(arguments.config_file)
    except config.ConfigError as error:
        # Bare, since editors and CI systems know lines that begin with FILE:LINE.
        _complain(str(error))
        return 1
    _print(f"{printable(str(arguments.config_file))}: configuration is valid")
    return 0


def _uninstall(arguments: argparse.Namespace) -> int:
    from sockledger.kernel.uninstall import uninstall

    removed = uninstall(arguments.bpffs, arguments.cgroupfs)
    what = f"{removed} pins removed" if removed else "nothing is pinned"
    _print(f"{printable(str(arguments.bpffs))}: {what}")
    return 0


def _tag(arguments: argparse.Namespace) -> int:
    from sockledger import tags

    modes = {"create": arguments.create, "replace": arguments.replace}
    return _change_tag(
        arguments, lambda found: tags.tag(found, arguments.name, bpffs=arguments.bpffs, **modes)
    )


def _untag(arguments: argparse.Namespace) -> int:
    from sockledger import tags

    return _change_tag(arguments, lambda found: tags.untag(found, bpffs=arguments.bpffs))


def _change_tag(arguments: argparse.Namespace, change: Callable[[int], None]) -> int:
    from sockledger.kernel.descriptors import descriptor_of

    with descriptor_of(arguments.pid, arguments.fd) as found:
        try:
            change(found)
        except ValueError as error:
            raise UserError(printable(str(error))) from None
        except OSError as error:
            if remedy(error) and error.errno != errno.ENOMEM:
                raise
            what = error.filename or f"descriptor {arguments.fd} of process {arguments.pid}"
            raise UserError(f"{printable(what)}: {error.strerror}") from None
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from sockledger.kernel import doctor

    able = True
    for finding in doctor.examine(arguments.cgroupfs, arguments.bpffs):
        _print(finding.line())
        able &= finding.ok or not finding.needed
    return 0 if able else 1
