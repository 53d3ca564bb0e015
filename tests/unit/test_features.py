"""What is said of a kernel by its release."""

import pytest

from sockledger.kernel.features import too_old


@pytest.mark.parametrize("release", ["6.1.0-50-amd64", "6.10.3", "6.18.44-fc-v595", "7.0", "10.0-rc1", "gnu"])
def test_new_enough(release: str) -> None:
    assert too_old(release) is None


@pytest.mark.parametrize("release", ["6.0.19", "5.15.0-130-generic", "5.4", "4.18.0-553.el8_10.x86_64"])
def test_too_old(release: str) -> None:
    line = too_old(release)
    assert line is not None
    assert line.startswith("Linux 6.1 or later is needed")
    assert line.endswith(f"this is {release}")
