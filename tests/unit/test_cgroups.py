import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockledger.errors import UserError
from sockledger.kernel import cgroups
from sockledger.kernel.cgroups import CgroupRoot, find_root

V1 = "32 24 0:28 / /sys/fs/cgroup/memory rw,relatime shared:12 - cgroup cgroup rw,memory\n"
TMPFS = "24 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"


def mount(root: str, mount_point: str, optional: str = "shared:9 ") -> str:
    return f"30 24 0:27 {root} {mount_point} rw,nosuid {optional}- cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("mountinfo", "expected"),
    [
        pytest.param(mount("/", "/sys/fs/cgroup"), ["/sys/fs/cgroup"], id="unified"),
        pytest.param(
            TMPFS + V1 + mount("/", "/sys/fs/cgroup/unified"), ["/sys/fs/cgroup/unified"], id="hybrid"
        ),
        pytest.param(TMPFS + V1, [], id="only v1"),
        pytest.param("", [], id="nothing"),
        pytest.param(mount("/", "/a", optional=""), ["/a"], id="no optional fields"),
        pytest.param(mount("/", "/a", optional="shared:1 master:2 "), ["/a"], id="more optional fields"),
        pytest.param(mount("/", r"/my\040group\011\012\134"), ["/my group\t\n\\"], id="escaped"),
        pytest.param(mount("/", r"/a\134040b"), [r"/a\040b"], id="an escape that was escaped"),
        pytest.param(mount("/pod/x", "/bind") + mount("/", "/all"), ["/all", "/bind"], id="whole one first"),
        pytest.param(mount("/..", "/bind"), ["/bind"], id="outside the cgroup namespace"),
        pytest.param(mount("/", "/one") + mount("/", "/two"), ["/one", "/two"], id="order kept"),
        pytest.param("40 24 0:27 / /a rw - tmpfs cgroup2 rw\n", [], id="a source called cgroup2"),
    ],
)
def test_mounts(mountinfo: str, expected: list[str]) -> None:
    assert cgroups._cgroup2_mounts(mountinfo) == expected


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mountinfo"
    monkeypatch.setattr(cgroups, "MOUNTINFO", file)
    return file


def test_no_hierarchy(mountinfo: Path) -> None:
    mountinfo.write_text(TMPFS + V1)
    with pytest.raises(UserError, match="no cgroup v2 hierarchy is mounted: mount -t cgroup2"):
        find_root(None)


def test_override_needs_no_mountinfo(mountinfo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not on a cgroup v2 file system"):
        find_root(tmp_path)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{name}: .*: --path.cgroupfs must be a folder"):
        CgroupRoot(tmp_path / name)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(UserError):
        CgroupRoot(tmp_path)
    assert open_descriptors() == before


class Folder(CgroupRoot):
    """Any folder as if it were a cgroup."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.id = os.fstat(self.fd).st_ino


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cgroup.procs").touch()
    (tmp_path / "c d").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    made = Folder(tmp_path)
    yield made
    os.close(made.fd)


def test_walk(folder: Folder) -> None:
    found = dict(folder.walk())
    assert found.pop(folder.id) == "/"
    assert set(found.values()) == {"/a", "/a/b", "/c d"}
    assert found == {Path(f"{folder.path}{path}").stat().st_ino: path for path in found.values()}


def test_walk_passes_over_what_vanishes(folder: Folder) -> None:
    walk = folder.walk()
    assert next(walk)[1] == "/"
    found = []
    for _, path in walk:
        found.append(path)
        if path == "/a":
            (folder.path / "a" / "b").rmdir()
            (folder.path / "a" / "cgroup.procs").unlink()
            (folder.path / "a").rmdir()
    assert "/c d" in found
    assert "/a/b" not in found


@pytest.mark.parametrize(
    ("absolute", "expected"),
    [("/x/a", "/a"), ("/x/a/b (c)", "/a/b (c)"), ("/x", None), ("/xy/a", None)],
)
def test_relative(folder: Folder, absolute: str, expected: str | None) -> None:
    folder.path = Path("/x")
    assert folder._relative(absolute) == expected


def test_mount_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Something else is mounted over the first one."""
    there = find_root(None)
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(
        mount("/", "/proc").encode() + mount("/", str(there.path)).encode() + b"1 1 0:1 / /\xff x - y\n"
    )
    monkeypatch.setattr(cgroups, "MOUNTINFO", mountinfo)
    found = find_root(None)
    assert found.path == there.path
    os.close(found.fd)
    os.close(there.fd)
