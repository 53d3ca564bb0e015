"""The BPF object in other builds: with defines, or with changes to its source."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.machine import run

BPF = Path(__file__).parents[2] / "bpf"


@dataclass(frozen=True)
class Change:
    """One text of one file, replaced by another."""

    file: str
    before: str
    after: str


# About a millisecond.
PAUSE = "bpf_loop(20000, tick, NULL, 0);\n"
TICK = "static long tick(__u32 number, void *unused)\n{\n	return bpf_ktime_get_ns() == 0;\n}\n\n"
_LOOK = "if (cookie && s && is_seat_of(s, home, cookie, skb, direction)) {\n"
_CLAIM = "	if (vacant < WAYS)\n"
_SOMETIMES = "bpf_get_prandom_u32() % 32 == 0"

# Packets stop between their look at their home and their add to it, and before a claim, so that the table
# changes meanwhile.
SLOW_MOTION = (
    Change("ledger.h", "/* Accesses that", f"{TICK}/* Accesses that"),
    Change("traffic.h", _LOOK, f"{_LOOK}		if ({_SOMETIMES})\n			{PAUSE}"),
    Change("traffic.h", _CLAIM, f"	if ({_SOMETIMES})\n		{PAUSE}{_CLAIM}"),
)

# And each flush takes all seats back, from active sockets too; slowly, so that these add meanwhile.
_IDLE = "	if (!drain(s)) {\n"
_ALWAYS = "	if (!drain(s) || true) {\n"
HURRIED = (*SLOW_MOTION, Change("flush.h", _IDLE, _ALWAYS))
RESTLESS = (*SLOW_MOTION, Change("flush.h", _IDLE, f"{_ALWAYS}		{PAUSE}"))

# Each seat stays its owner's, so that there may be flushes without a grace period between them.
SETTLED = (Change("flush.h", _IDLE, "	if (!drain(s) && false) {\n"),)

# The flush of TCP stops between taking an entry and reading its socket, in the middle of reading, and before
# it looks whether the socket has ended meanwhile.
_HALF_READ = "	if (phase == LISTENING)\n		read_listener(sk, r);\n"
_TAKEN = "	there = cookie_at(sk) == s->cookie;\n"
_HAS_READ = "	life = __sync_fetch_and_or(&s->life, 0);\n"
SLOW_PULL = (
    *SLOW_MOTION[:1],
    Change("tcp_account.h", _HALF_READ, f"	{PAUSE}{_HALF_READ}"),
    Change("tcp_sockets.h", _TAKEN, f"{_TAKEN}	{PAUSE * 3}"),
    Change("tcp_sockets.h", _HAS_READ, f"	{PAUSE}{_HAS_READ}"),
)
# In the middle for so long that the socket may be at its next connection.
TORN_PULL = (
    *SLOW_MOTION[:1],
    Change("tcp_account.h", _HALF_READ, f"	{PAUSE * 10}{_HALF_READ}"),
)


def build(folder: Path, changes: tuple[Change, ...] = (), *, defines: str = "") -> bytes:
    """Compile a copy with *changes*, and return the object."""
    source, image = folder / "bpf", folder / "test.bpf.o"
    shutil.copytree(BPF, source)
    for change in changes:
        text = (source / change.file).read_text()
        assert text.count(change.before) == 1, f"{change.file} has not once: {change.before}"
        (source / change.file).write_text(text.replace(change.before, change.after))
    run("make", "--silent", "-C", str(source), f"OBJECT={image}", f"DEFINES={defines}")
    return image.read_bytes()


def is_caught(exact: Callable[[], bool], runs: int) -> bool:
    """Whether a change shows in each of *runs*.

    Races are chance: one may miss it, and then one more may not.
    """
    missed = [exact() for _ in range(runs)].count(True)
    return missed == 0 or (missed == 1 and not exact())
