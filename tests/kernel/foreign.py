"""Programs of others at a cgroup: two instructions that let everything pass, or nothing; and sockops."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.machine import Cgroup, run

from sockledger.kernel.libbpf import Object

# include/uapi/linux/bpf.h
INGRESS, EGRESS = 0, 1
EXCLUSIVE, ALLOW_OVERRIDE, ALLOW_MULTI = 0, 1, 2
BY_LINK = -1  # always beside others
_PROG_TYPE_CGROUP_SKB = 8
PASS, DROP = 1, 0


class _LoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts, its first members."""

    _fields_ = (("sz", ctypes.c_size_t), ("attempts", ctypes.c_int), ("expected_attach_type", ctypes.c_int))


@contextmanager
def foreign_program(cgroup: Cgroup, attach_type: int, flags: int, verdict: int = PASS) -> Iterator[None]:
    """Attach a program of its own, by a link or as older tools do: only so can it be exclusive."""
    libbpf = ctypes.CDLL("libbpf.so.1")
    options = _LoadOpts(sz=ctypes.sizeof(_LoadOpts), expected_attach_type=attach_type)
    instructions = struct.pack("<BBhi", 0xB7, 0, 0, verdict) + struct.pack(
        "<BBhi", 0x95, 0, 0, 0
    )  # r0 = …; exit
    program = libbpf.bpf_prog_load(
        _PROG_TYPE_CGROUP_SKB, b"foreign", b"GPL", instructions, ctypes.c_size_t(2), ctypes.byref(options)
    )
    assert program >= 0, os.strerror(-program)
    target = os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if flags == BY_LINK:
            link = libbpf.bpf_link_create(program, target, attach_type, None)
            assert link >= 0, os.strerror(-link)
            yield
            os.close(link)
        else:
            result = libbpf.bpf_prog_attach(program, target, attach_type, flags)
            assert result == 0, os.strerror(-result)
            yield
            libbpf.bpf_prog_detach2(program, target, attach_type)
    finally:
        os.close(target)
        os.close(program)


# ---- sockops

# include/uapi/linux/bpf.h
OPS = (
    *("void", "timeout_init", "rwnd_init", "tcp_connect", "active_established", "passive_established"),
    *("needs_ecn", "base_rtt", "rto", "retrans", "state", "tcp_listen", "rtt"),
)
RTO_FLAG, RETRANS_FLAG, STATE_FLAG, RTT_FLAG = (1 << bit for bit in range(4))


def compile_sockops(folder: Path) -> bytes:
    image = folder / "sockops.bpf.o"
    multiarch = run("clang", "-print-multiarch").strip()
    run(
        *("clang", "-target", "bpf", "-O2", "-g", "-idirafter", f"/usr/include/{multiarch}"),
        *("-c", str(Path(__file__).with_name("sockops.bpf.c")), "-o", str(image)),
    )
    return image.read_bytes()


@dataclass(frozen=True)
class Wishes:
    """What a sockops program of another does; struct wishes in sockops.bpf.c."""

    flags: int = 0
    timeout: int = 0
    ecn: bool = False
    alone: bool = False


@dataclass(frozen=True)
class ForeignSockops:
    _object: Object

    def calls(self) -> dict[str, int]:
        """How often it was called, by op; only what is not 0."""
        table = self._object.maps["calls"]
        found = {op: int.from_bytes(table.lookup_index(number), "little") for number, op in enumerate(OPS)}
        return {op: number for op, number in found.items() if number}


@contextmanager
def foreign_sockops(image: bytes, cgroup: Cgroup, wishes: Wishes) -> Iterator[ForeignSockops]:
    program = Object(image, "foreign")
    fields = wishes.flags, wishes.timeout, wishes.ecn, wishes.alone
    program.maps[".rodata.wishes"].set_initial_value(struct.pack("=II??2x", *fields))
    program.load()
    target = os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        link = program.programs["foreign"].attach_cgroup(target)
        yield ForeignSockops(program)
        link.destroy()
    finally:
        os.close(target)
        program.close()
