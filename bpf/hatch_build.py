"""Build step of the wheel: compile the BPF half and pack its objects beside the modules that load them."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Runs bpf/Makefile. The objects are BPF bytecode, the same on every little-endian machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before *version* (standard or editable) is built."""
        folder = Path("exporter/sockledger/kernel")
        target = self.root / folder / "sockledger.bpf.o"
        subprocess.run(  # noqa: S603
            ["make", "--no-print-directory", "-C", str(Path(self.root) / "bpf"), f"OBJECT={target}"],  # noqa: S607
            check=True,
        )
        build_data["artifacts"] += [str(folder / name) for name in ("sockledger.bpf.o", "move.bpf.o")]
