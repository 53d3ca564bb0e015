"""Observers only: no program ever refuses a packet, whatever else is attached."""

import os
import re
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from tests.kernel.foreign import (
    ALLOW_MULTI,
    ALLOW_OVERRIDE,
    BY_LINK,
    EGRESS,
    EXCLUSIVE,
    INGRESS,
    foreign_program,
)
from tests.kernel.ledger import attached, flush, totals_of
from tests.kernel.machine import Cgroup, Netns, run
from tests.kernel.objects import Change, build

from sockledger.errors import UserError
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.objects import object_image

# ---- by its instructions


class Listing:
    """A program's instructions, by address: what llvm-objdump prints."""

    def __init__(self, text: str) -> None:
        self._at = {
            int(address): instruction.strip()
            for address, instruction in re.findall(r"^\s*(\d+):\t(.*)$", text, re.MULTILINE)
        }
        addresses = sorted(self._at)
        following = dict(pairwise(addresses))
        self._before: dict[int, list[int]] = {address: [] for address in addresses}
        for address, instruction in self._at.items():
            jump = re.search(r"goto ([+-]\d+)", instruction)
            if jump:
                self._before[address + 1 + int(jump[1])].append(address)
            if instruction != "exit" and not instruction.startswith("goto"):
                self._before[following[address]].append(address)

    def returned(self) -> set[str]:
        """Return what last writes r0 on each way to an exit, "" where nothing does."""
        found: set[str] = set()
        seen: set[int] = set()
        left = [address for address, instruction in self._at.items() if instruction == "exit"]
        assert left
        while left:
            address = left.pop()
            if not self._before[address]:
                found.add("")
            for before in set(self._before[address]) - seen:
                seen.add(before)
                instruction = self._at[before]
                if re.match(r"[rw]0 [^=!<>]*=|call", instruction):
                    found.add(instruction)
                else:
                    left.append(before)
        return found


def test_listing_finds_other_results() -> None:
    listing = Listing("0:\tif r1 == 0 goto +2 <A>\n1:\tr0 = 1\n2:\tgoto +1 <B>\n3:\tcall 460\n4:\texit\n")
    assert listing.returned() == {"r0 = 1", "call 460"}
    assert Listing("0:\tr0 = 1\n1:\tif r2 > 3 goto -2 <A>\n2:\tw0 = 0\n3:\texit\n").returned() == {"w0 = 0"}
    assert Listing("0:\tr1 = 1\n1:\texit\n").returned() == {""}


@pytest.mark.parametrize(
    "program",
    ["sl_receive", "sl_transmit", "sl_meter_receive", "sl_meter_transmit"],
)
def test_returns_1(tmp_path: Path, program: str) -> None:
    image = tmp_path / "object"
    image.write_bytes(object_image())
    text = run("llvm-objdump", "--disassemble", "--no-show-raw-insn", str(image))
    # up to the next function; the labels within are symbols too
    listing = re.search(rf"<{program}>:\n(.*?)(?=\n[0-9a-f]+ <(?!LBB)|\Z)", text, re.DOTALL)
    assert listing
    assert Listing(listing[1]).returned() <= {"r0 = 1", "w0 = 1"}


# ---- beside others

COUNT = 1000


@pytest.fixture
def descendant(client: Cgroup, netns: Netns) -> Callable[[], int]:
    """Sends to itself from a cgroup; returns how many arrived."""

    def exchange() -> int:
        with (
            client.joined(),
            netns.entered(),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        ):
            here.bind(("127.0.0.1", 0))
            here.settimeout(10)
            for _ in range(COUNT):
                here.sendto(b"x" * 100, here.getsockname())
                assert len(here.recv(200)) == 100
        return COUNT

    return exchange


@pytest.mark.parametrize("attach_type", [INGRESS, EGRESS], ids=["ingress", "egress"])
@pytest.mark.parametrize(
    "flags",
    [EXCLUSIVE, ALLOW_OVERRIDE, ALLOW_MULTI, BY_LINK],
    ids=["exclusive", "override", "multi", "link"],
)
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
def test_beside_programs_in_descendants(
    root: CgroupRoot, client: Cgroup, descendant: Callable[[], int], attach_type: int, flags: int, first: bool
) -> None:
    def check(path: DataPath) -> None:
        assert descendant() == COUNT
        flush(path)
        assert totals_of(path, client.id) == {("udp", "ipv4"): (128 * COUNT, COUNT, 128 * COUNT, COUNT)}

    if first:
        with foreign_program(client, attach_type, flags), attached(root) as path:
            check(path)
    else:
        with attached(root) as path, foreign_program(client, attach_type, flags):
            check(path)


@pytest.mark.parametrize("attach_type", [INGRESS, EGRESS], ids=["ingress", "egress"])
@pytest.mark.parametrize("flags", [EXCLUSIVE, ALLOW_OVERRIDE], ids=["exclusive", "override"])
def test_refused_by_exclusive_program(client: Cgroup, attach_type: int, flags: int) -> None:
    """Where another program wants to be alone, ours says so in one line and leaves nothing behind."""
    with foreign_program(client, attach_type, flags):
        root = CgroupRoot(client.path)
        before = open_bpf()
        with pytest.raises(UserError) as caught, attached(root):
            pass
        os.close(root.fd)
        assert re.fullmatch(
            rf"{client.path}: the cgroup refuses program sl_(receive|transmit): another program .*",
            str(caught.value),
        )
        attached_now = run("bpftool", "cgroup", "show", str(client.path)).splitlines()[1:]
        assert len(attached_now) == 1, attached_now
        assert open_bpf() == before


def open_bpf() -> int:
    """Return how many BPF objects this process holds; what it does not hold has ended."""
    return sum("bpf" in str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())


# ---- what cannot be loaded


def test_damaged_object(root: CgroupRoot) -> None:
    with pytest.raises(UserError, match="the BPF object is damaged"):
        DataPath(root, cgroups=1, sockets=1, connections=1, image=b"no object")


def test_verifier_is_quoted(root: CgroupRoot, tmp_path: Path) -> None:
    image = build(tmp_path, (Change("flush.h", "(*taken)++;", "taken[1]++;"),))
    with pytest.raises(UserError, match="invalid read from stack") as refusal:
        DataPath(root, cgroups=1, sockets=1, connections=1, image=image)
    assert "\n" not in str(refusal.value)


SEAT_BYTES = 64


def test_no_memory(root: CgroupRoot) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with pytest.raises(UserError, match=r"Cannot allocate memory .*: allow the daemon more memory"):
        DataPath(root, cgroups=1, sockets=min(2 * memory // SEAT_BYTES, (1 << 32) - 1), connections=1)


def test_detached_twice(root: CgroupRoot, client: Cgroup) -> None:
    """A refused attach leaves a data path that can still be closed."""
    below = CgroupRoot(client.path)
    path = DataPath(below, cgroups=1, sockets=1, connections=1)
    with foreign_program(client, EGRESS, EXCLUSIVE), pytest.raises(UserError):
        path.attach()
    assert not path.links
    path.close()
    os.close(below.fd)
