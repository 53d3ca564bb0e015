"""Processes that do as they are told: a line on their standard input asks, a line on their output answers."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]


class Worker:
    """A module of the benchmark that runs as a program of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self) -> None:
        """Have it do its work."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Wait until it has done what it was asked to, and return what it says."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} has ended")
        return line


@contextmanager
def worker(module: str, *arguments: str) -> Iterator[Worker]:
    """Run a module until the end of the context."""
    with subprocess.Popen(
        [sys.executable, "-m", f"tests.bench.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_REPOSITORY,
        start_new_session=True,  # Ctrl-C is for us: workers end when their standard input does
    ) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()


def obey(work: Callable[[], object]) -> bool:
    """In the worker: wait for a question and answer it with what *work* returns. False at the end."""
    if not sys.stdin.readline():
        return False
    print(work(), flush=True)
    return True
