"""How slow the machine is that runs the tests, and waiting on it for what must happen."""

import os
import time
from collections.abc import Callable

# What the tests divide their counts by; where it is not 1 they run in an emulator.
SCALE = int(os.environ.get("SOCKLEDGER_TEST_SCALE", "1"))
PATIENCE = 30.0 if SCALE == 1 else 120.0


def eventually(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE:g} s: {what or condition}"
        time.sleep(0.02)
