"""Soaks the daemon for ten minutes: 200,000 connections in 5,000 cgroups, a scrape each second.

Usage: python -m tests.soak, as root. Prints what it measured; exits 1 where a promise is broken.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.support import print_table
from tests.daemon.support import surroundings
from tests.kernel.machine import new_netns
from tests.soak.soak import LONG, MEMORY, Report, soak

from sockledger.kernel.cgroups import find_root


def megabytes(number: float) -> str:
    return f"{number / 1e6:.1f}"


def show(report: Report, seconds: float) -> None:
    truth = report.truth
    print_table(
        f"{truth['connections']} connections in {truth['cgroups']} cgroups, {seconds:.0f} s",
        ("at rest", "before", "after a third", "at the end"),
        [
            *(
                (f"entries of {name}", *(str(rest.entries[name]) for rest in report.rests))
                for name in report.rests[0].entries
            ),
            ("maps, MB", *(megabytes(rest.kernel_bytes) for rest in report.rests)),
            ("open files", *(str(rest.files) for rest in report.rests)),
            ("resident memory, MB", *(megabytes(rest.resident) for rest in report.rests)),
        ],
    )
    pages = report.resident
    print_table(
        f"{len(pages)} pages",
        ("", "median", "most"),
        [
            *(
                (
                    f"resident memory, MB, {which} third",
                    megabytes(statistics.median(part)),
                    megabytes(max(part)),
                )
                for which, part in zip(
                    ("first", "second", "last"),
                    (pages[len(pages) * third // 3 : len(pages) * (third + 1) // 3] for third in range(3)),
                    strict=True,
                )
            ),
            ("a flush, ms", *(f"{1000 * each(report.flushes):.1f}" for each in (statistics.median, max))),
        ],
    )
    print_table(
        "What a scraper has seen grow",
        ("", "by"),
        [(" ".join(k), str(v)) for k, v in report.increases.items()],
    )
    print(f"\n  resident memory may grow by {megabytes(MEMORY)} MB after the first third")
    for line in report.wrong:
        print(f"  BROKEN: {line}")


def main() -> int:
    start = time.monotonic()
    root = find_root(None).path
    with (
        tempfile.TemporaryDirectory() as folder,
        new_netns("soak") as netns,
        surroundings(root, Path(folder)) as place,
    ):
        report = soak(place, netns, LONG)
    show(report, time.monotonic() - start)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
