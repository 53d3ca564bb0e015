"""What all parts of the benchmark use: cgroups, programs' figures, spreads and the table."""

import ctypes
import os
import re
import statistics
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sockledger.kernel.cgroups import find_root
from sockledger.kernel.libbpf import Link

BENCH = Path(__file__).parent
RESET_AT_CLOSE = struct.pack("=ii", 1, 0)  # struct linger, for SO_LINGER: no TIME_WAIT is left behind
CPU = max(os.sched_getaffinity(0))  # where what is measured runs; the first takes most interrupts

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


class Spread:
    """Values of several rounds, printed as ``minimum / median / maximum``."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = sorted(values)
        self.median = statistics.median(values)

    def __format__(self, spec: str) -> str:
        return " / ".join(format(value, spec) for value in (self.values[0], self.median, self.values[-1]))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below a header, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, ["-" * width for width in widths], *rows):
        first, *others = (
            f"{cell:<{width}}" if index == 0 else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  " + "  ".join((first, *others)), flush=True)


def verdict(target: str, *, met: bool) -> str:
    """Return a target with whether this run meets it."""
    return f"{target}: {'met' if met else 'MISSED'}"


# ---- cgroups


class Cgroups:
    """A cgroup of its own with *count* below it, and the way into them."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.children = [path / f"{number:03}" for number in range(count)]

    @staticmethod
    def enter(cgroup: Path) -> None:
        """Move this process there. Sockets belong to the cgroup in which they were made."""
        (cgroup / "cgroup.procs").write_text("0")


@contextmanager
def cgroups(count: int) -> Iterator[Cgroups]:
    """Make cgroups, and remove them at the end, when this process is back in its own."""
    root = find_root(None)
    os.close(root.fd)
    own = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    assert own
    made = Cgroups(root.path / f"sockledger-bench-{os.getpid()}", count)
    made.path.mkdir()
    try:
        for child in made.children:
            child.mkdir()
        yield made
    finally:
        Cgroups.enter(root.path / own[1])
        for child in made.children:
            if child.exists():
                child.rmdir()
        made.path.rmdir()


# ---- programs


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info, up to the last member that is read."""

    _fields_ = (
        ("head", ctypes.c_byte * 16),
        ("jited_bytes", ctypes.c_uint32),
        ("translated_bytes", ctypes.c_uint32),
        ("middle", ctypes.c_byte * 168),
        ("run_ns", ctypes.c_uint64),
        ("runs", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_instructions", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class ProgramFigures:
    """What the kernel says of a program."""

    run_ns: int
    runs: int
    instructions: int
    verified_instructions: int
    jited_bytes: int


class AttachedProgram:
    """The program behind a link."""

    def __init__(self, link: Link) -> None:
        described = Path(f"/proc/self/fdinfo/{link.fd}").read_text()
        found = re.search(r"^prog_id:\s*(\d+)$", described, re.MULTILINE)
        assert found
        self._fd: int = _libbpf.bpf_prog_get_fd_by_id(int(found[1]))
        assert self._fd >= 0, os.strerror(ctypes.get_errno())

    def figures(self) -> ProgramFigures:
        """Ask the kernel."""
        info = _ProgramInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        result = _libbpf.bpf_obj_get_info_by_fd(self._fd, ctypes.byref(info), ctypes.byref(size))
        assert result == 0, os.strerror(-result)
        return ProgramFigures(
            info.run_ns, info.runs, info.translated_bytes // 8, info.verified_instructions, info.jited_bytes
        )

    def close(self) -> None:
        """Forget the program."""
        os.close(self._fd)


@contextmanager
def run_statistics() -> Iterator[None]:
    """Have the kernel time every program, as kernel.bpf_stats_enabled=1 does, but not beyond this process."""
    fd = _libbpf.bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
    assert fd >= 0, os.strerror(-fd)
    try:
        yield
    finally:
        os.close(fd)


def compiled(source: Path) -> bytes:
    """Compile a BPF program as bpf/Makefile does."""
    multiarch = subprocess.run(
        ["clang", "-print-multiarch"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with TemporaryDirectory() as folder:
        target = Path(folder) / "object.o"
        flags = ["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror"]
        include = ["-idirafter", f"/usr/include/{multiarch}"]
        subprocess.run(["clang", *flags, *include, "-c", source, "-o", target], check=True)
        return target.read_bytes()
