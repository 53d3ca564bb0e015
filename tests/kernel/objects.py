"""The BPF object in other builds: with defines, or with a change to its source."""

import shutil
from pathlib import Path

from tests.kernel.machine import run

BPF = Path(__file__).parents[2] / "bpf"


def build(folder: Path, *, source: Path = BPF, defines: str = "") -> bytes:
    """Compile *source* and return the object."""
    image = folder / "test.bpf.o"
    run("make", "--silent", "--always-make", "-C", str(source), f"OBJECT={image}", f"DEFINES={defines}")
    return image.read_bytes()


def build_changed(folder: Path, file: str, before: str, after: str, *, defines: str = "") -> bytes:
    """Compile a copy in which one text of one file is replaced by another."""
    source = folder / "bpf"
    shutil.copytree(BPF, source)
    text = (source / file).read_text()
    assert text.count(before) == 1, f"{file} does not contain exactly once: {before}"
    (source / file).write_text(text.replace(before, after))
    return build(folder, source=source, defines=defines)
