"""A Kubernetes for the tests, and the exporter in a pod of it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.kubernetes import Kubernetes

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Kubernetes]:
    script = HERE / "cluster"
    try:
        subprocess.run([script, "up"], check=True)
        yield Kubernetes(script)
    finally:
        subprocess.run([script, "down"], check=True)
