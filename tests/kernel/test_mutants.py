"""The harness is able to fail: each of these changes loses or doubles packets, and double entry tells.

Most are never flushed, as a flush may find a lost count before its storage is freed, an RCU grace
period later.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.kernel.ledger import NOTHING, attached, final_difference, flushing
from tests.kernel.objects import build_changed
from tests.kernel.traffic import SCALE, Generator, scaled

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Traffic

RUNS = 10 if os.environ.get("SOCKLEDGER_TEST_FULL") else 3
COUNTS = {"flood": 20000, "udp": 4000}


@dataclass(frozen=True)
class Mutant:
    """One change of one text."""

    file: str
    before: str
    after: str
    scenario: str = "flood"
    socket_hooks: bool = True
    period: float | None = None
    race: bool = False


END = """	__u32 before = __sync_lock_test_and_set(&s->state, CLOSED);

	asm volatile("" ::"r"(before) : "memory");
"""
ADD = """		if (sent)
			add_transmit(t, PENDING_BYTES(sent), PENDING_PACKETS(sent));
"""

MUTANTS = {
    # what is added after the end hook's drain stays in the storage, and dies with it
    "no second look": Mutant("traffic.h", "if (READ_ONCE(s->state) != FAST) {", "if (0) {", race=True),
    "late packets wait": Mutant(
        "traffic.h",
        "	if (state == CLOSED)\n		BRANCH(LATE);\n",
        """	if (state == CLOSED) {
		__sync_fetch_and_add(&s->pending[family_of(skb)][direction], PENDING(skb->len, segments));
		return 0;
	}
""",
    ),
    # x86 lets the drain's first read pass the store, so a hot path that still sees FAST may be overlooked. It
    # shows only where that read finds nothing pending, else the exchange is the barrier: so drain twice.
    "CLOSED by a plain store": Mutant(
        "drain.h", END, "	drain(s);\n	*(volatile __u32 *)&s->state = CLOSED;\n", race=True
    ),
    # what comes between the exchange and this is lost
    "cleared by a plain store": Mutant(
        "drain.h",
        ADD,
        ADD + "		*(volatile __u64 *)&s->pending[family][RECEIVE] = 0;\n",
        period=0,
        race=True,
    ),
    "never cleared": Mutant(
        "drain.h",
        "__sync_lock_test_and_set(pending, 0) : 0;",
        "READ_ONCE(*pending) : 0;",
        period=0.005,
    ),
    "unhooked UDP is fast": Mutant(
        "traffic.h",
        "if (state == WRITE_THROUGH && is_tcp(sk) && held_by_user(sk)) {",
        "if (state == WRITE_THROUGH && (sk->protocol == IPPROTO_TCP || sk->protocol == IPPROTO_UDP)) {",
        scenario="udp",
        socket_hooks=False,
    ),
}

# The same traffic with changes that are none.
EQUALS = {
    "unchanged": Mutant("drain.h", END, END),
    "drained twice": Mutant("drain.h", END, "	drain(s);\n" + END),
    "unhooked UDP": Mutant("drain.h", END, END, scenario="udp", socket_hooks=False),
}


def differences(mutant: Mutant, root: CgroupRoot, generator: Generator, folder: Path) -> list[Traffic]:
    image = build_changed(folder, mutant.file, mutant.before, mutant.after)
    found = []
    for _ in range(RUNS):
        with attached(root, image, socket_hooks=mutant.socket_hooks) as path:
            with flushing(path, mutant.period):
                generator.run(mutant.scenario, scaled(COUNTS[mutant.scenario]))
            found.append(final_difference(path, root))
    print(*found, sep="\n")
    return found


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_caught(mutant: Mutant, root: CgroupRoot, generator: Generator, tmp_path: Path) -> None:
    if mutant.race and SCALE > 1:
        pytest.skip("a race of a few nanoseconds: needs CPUs of its own and the whole count")
    found = differences(mutant, root, generator, tmp_path)
    assert found.count(NOTHING) <= RUNS // 10


@pytest.mark.parametrize("mutant", EQUALS.values(), ids=EQUALS.keys())
def test_no_false_alarm(mutant: Mutant, root: CgroupRoot, generator: Generator, tmp_path: Path) -> None:
    assert differences(mutant, root, generator, tmp_path) == [NOTHING] * RUNS


class HotPathFirst(DataPath):
    """Attaches in an order that is wrong: what begins and ends in between has no end hook."""

    generator: Generator

    def attach(self) -> None:
        self._attach_root("sl_receive")
        self._attach_root("sl_transmit")
        self.generator.run("tcp", scaled(200))
        time.sleep(0.2)
        for name in ("sl_released", "sl_udp_created"):
            self._attach_root(name)
        self._adopt()


def test_wrong_order_is_caught(root: CgroupRoot, generator: Generator) -> None:
    HotPathFirst.generator = generator
    for _ in range(RUNS):
        with attached(root, kind=HotPathFirst) as path:
            generator.run("tcp", scaled(200))
            assert all(map(int.__lt__, final_difference(path, root), NOTHING))
