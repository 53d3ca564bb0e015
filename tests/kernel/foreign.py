"""Programs of others at a cgroup: two instructions that let everything pass, or nothing."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kernel.machine import Cgroup

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
