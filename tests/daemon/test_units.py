"""Under a real systemd, in namespaces of its own: services, instances, scopes, and a user's units."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.talk import BYTES
from tests.daemon.support import Surroundings
from tests.daemon.test_workloads import sent
from tests.kernel.machine import Cgroup
from tests.patience import eventually

from sockledger.workloads.naming import Workload

TALK = Path(__file__).parents[1] / "cluster" / "talk.py"

# Units that would look at the machine, not at what is here.
MASKED = (
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
    *("systemd-journald-audit.socket", "systemd-udevd.service", "dev-hugepages.mount", "dev-mqueue.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount"),
    "proc-sys-fs-binfmt_misc.automount",
)
# All without default dependencies: these would have the machine set up, and its /tmp emptied.
UNITS = {
    "test.target": "[Unit]\nDefaultDependencies=no\n",
    "web@.service": "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/bin/python3 /run/talk.py 5\n",
    # without logind, which would make the folder and name it
    "user-runtime-dir@.service": (
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        "ExecStart=/usr/bin/mkdir -p /run/user/%i\n"
    ),
    "user@.service.d/alone.conf": (
        "[Unit]\nDefaultDependencies=no\n[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n"
    ),
}
# And it may write nowhere but where nobody sees it.
BEGIN = """
mount --make-rprivate /
ip link set lo up
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd /run/lock
cp -r "$0" /run/systemd/system
cp "$1" /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var
mount --bind /proc/sys /proc/sys
for folder in / /proc/sys /sys; do mount -o remount,bind,ro $folder; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec env --ignore-environment container=test PATH="$PATH" /lib/systemd/systemd --system --unit=test.target
"""


class Systemd:
    """One that has a cgroup for the root of its hierarchy."""

    def __init__(self, cgroup: Cgroup, folder: Path) -> None:
        for name, text in UNITS.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for name in MASKED:
            (folder / name).symlink_to("/dev/null")
        namespaces = ("--cgroup", "--pid", "--mount", "--net", "--mount-proc", "--fork", "--kill-child")
        enter = f'echo 0 >{cgroup.processes}; exec unshare {" ".join(namespaces)} sh -ec "$@"'
        self._process = subprocess.Popen(["sh", "-ec", enter, "sh", BEGIN, str(folder), str(TALK)])
        eventually(self._is_up, "systemd")

    def _is_up(self) -> bool:
        assert self._process.poll() is None, "systemd has ended"
        return Path(f"/proc/{self._pid}/root/run/systemd/private").exists()

    @property
    def _pid(self) -> str:
        process = self._process.pid
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return children[0] if children else str(process)

    def run(self, *command: str) -> None:
        subprocess.run(
            [*("nsenter", "--all", f"--target={self._pid}", "env", "XDG_RUNTIME_DIR=/run/user/0"), *command],
            check=True,
        )

    def kill(self) -> None:
        self._process.kill()  # and so all that is in its pid namespace
        self._process.wait()


@pytest.fixture
def systemd(place: Surroundings, tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(place.cgroup, tmp_path / "units")
    try:
        yield made
    finally:
        made.kill()
        folders = sorted(place.cgroup.path.rglob("*/"), reverse=True)
        for folder in folders:
            eventually(lambda folder=folder: _is_removed(folder), f"{folder} is empty")  # type: ignore[misc]


def _is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def test_units(place: Surroundings, systemd: Systemd) -> None:
    daemon = place.run()
    truth: Counter[Workload] = Counter()

    def says(unit: str, number: int, *command: str) -> None:
        systemd.run(*command)
        truth[Workload(unit=unit)] += number * BYTES
        eventually(lambda: sent(daemon.settled()) == truth, f"{truth}")

    run = ("systemd-run", "--quiet", "--property=DefaultDependencies=no")
    talk = ("/usr/bin/python3", "/run/talk.py")
    says("web@a.service", 5, "systemctl", "start", "web@a.service")
    says(r"web@b\x2dc.service", 5, "systemctl", "start", r"web@b\x2dc.service")
    says("web@a.service", 5, "systemctl", "restart", "web@a.service")
    says("once.service", 7, *run, "--unit=once", *talk, "7", "0")
    says("job.scope", 8, *run, "--scope", "--unit=job", *talk, "8", "0")
    says("deep.service", 9, *run, "--slice=a-b-c", "--unit=deep", *talk, "9")
    systemd.run("systemctl", "start", "user@0.service")
    says("user@0.service/mine.service", 10, *run, "--user", "--unit=mine", *talk, "10")
    says("user@0.service/my.scope", 11, *run, "--user", "--scope", "--unit=my", *talk, "11", "0")
