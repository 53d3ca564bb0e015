"""The BPF object in other builds: with defines, or with changes to its source."""

import shutil
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
_TICK = "static long tick(__u32 number, void *unused)\n{\n	return bpf_ktime_get_ns() == 0;\n}\n\n"
_LOOK = "cookie && s && READ_ONCE(s->owner) == cookie"
_CLAIM = "	if (vacant < WAYS) {\n"
_SOMETIMES = "bpf_get_prandom_u32() % 32 == 0"

# Packets stop between their look at a seat and their add to it or claim, so that the table changes meanwhile.
SLOW_MOTION = (
    Change("ledger.h", "/* Accesses that", f"{_TICK}/* Accesses that"),
    Change(
        "traffic.h",
        f"	if ({_LOOK})\n",
        f"	bool found = {_LOOK};\n\n	if ({_SOMETIMES})\n		{PAUSE}	if (found)\n",
    ),
    Change("traffic.h", _CLAIM, f"	if ({_SOMETIMES})\n		{PAUSE}{_CLAIM}"),
)

# And each flush has all seats taken back.
RESTLESS = (*SLOW_MOTION, Change("flush.h", "s->idle = !drain(s);", "drain(s);\n	s->idle = 1;"))


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
