"""Waiting for what must happen: the machines that run tests are slow at times."""

import time
from collections.abc import Callable

PATIENCE = 30.0


def eventually(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE:g} s: {what or condition}"
        time.sleep(0.02)
