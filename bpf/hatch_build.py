"""Build step of the wheel: compile the BPF half and pack its object beside the module that loads it."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Runs bpf/Makefile. The object is BPF bytecode, the same on every little-endian machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before *version* (standard or editable) is built."""
        target = Path(self.root) / "exporter/sockledger/kernel/sockledger.bpf.o"
        subprocess.run(  # noqa: S603
            ["make", "--no-print-directory", "-C", str(Path(self.root) / "bpf"), f"OBJECT={target}"],  # noqa: S607
            check=True,
        )
        build_data["artifacts"].append(str(target.relative_to(self.root)))
