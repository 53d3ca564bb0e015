"""What the daemon does while it runs, without a kernel."""

import asyncio
from pathlib import Path
from typing import cast

import pytest
from tests.unit.test_cli import DEFAULTS

from sockledger import daemon
from sockledger.config import RunOptions
from sockledger.daemon import Daemon
from sockledger.kernel.lock import Lock
from sockledger.ledger.ledger import Ledger


def test_a_flush_that_has_failed_is_soon_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However long the interval: till then the daemon is not ready, and systemd hears nothing of it."""
    flushes: list[bool] = []

    class Failing:
        def flush(self) -> None:
            flushes.append(len(flushes) == 1)
            if not flushes[-1]:
                raise OSError("failed")

    async def run() -> None:
        made = Daemon(RunOptions(**DEFAULTS), Lock(tmp_path), [])  # type: ignore[arg-type]
        flushing = asyncio.create_task(made._flush_for_ever(cast("Ledger", Failing())))
        async with asyncio.timeout(30):
            while not made._ready:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        flushing.cancel()

    monkeypatch.setattr(daemon, "RETRY_SECONDS", 0.01)
    asyncio.run(run())
    assert flushes == [False, True], "the next one comes after the interval, in 10 s"
