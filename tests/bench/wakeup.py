"""A SCHED_FIFO worker that sleeps over and over, and answers by how many seconds it woke late at worst."""

import os
import select
import sys
import time

from tests.bench.worker import obey

PRIORITY = 50
PERIOD = 0.0002


def main(cpu: int) -> None:
    """Run until standard input ends."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    late: list[float] = []
    while True:
        asleep_at = time.monotonic()
        time.sleep(PERIOD)
        late.append(time.monotonic() - asleep_at - PERIOD)
        if select.select([sys.stdin], (), (), 0)[0]:
            if not obey(lambda: max(late)):
                return
            late.clear()


if __name__ == "__main__":
    main(int(sys.argv[1]))
