"""Calls on sockets, as tasks are counted: rates with it and without, and what each program takes."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.support import cgroups, print_table, run_statistics
from tests.bench.tcp import (
    NOTHING,
    PAIRS,
    ROUNDS,
    Contender,
    Load,
    Quartiles,
    Timed,
    compiled_load,
    measure_rates,
    nothing,
    running_load,
)

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import TASK_HOOKS, DataPath, Parts

MODES = {
    "unix": "Request and response of 1 byte over AF_UNIX",
    "requests": "Request and response of 1 byte over TCP",
}
KINDS = {
    "without calls": Parts(unix=False),
    "with AF_UNIX (the default)": Parts(),
    "with --collector.tasks": Parts(tasks=True),
}


@contextmanager
def _attached(path: DataPath, *, emptied: bool = False) -> Iterator[None]:
    """Attach all, with a flush in the end; *emptied*: what is attached to calls jumps to nothing."""
    path.attach()
    try:
        for name in TASK_HOOKS if emptied else ():
            path.maps[f"{name}_slot"].delete(bytes(4))
        yield
        path.flush()
    finally:
        path.links.close()


def _print_rates(binary: Path, paths: dict[str, DataPath], client: Path, server: Path) -> None:
    contenders = [Contender(NOTHING, nothing, {})]
    contenders += [Contender(name, partial(_attached, path), {}) for name, path in paths.items()]
    for mode, title in MODES.items():
        with running_load(binary, mode, client, server) as load:
            everything = measure_rates(contenders, load, PAIRS)
        print_table(
            f"{title}: {PAIRS} pairs of rounds of {load.transactions}",
            ("first quartile / median / third quartile", "a second", "µs", "% less than with nothing"),
            [rates.row() for rates in everything],
        )


def _timed(path: DataPath, load: Load, *, emptied: bool) -> dict[str, Timed]:
    timed = {name: Timed(path.programs[name]) for name in TASK_HOOKS}
    for _ in range(ROUNDS):
        with _attached(path, emptied=emptied), ExitStack() as stack:
            for each in timed.values():
                stack.enter_context(each.round(load.transactions))
            load.seconds()
    return timed


def _print_programs(binary: Path, paths: dict[str, DataPath], client: Path, server: Path) -> None:
    rows = []
    with run_statistics():
        for mode in MODES:
            with running_load(binary, mode, client, server) as load:
                for kind, path in list(paths.items())[1:]:
                    empty, ours = (_timed(path, load, emptied=emptied) for emptied in (True, False))
                    for name in TASK_HOOKS[1:]:
                        both = zip(ours[name].nanoseconds, empty[name].nanoseconds, strict=True)
                        net = Quartiles([one - other for one, other in both])
                        rows.append(
                            (
                                f"{name}, {mode}, {kind}",
                                f"{Quartiles(empty[name].nanoseconds):.0f}",
                                f"{net:.0f}",
                            )
                        )
    print_table(
        f"Programs by the kernel's clock: {ROUNDS} rounds",
        ("first quartile / median / third quartile", "without a program in its slot, ns", "ours over it, ns"),
        rows,
    )


def run() -> None:
    """Measure and print."""
    with ExitStack() as stack:
        binary = compiled_load(Path(stack.enter_context(TemporaryDirectory())))
        below = stack.enter_context(cgroups(2))
        root = CgroupRoot(below.path)
        paths = {
            name: stack.enter_context(
                closing(DataPath(root, cgroups=1024, sockets=65536, connections=65536, parts=parts))
            )
            for name, parts in KINDS.items()
        }
        _print_rates(binary, paths, *below.children)
        _print_programs(binary, paths, *below.children)
