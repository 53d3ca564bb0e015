"""Typed binding of libbpf.so.1, of only what is used; nothing else calls it.

Every call that fails raises OSError with the call's name. Source: bpf/libbpf.h and bpf/bpf.h of libbpf
1.1, the oldest supported, and include/uapi/linux/bpf.h.
"""

import ctypes
import errno
import logging
import mmap
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sockledger.errors import UserError, remedy
from sockledger.kernel.btf import Btf, Layout

logger = logging.getLogger(__name__)

BPF_ANY, BPF_NOEXIST = 0, 1
BPF_F_RDONLY = 1 << 3
BPF_LINK_TYPE_CGROUP = 3
_LOG_LINES = 64
_NAME_BYTES = 15  # of a map, without its NUL
_ITERATOR_BYTES = 32 * 1024  # what the kernel gathers for one read


class _BatchOpts(ctypes.Structure):
    """struct bpf_map_batch_opts."""

    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class _ObjectOpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts, its first members: libbpf reads as many as sz says."""

    _fields_ = (("sz", c_size_t), ("object_name", c_char_p))


class _ObjGetOpts(ctypes.Structure):
    """struct bpf_obj_get_opts, its first members."""

    _fields_ = (("sz", c_size_t), ("file_flags", c_uint32))


class _TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts, up to the last member that is used."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
    )


class _MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts, up to the last member that is set."""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
    )


class _ProgInfo(ctypes.Structure):
    """struct bpf_prog_info, up to the last member that is read."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("middle", ctypes.c_byte * 184),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
    )


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info, up to the last member that is read."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _CgroupLinkInfo(ctypes.Structure):
    """struct bpf_link_info with its member cgroup; the kernel zeroes cgroup_id when it detaches."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("cgroup_id", c_uint64),
        ("attach_type", c_uint32),
    )


_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_set_print": (c_void_p, (_PRINT,)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_mem": (c_void_p, (c_char_p, c_size_t, POINTER(_ObjectOpenOpts))),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "btf__raw_data": (c_void_p, (c_void_p, POINTER(c_uint32))),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(_TestRunOpts))),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_cgroup": (c_void_p, (c_void_p, c_int)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__open": (c_void_p, (c_char_p,)),
    "bpf_link__update_program": (c_int, (c_void_p, c_void_p)),
    "bpf_obj_get_opts": (c_int, (c_char_p, POINTER(_ObjGetOpts))),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__type": (c_int, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__btf_key_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__btf_value_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__map_flags": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__set_autocreate": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_map__set_initial_value": (c_int, (c_void_p, c_char_p, c_size_t)),
    "bpf_map_create": (
        c_int,
        (c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(_MapCreateOpts)),
    ),
    "bpf_map_lookup_elem": (c_int, (c_int, c_char_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_char_p, c_char_p, c_uint64)),
    "bpf_map_lookup_batch": (
        c_int,
        (c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), POINTER(_BatchOpts)),
    ),
    "bpf_map_update_batch": (c_int, (c_int, c_char_p, c_char_p, POINTER(c_uint32), POINTER(_BatchOpts))),
    "bpf_map_delete_elem": (c_int, (c_int, c_char_p)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
}

_Info = TypeVar("_Info", bound=ctypes.Structure)
_recent_log: deque[str] = deque(maxlen=_LOG_LINES)


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name, (restype, argtypes) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
    except (OSError, AttributeError) as error:
        raise UserError(
            f"libbpf.so.1 cannot be used ({error}): install libbpf 1.1 or later (Debian: apt install libbpf1)"
        ) from None
    library.libbpf_set_print(_log_callback)
    return library


def _log(_level: int, text: bytes, arguments: int) -> int:
    _libc.vsnprintf(_log_buffer, len(_log_buffer), text, arguments)
    for line in _log_buffer.value.decode("utf-8", "replace").splitlines():
        logger.debug("libbpf: %s", line)
        _recent_log.append(line)
    return 0


# On every ABI we build for a va_list argument is passed as a pointer, so it can be handed on as one.
_libc = ctypes.CDLL(None)
_libc.vsnprintf.argtypes = (c_char_p, c_size_t, c_char_p, c_void_p)
_log_callback = _PRINT(_log)
# The verifier's whole log comes as one line, its reason at the end. Only pages that are touched cost memory.
_log_buffer = (ctypes.c_char * (1 << 20)).from_buffer(mmap.mmap(-1, 1 << 20))


def version() -> str:
    """Return the version of the library in use, as ``v1.1.2``."""
    return str(_library().libbpf_version_string().decode())


@cache
def possible_cpus() -> int:
    """Return how many values a per-CPU map holds for each key."""
    return _checked(_library().libbpf_num_possible_cpus(), "libbpf_num_possible_cpus")


def _checked(result: int, call: str) -> int:
    if result < 0:
        raise OSError(-result, f"{call}: {os.strerror(-result)}")
    return result


def _not_null(pointer: int | None, call: str) -> int:
    if not pointer:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return pointer


class LoadError(Exception):
    """The kernel refused the object: its error, and the verifier's or libbpf's last word on it."""

    def __init__(self, error: OSError, log: list[str]) -> None:
        verifier = [line for line in log if not line.startswith(("libbpf: ", "processed ", "-- "))]
        if remedy(error):
            verifier = []  # it had no objection
        summary = [line for line in log if "failed" in line]
        cause = verifier[-1] if verifier else summary[0] if summary else ""
        self.errno = error.errno
        super().__init__(f"{error.strerror} ({cause})")


class Link:
    """An attachment. It ends with the last file descriptor that refers to it."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self.fd: int = _library().bpf_link__fd(pointer)

    @classmethod
    def open(cls, path: Path) -> "Link":
        """Return the link that is pinned at *path*."""
        return cls(_not_null(_library().bpf_link__open(os.fsencode(path)), f"bpf_link__open of {path}"))

    @property
    def id(self) -> int:
        """The link's number in the kernel; later links have higher ones."""
        return int(_info(self.fd, _CgroupLinkInfo()).id)

    @property
    def cgroup_id(self) -> int | None:
        """The cgroup that it is at, 0 if it was detached there; None if it is at none by its kind."""
        info = _info(self.fd, _CgroupLinkInfo())
        return int(info.cgroup_id) if info.type == BPF_LINK_TYPE_CGROUP else None

    def attached(self) -> bool:
        """Whether the kernel still runs the program; at a cgroup, its end or anybody may detach it."""
        return self.cgroup_id != 0

    def update(self, program: "Program") -> None:
        """Run another program from now on: no packet sees none, or both."""
        _checked(
            _library().bpf_link__update_program(self._pointer, program.pointer), f"updating {program.name}"
        )

    def destroy(self) -> None:
        """Let go: that detaches, unless the link is pinned."""
        _library().bpf_link__destroy(self._pointer)

    def run_iterator(self) -> bytes:
        """Run an iterator to its end, and return what it prints."""
        fd = _checked(_library().bpf_iter_create(self.fd), "bpf_iter_create")
        printed = b""
        try:
            while True:
                try:
                    part = os.read(fd, _ITERATOR_BYTES)
                except BlockingIOError:  # EAGAIN after each 1,000,000 objects: read on
                    continue
                if not part:
                    return printed
                printed += part
        finally:
            os.close(fd)


@dataclass(frozen=True)
class ProgramStats:
    """What the kernel counts for a program; the run figures only while kernel.bpf_stats_enabled is 1."""

    run_seconds: float
    runs: int
    recursion_misses: int

    def since(self, earlier: "ProgramStats") -> "ProgramStats":
        """Return what has come since *earlier*."""
        return ProgramStats(
            self.run_seconds - earlier.run_seconds,
            self.runs - earlier.runs,
            self.recursion_misses - earlier.recursion_misses,
        )


class Program:
    """A program of an object."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer
        self.name = str(_library().bpf_program__name(pointer).decode())

    @property
    def fd(self) -> int:
        """The file descriptor, from load on."""
        return _checked(_library().bpf_program__fd(self.pointer), "bpf_program__fd")

    @property
    def id(self) -> int:
        """The program's number in the kernel, from load on."""
        return int(_info(self.fd, _ProgInfo()).id)

    def set_autoload(self, autoload: bool) -> None:  # noqa: FBT001 - libbpf's own signature
        """Choose whether the object's load includes this program."""
        _checked(_library().bpf_program__set_autoload(self.pointer, autoload), "bpf_program__set_autoload")

    def attach(self) -> Link:
        """Attach to what the program's section names."""
        return Link(_not_null(_library().bpf_program__attach(self.pointer), "bpf_program__attach"))

    def attach_cgroup(self, cgroup_fd: int) -> Link:
        """Attach to a cgroup, beside other programs."""
        return Link(
            _not_null(
                _library().bpf_program__attach_cgroup(self.pointer, cgroup_fd), "bpf_program__attach_cgroup"
            )
        )

    def run(self, context: bytes = b"") -> int:
        """Run a program of type syscall once, to its end; return what it returns."""
        return run_program(self.fd, self.name, context)


class Table:
    """What is in a map. Keys and values are bytes."""

    def __init__(self, name: str, key_size: int, value_size: int) -> None:
        self.name = name
        self.key_size = key_size
        self.value_size = value_size

    @property
    def fd(self) -> int:
        """The file descriptor."""
        raise NotImplementedError

    def lookup(self, key: bytes) -> bytes | None:
        """Return a key's value, None if there is none."""
        return self._lookup(key, self.value_size)

    def lookup_index(self, index: int) -> bytes:
        """Return an array's value; IndexError beyond its end."""
        value = self.lookup(index.to_bytes(4, sys.byteorder))
        if value is None:
            raise IndexError(f"{self.name} has no element {index}")
        return value

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """Return a key's value on each possible CPU."""
        stride = (self.value_size + 7) & ~7
        data = self._lookup(key, stride * possible_cpus())
        if data is None:
            return None
        return [data[at : at + self.value_size] for at in range(0, len(data), stride)]

    def _lookup(self, key: bytes, size: int) -> bytes | None:
        value = ctypes.create_string_buffer(size)
        result = _library().bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        _checked(result, f"bpf_map_lookup_elem on {self.name}")
        return value.raw

    def make(self, key: bytes, value: bytes | None = None) -> bool:
        """Make an entry, of zeros by default, for a key that has none; return whether there was room.

        In a map that sets no entries aside there is none either where its memory cgroup is at its limit.
        """
        if value is None:
            value = bytes(self.value_size)
        result = _library().bpf_map_update_elem(self.fd, key, value, BPF_NOEXIST)
        if result in (-errno.E2BIG, -errno.ENOMEM):
            return False
        if result != -errno.EEXIST:
            _checked(result, f"bpf_map_update_elem on {self.name}")
        return True

    def update(self, key: bytes, value: bytes) -> None:
        """Set a key's value."""
        _checked(
            _library().bpf_map_update_elem(self.fd, key, value, BPF_ANY),
            f"bpf_map_update_elem on {self.name}",
        )

    def update_many(self, keys: bytes, values: bytes) -> None:
        """Set the values of keys that lie behind each other, up to the first that fails."""
        options = _BatchOpts(sz=ctypes.sizeof(_BatchOpts))
        count = c_uint32(len(keys) // self.key_size)
        _checked(
            _library().bpf_map_update_batch(self.fd, keys, values, byref(count), byref(options)),
            f"bpf_map_update_batch on {self.name}",
        )

    def delete(self, key: bytes) -> None:
        """Delete a key's entry, which must be there."""
        _checked(_library().bpf_map_delete_elem(self.fd, key), f"bpf_map_delete_elem on {self.name}")

    def clear(self) -> None:
        """Delete all entries of a hash map that nobody else changes meanwhile."""
        for keys, _ in list(self.batches()):
            for at in range(0, len(keys), self.key_size):
                self.delete(keys[at : at + self.key_size])

    def entries(self) -> int:
        """Return how many entries there are."""
        return sum(len(keys) for keys, _ in self.batches()) // self.key_size

    def batches(self, size: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, *size* or less at a time: keys, and values in the same order.

        Of a hash map or an array. An entry that is there all the while is in exactly one batch.
        """
        options = _BatchOpts(sz=ctypes.sizeof(_BatchOpts))
        cursor = ctypes.create_string_buffer(
            max(4, self.key_size)
        )  # the kernel keeps a bucket's number there
        first = True
        while True:
            keys = ctypes.create_string_buffer(size * self.key_size)
            values = ctypes.create_string_buffer(size * self.value_size)
            count = c_uint32(size)
            result = _library().bpf_map_lookup_batch(
                self.fd, None if first else cursor, cursor, keys, values, byref(count), byref(options)
            )
            if result == -errno.ENOSPC:  # a bucket holds more than the buffer
                size *= 2
                continue
            if result not in (0, -errno.ENOENT):
                _checked(result, f"bpf_map_lookup_batch on {self.name}")
            first = False
            yield keys.raw[: count.value * self.key_size], values.raw[: count.value * self.value_size]
            if result == -errno.ENOENT:
                return


class OpenMap(Table):
    """A map by its descriptor, whoever made it; the descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        info = _info(fd, _MapInfo())
        super().__init__(info.name.decode(), info.key_size, info.value_size)
        self.id = int(info.id)
        self.type = int(info.type)
        self.flags = int(info.map_flags)
        self.max_entries = info.max_entries
        self._fd = fd

    @property
    def fd(self) -> int:
        """The file descriptor."""
        return self._fd


class NewMap(OpenMap):
    """A map that is like another but for how many entries it has room for: to be put into a map of maps."""

    def __init__(self, like: "Map", entries: int) -> None:
        options = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=like.flags)
        name = like.name.encode()[:_NAME_BYTES]
        sizes = like.key_size, like.value_size, entries
        fd = _library().bpf_map_create(like.type, name, *sizes, byref(options))
        super().__init__(_checked(fd, f"bpf_map_create of {like.name}"))

    def close(self) -> None:
        """Let go of it: it lives on where it was put."""
        os.close(self.fd)


class Map(Table):
    """A map of an object; *key* and *value* are the layouts of its keys and values, if structs."""

    def __init__(self, pointer: int, btf: Btf) -> None:
        library = _library()
        super().__init__(
            library.bpf_map__name(pointer).decode(),
            library.bpf_map__key_size(pointer),
            library.bpf_map__value_size(pointer),
        )
        self._pointer = pointer
        # of our object: a map that is taken over brings those of another
        self._key_type = int(library.bpf_map__btf_key_type_id(pointer))
        self._value_type = int(library.bpf_map__btf_value_type_id(pointer))
        self._btf = btf

    @property
    def fd(self) -> int:
        """The file descriptor, from load on."""
        return _checked(_library().bpf_map__fd(self._pointer), "bpf_map__fd")

    @property
    def key(self) -> Layout:
        """The key's layout; ValueError if it is no struct."""
        return self._btf.layout(self._key_type)

    @property
    def value(self) -> Layout:
        """The value's layout; ValueError if it is no struct."""
        return self._btf.layout(self._value_type)

    def first(self) -> dict[str, int]:
        """Return an array's first value by member."""
        return self.value.unpack(self.lookup_index(0))

    @property
    def type(self) -> int:
        """The kernel's number of its type (enum bpf_map_type)."""
        return int(_library().bpf_map__type(self._pointer))

    @property
    def flags(self) -> int:
        """What it was made with."""
        return int(_library().bpf_map__map_flags(self._pointer))

    @property
    def max_entries(self) -> int:
        """How many entries fit; 0 where there is no such limit."""
        return int(_library().bpf_map__max_entries(self._pointer))

    @max_entries.setter
    def max_entries(self, entries: int) -> None:
        _checked(_library().bpf_map__set_max_entries(self._pointer, entries), "bpf_map__set_max_entries")

    def reuse(self, fd: int) -> None:
        """Take a map that is there already in the place of this one, whatever its sizes, before the load."""
        _checked(_library().bpf_map__reuse_fd(self._pointer, fd), f"bpf_map__reuse_fd of {self.name}")

    def leave_out(self) -> None:
        """Let the object's load not make this map; no program that is loaded may use it."""
        _checked(_library().bpf_map__set_autocreate(self._pointer, False), "bpf_map__set_autocreate")  # noqa: FBT003

    def set_initial_value(self, value: bytes) -> None:
        """Set a global variable's value, before the object's load."""
        _checked(
            _library().bpf_map__set_initial_value(self._pointer, value, len(value)),
            f"bpf_map__set_initial_value of {self.name}",
        )


class Object:
    """A BPF object file in memory: opened, then loaded, then closed."""

    def __init__(self, image: bytes, name: str) -> None:
        """Parse *image*; OSError if libbpf refuses it."""
        library = _library()
        options = _ObjectOpenOpts(sz=ctypes.sizeof(_ObjectOpenOpts), object_name=name.encode())
        self._pointer = _not_null(
            library.bpf_object__open_mem(image, len(image), byref(options)), "bpf_object__open_mem"
        )
        size = c_uint32()
        raw = _not_null(
            library.btf__raw_data(
                _not_null(library.bpf_object__btf(self._pointer), "bpf_object__btf"), byref(size)
            ),
            "btf__raw_data",
        )
        self.btf = Btf(ctypes.string_at(raw, size.value))
        self.programs = {
            program.name: program for program in map(Program, self._each(library.bpf_object__next_program))
        }
        self.maps = {
            found.name: found
            for found in (Map(pointer, self.btf) for pointer in self._each(library.bpf_object__next_map))
        }

    def _each(self, following: Any) -> Iterator[int]:
        pointer = following(self._pointer, None)
        while pointer:
            yield pointer
            pointer = following(self._pointer, pointer)

    def choose(self, name: str) -> None:
        """Let `load` load this program alone."""
        for program in self.programs.values():
            program.set_autoload(program.name == name)

    def load(self) -> None:
        """Make the maps and load the programs; LoadError if the kernel refuses."""
        _recent_log.clear()
        # a pending signal ends the verifier's work with EAGAIN, and libbpf tries only a few times
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            _checked(_library().bpf_object__load(self._pointer), "bpf_object__load")
        except OSError as error:
            raise LoadError(error, list(_recent_log)) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Free the object and close its descriptors; its links stay."""
        _library().bpf_object__close(self._pointer)


def run_program(fd: int, name: str, context: bytes = b"") -> int:
    """Run a program of type syscall once, to its end; return what it returns."""
    given = ctypes.create_string_buffer(context, len(context))  # the kernel writes it back
    options = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        ctx_in=ctypes.addressof(given) if context else None,
        ctx_size_in=len(context),
    )
    _checked(_library().bpf_prog_test_run_opts(fd, byref(options)), f"running {name}")
    return int(options.retval)


def program_stats(fd: int) -> ProgramStats:
    """Return the kernel's counts for a program."""
    info = _info(fd, _ProgInfo())
    return ProgramStats(info.run_time_ns / 1e9, info.run_cnt, info.recursion_misses)


def pin(fd: int, path: Path) -> None:
    """Keep a map, a program or a link in bpffs; it lives on there without us."""
    _checked(_library().bpf_obj_pin(fd, os.fsencode(path)), f"bpf_obj_pin at {path}")


def open_pin(path: Path, file_flags: int = 0) -> int:
    """Return a descriptor of what is pinned at *path*; a map's in a read-only bpffs by BPF_F_RDONLY."""
    options = _ObjGetOpts(sz=ctypes.sizeof(_ObjGetOpts), file_flags=file_flags)
    return _checked(_library().bpf_obj_get_opts(os.fsencode(path), byref(options)), f"bpf_obj_get of {path}")


def _info(fd: int, info: _Info) -> _Info:
    size = c_uint32(ctypes.sizeof(info))
    _checked(_library().bpf_obj_get_info_by_fd(fd, byref(info), byref(size)), "bpf_obj_get_info_by_fd")
    return info
