"""Each test's own surroundings."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon.support import Surroundings, surroundings
from tests.kernel.machine import Netns, new_netns, run

from sockledger.kernel.cgroups import find_root

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def hierarchy() -> Path:
    return find_root(None).path


@pytest.fixture
def place(hierarchy: Path, tmp_path: Path) -> Iterator[Surroundings]:
    with surroundings(hierarchy, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def netns() -> Iterator[Netns]:
    with new_netns("daemon") as made:
        yield made


@pytest.fixture(scope="session")
def exclusive_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object with a program that lets all packets pass."""
    made = tmp_path_factory.mktemp("bpf") / "pass.bpf.o"
    run("clang", "-target", "bpf", "-O2", "-g", "-c", str(HERE / "pass.bpf.c"), "-o", str(made))
    return made
