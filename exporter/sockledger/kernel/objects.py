"""The compiled BPF objects that are part of the package."""

import platform
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files

from sockledger.errors import UserError, remedy
from sockledger.kernel.features import forbids_reading, too_old
from sockledger.kernel.libbpf import LoadError, Object, Program


def object_image(name: str = "sockledger") -> bytes:
    """Return an object as it was compiled; UserError if it was not."""
    try:
        return (files("sockledger.kernel") / f"{name}.bpf.o").read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: the BPF object is missing: build the package (make build)"
        ) from None


def open_object(name: str = "sockledger", *, image: bytes | None = None) -> Object:
    """Open an object of the package, or *image* in its place; UserError if it is damaged."""
    try:
        return Object(object_image(name) if image is None else image, name)
    except OSError as error:
        if remedy(error):
            raise
        raise UserError(f"the BPF object is damaged ({error.strerror}): reinstall sockledger") from None


@contextmanager
def program_alone(name: str) -> Iterator[Program]:
    """Load a program of the package that uses no map; LoadError, or UserError as of `open_object`."""
    with closing(open_object()) as opened:
        opened.choose(name)
        for unused in opened.maps.values():
            unused.leave_out()
        opened.load()
        yield opened.programs[name]


def advice(error: LoadError | OSError) -> str:
    """Return what to do about what the kernel refuses."""
    if short := remedy(error):
        return short
    if old := too_old(platform.release()):
        return old
    if forbids_reading():
        return (
            "the kernel is locked down (confidentiality): leave out what reads sockets "
            "(--no-collector.tcp --no-collector.listeners --no-collector.udp --no-collector.unix)"
        )
    return "see sockledger doctor"
