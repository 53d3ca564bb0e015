"""TCP with the exporter and without: rates of transactions, and what each program takes of them."""

import os
import re
import socket
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.support import (
    BENCH,
    CPU,
    Cgroups,
    Spread,
    cgroups,
    compiled,
    print_table,
    run_statistics,
    verdict,
)
from tests.bench.worker import worker

from sockledger.config import Limits
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.libbpf import Object, Program, program_stats

PAIRS = 100  # of rounds, with and without
SECONDS = 0.05  # what a round takes, about
ROUNDS = 15  # in which programs are timed
DATAGRAMS = 3000  # dropped in a round, or a socket's only one
HELD = 5000  # connections, for the memory that each takes

MODES = {
    "connections": "Connect, request, response and close over loopback",
    "requests": "Request and response of 1 byte over loopback",
}
LOSS = {"connections": 3, "requests": 1}  # the targets, in per cent

NOTHING, EMPTY = "nothing attached (twice)", "empty programs at the same hooks"
OURS, WITHOUT_TCP = "sockledger", "sockledger without TCP"

# The program that does nothing where ours does something.
EMPTY_NAMES = {
    "sl_tcp_events": "empty_events",
    "sl_tcp_states": "empty_states",
    "sl_udp_drops": "empty_drops",
    "sl_udp_released": "empty_released",
    "sl_receive": "empty_receive",
    "sl_transmit": "empty_transmit",
}
TRACING = ("empty_states", "empty_drops")

# include/uapi/linux/bpf.h: BPF_SOCK_OPS_*
KINDS = {
    1: "TIMEOUT_INIT",
    2: "RWND_INIT",
    3: "TCP_CONNECT_CB",
    4: "ACTIVE_ESTABLISHED_CB",
    5: "PASSIVE_ESTABLISHED_CB",
    6: "NEEDS_ECN",
    7: "BASE_RTT",
    8: "RTO_CB",
    10: "STATE_CB",
}


class Quartiles(Spread):
    """Values of several rounds, printed as ``first quartile / median / third quartile``."""

    def __format__(self, spec: str) -> str:
        return " / ".join(format(value, spec) for value in statistics.quantiles(self.values))


# ---- the load


class Load:
    """The generator at work; between two rounds it waits."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.transactions = 100
        self.transactions = max(100, round(SECONDS / min(self.seconds() for _ in range(5))))

    def seconds(self) -> float:
        """Make a round; return how long each transaction took."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{self.transactions}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline()) / self.transactions


def compiled_load(folder: Path) -> Path:
    """Compile the generator."""
    binary = folder / "tcp_load"
    command = ("clang", "-O2", "-Wall", "-Wextra", "-Werror", BENCH / "tcp_load.c", "-o", binary)
    subprocess.run(command, check=True)
    return binary


@contextmanager
def running_load(binary: Path, mode: str, client: Path, server: Path) -> Iterator[Load]:
    """Run the generator, its client and its server in a cgroup each."""
    with subprocess.Popen(
        (binary, mode, str(CPU), client, server),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us
    ) as process:
        try:
            yield Load(process)
        finally:
            process.kill()


@contextmanager
def _dropped_datagrams(cgroup: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that sends to a socket which is full."""
    Cgroups.enter(cgroup)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the least that there is
        end.bind(("127.0.0.1", 0))
        end.connect(end.getsockname())

        def send() -> None:
            for _ in range(DATAGRAMS):
                end.send(b"x")

        send()
        yield send


def _short_lives(cgroup: Path) -> Callable[[], None]:
    """Return a function that opens sockets, each for a datagram, as who asks a name server."""
    Cgroups.enter(cgroup)

    def open_and_close() -> None:
        for _ in range(DATAGRAMS):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.bind(("127.0.0.1", 0))
                end.sendto(b"x", end.getsockname())

    return open_and_close


# ---- what is attached


class Contender:
    """What is attached during a round."""

    def __init__(
        self,
        name: str,
        attached: Callable[[], AbstractContextManager[None]],
        programs: Mapping[str, Program],
    ) -> None:
        self.name = name
        self.attached = attached
        self.programs = programs


@contextmanager
def nothing() -> Iterator[None]:
    """Attach nothing."""
    yield


def empty_contender(floor: Object, cgroup_fd: int) -> Contender:
    """Return programs that do nothing."""

    @contextmanager
    def attached() -> Iterator[None]:
        with ExitStack() as stack:
            for name in EMPTY_NAMES.values():
                program = floor.programs[name]
                link = program.attach() if name in TRACING else program.attach_cgroup(cgroup_fd)
                stack.callback(link.destroy)
            yield

    return Contender(EMPTY, attached, {ours: floor.programs[name] for ours, name in EMPTY_NAMES.items()})


def our_contender(name: str, path: DataPath) -> Contender:
    """Return the exporter's programs; a flush ends each round."""

    @contextmanager
    def attached() -> Iterator[None]:
        path.attach()
        try:
            yield
            for _ in range(2):  # then the seats of what has been closed are free again
                path.flush_sockets()
            path.flush_tcp()
        finally:
            path.links.close()

    return Contender(name, attached, {ours: path.programs[ours] for ours in EMPTY_NAMES})


@contextmanager
def _data_path(cgroup: Path, *, tcp: bool = True) -> Iterator[tuple[CgroupRoot, DataPath]]:
    root, limits = CgroupRoot(cgroup), Limits()
    try:
        with closing(
            DataPath(
                root,
                cgroups=1024,
                sockets=limits.sockets,
                connections=limits.connections,
                parts=Parts(tcp=tcp),
            )
        ) as path:
            yield root, path
    finally:
        os.close(root.fd)


# ---- rates


class Rates:
    """How long transactions took with a contender attached, and right beside that with nothing."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.seconds: list[float] = []
        self.bare: list[float] = []

    def measure(self, load: Load, *, bare_first: bool) -> None:
        """Measure a pair."""
        if bare_first:
            self.bare.append(load.seconds())
        with self.contender.attached():
            self.seconds.append(load.seconds())
        if not bare_first:
            self.bare.append(load.seconds())

    @property
    def loss(self) -> Quartiles:
        """By how many per cent the rate is lower than without."""
        return Quartiles([100 * (1 - b / s) for s, b in zip(self.seconds, self.bare, strict=True)])

    def row(self) -> tuple[str, ...]:
        """Return the table's row."""
        return (
            self.contender.name,
            f"{Quartiles([1 / value for value in self.seconds]):.0f}",
            f"{Quartiles([1e6 * value for value in self.seconds]):.1f}",
            f"{self.loss:.1f}",
        )


def measure_rates(contenders: Sequence[Contender], load: Load, pairs: int) -> list[Rates]:
    """Measure pairs of each contender in turn."""
    everything = [Rates(contender) for contender in contenders]
    for number in range(pairs):
        first = number // 2 % len(everything)
        for rates in everything[first:] + everything[:first]:
            rates.measure(load, bare_first=number % 2 == 0)
    return everything


def _print_rates(binary: Path, below: Cgroups, floor: Object) -> None:
    with ExitStack() as stack:
        root, ours = stack.enter_context(_data_path(below.path))
        _, without_tcp = stack.enter_context(_data_path(below.path, tcp=False))
        contenders = [
            Contender(NOTHING, nothing, {}),
            empty_contender(floor, root.fd),
            our_contender(WITHOUT_TCP, without_tcp),
            our_contender(OURS, ours),
        ]
        for mode, title in MODES.items():
            with running_load(binary, mode, *below.children) as load:
                everything = measure_rates(contenders, load, PAIRS)
            print_table(
                f"{title}: {PAIRS} pairs of rounds of {load.transactions}",
                ("first quartile / median / third quartile", "a second", "µs", "% less than with nothing"),
                [rates.row() for rates in everything],
            )
            met = everything[-1].loss.median <= LOSS[mode]
            print("  " + verdict(f"target: at most {LOSS[mode]} % less", met=met))


# ---- programs


class Timed:
    """What the runs of a program took, in each round, and how many there were for each transaction."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.nanoseconds: list[float] = []
        self.runs: list[float] = []

    @contextmanager
    def round(self, transactions: int) -> Iterator[None]:
        """Time a round."""
        before = program_stats(self._program.fd)
        yield
        after = program_stats(self._program.fd)
        runs = after.runs - before.runs
        self.runs.append(runs / transactions)
        self.nanoseconds.append(1e9 * (after.run_seconds - before.run_seconds) / runs if runs else 0)


def _time_programs(
    contenders: Sequence[Contender], names: Sequence[str], traffic: Callable[[], object], transactions: int
) -> list[dict[str, Timed]]:
    """Time programs of all contenders in turn."""
    timed = [{name: Timed(contender.programs[name]) for name in names} for contender in contenders]
    for number in range(ROUNDS):
        for index in sorted(range(len(contenders)), reverse=number % 2 == 1):
            with contenders[index].attached(), ExitStack() as stack:
                for each in timed[index].values():
                    stack.enter_context(each.round(transactions))
                traffic()
    return timed


def _program_rows(
    contenders: Sequence[Contender],
    names: Sequence[str],
    traffic: Callable[[], object],
    transactions: int,
    where: str,
) -> list[tuple[str, ...]]:
    """Return rows of what programs take over the empty ones."""
    empty, ours = _time_programs(contenders, names, traffic, transactions)
    rows: list[tuple[str, ...]] = []
    for name in names:
        both = zip(ours[name].nanoseconds, empty[name].nanoseconds, strict=True)
        net = Quartiles([one - other for one, other in both])
        runs = statistics.median(ours[name].runs)
        rows.append(
            (
                f"{name}, {where}",
                f"{runs:.1f}",
                f"{Quartiles(empty[name].nanoseconds):.0f}",
                f"{net:.0f}",
                f"{runs * net.median:.0f}",
            )
        )
    return rows


def _print_programs(binary: Path, below: Cgroups, floor: Object) -> None:
    """Each side by itself: so its calls are told apart from the other side's."""
    rows: list[tuple[str, ...]] = []
    calls: list[dict[int, float]] = []
    sides = dict(zip(("client", "server"), below.children, strict=True))
    with run_statistics():
        for side, cgroup in sides.items():
            with _data_path(cgroup) as (root, path):
                contenders = (empty_contender(floor, root.fd), our_contender(OURS, path))
                names = [name for name in EMPTY_NAMES if name != "sl_udp_drops"]
                with running_load(binary, "connections", *below.children) as load:
                    of = f"a connection's {side}"
                    rows += _program_rows(contenders, names, load.seconds, load.transactions, of)
                    calls.append(_calls(floor, root.fd, load))
                with running_load(binary, "requests", *below.children) as load:
                    of = f"a request's {side}"
                    rows += _program_rows(contenders, names[-2:], load.seconds, load.transactions, of)
        with (
            _data_path(below.path) as (root, path),
            _dropped_datagrams(below.children[0]) as send,
        ):
            contenders = (empty_contender(floor, root.fd), our_contender(OURS, path))
            rows += _program_rows(contenders, ["sl_udp_drops"], send, DATAGRAMS, "a datagram")
            lives = _short_lives(below.children[0])
            rows += _program_rows(contenders, ["sl_udp_released"], lives, DATAGRAMS, "a UDP socket")
    print_table(
        f"Programs by the kernel's clock: {ROUNDS} rounds; states and drops are the whole machine's",
        (
            "first quartile / median / third quartile",
            "runs",
            "empty program, ns",
            "ours over it, ns",
            "all runs, ns",
        ),
        rows,
    )
    print_table(
        "Calls of sl_tcp_events for each connection, by kind",
        ("", *sides),
        [(name, *(f"{each.get(kind, 0):.1f}" for each in calls)) for kind, name in KINDS.items()],
    )


def _calls(floor: Object, cgroup_fd: int, load: Load) -> dict[int, float]:
    """Return how often the kernel calls sockops programs for each transaction, by kind of call."""
    table = floor.maps["kinds"]

    def counts() -> list[int]:
        return [int.from_bytes(table.lookup_index(kind), "little") for kind in range(table.max_entries)]

    before = counts()
    link = floor.programs["count_events"].attach_cgroup(cgroup_fd)
    try:
        load.seconds()
    finally:
        link.destroy()
    return {
        kind: (new - old) / load.transactions
        for kind, (new, old) in enumerate(zip(counts(), before, strict=True))
        if new != old
    }


# ---- memory


def _bytes_of(fd: int) -> int:
    found = re.search(r"^memlock:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def _print_memory(below: Cgroups) -> None:
    with _data_path(below.path) as (_, path):
        table = path.maps["tcp_sockets"]
        path.attach()
        empty = _bytes_of(table.fd)
        Cgroups.enter(below.children[0])
        with worker("connections", "127.0.0.1", str(HELD)) as holder:
            holder.ask()
            holder.answer()
            sockets = path.flush_tcp()
            full = _bytes_of(table.fd)
    print_table(
        f"Memory of tcp_sockets with {sockets} sockets, limit {table.max_entries}, as the kernel counts it",
        ("", "bytes"),
        [
            ("without any", str(empty)),
            ("each socket", f"{(full - empty) / sockets:.0f}"),
            ("of which value", str(table.value_size)),
        ],
    )


def run() -> None:
    """Measure, and print tables."""
    with ExitStack() as stack:
        binary = compiled_load(Path(stack.enter_context(TemporaryDirectory())))
        below = stack.enter_context(cgroups(2))
        floor = stack.enter_context(closing(Object(compiled(BENCH / "tcp_floor.bpf.c"), "bench")))
        floor.load()
        _print_programs(binary, below, floor)
        _print_rates(binary, below, floor)
        _print_memory(below)
