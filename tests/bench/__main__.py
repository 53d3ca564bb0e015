"""Measures sockledger against what would be used in its place.

Usage: python -m tests.bench [packets|tcp|calls|flush|scrape|rendering|memory ...], as root.
"""

import os
import platform
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.bench import calls, flush, memory, packets, rendering, scrape, tcp

PARTS = {
    "packets": packets.run,
    "tcp": tcp.run,
    "calls": calls.run,
    "flush": flush.run,
    "scrape": scrape.run,
    "rendering": rendering.run,
    "memory": memory.run,
}


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def main(names: list[str]) -> int:
    """Run the named parts, or all."""
    if unknown := [name for name in names if name not in PARTS]:
        print(f"{__doc__}\nunknown: {', '.join(unknown)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)  # everything made is undone on the way out
    enabled = Path("/proc/sys/kernel/bpf_stats_enabled").read_text().strip()
    load = "{:.1f}, {:.1f}, {:.1f}".format(*os.getloadavg())
    print(
        f"Linux {platform.release()}, {os.cpu_count()} CPUs ({_processor()}), load {load}, "
        f"Python {platform.python_version()}, kernel.bpf_stats_enabled={enabled}"
    )
    try:
        for name in names or PARTS:
            PARTS[name]()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
