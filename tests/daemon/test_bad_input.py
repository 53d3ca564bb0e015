"""What cannot work is refused in one clear line, with the right status, and leaves nothing behind."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from tests.daemon.support import SOCKLEDGER, Surroundings, free_port
from tests.kernel.machine import Netns, new_cgroup, run
from tests.patience import PATIENCE

from sockledger.kernel.objects import object_image

NEEDED = ("bpf", "perfmon", "net_admin")


def in_mounts(preparation: str) -> tuple[str, ...]:
    """A prefix: in a mount namespace of its own, after a shell command."""
    return ("unshare", "--mount", "--propagation=private", "sh", "-ec", f'{preparation}; exec "$@"', "sh")


def without(*capabilities: str) -> tuple[str, ...]:
    return ("setpriv", "--bounding-set=" + ",".join(f"-{name}" for name in capabilities))


def as_nobody(*capabilities: str) -> tuple[str, ...]:
    granted = ",".join(("-all", *(f"+{name}" for name in capabilities)))
    return (
        *("setpriv", "--reuid=65534", "--clear-groups"),
        *(f"--inh-caps={granted}", f"--ambient-caps={granted}"),
    )


def refused(place: Surroundings, *flags: str, prefix: tuple[str, ...] = (), status: int = 1) -> str:
    """Run the daemon and return the one line in which it says why it ends."""
    done = subprocess.run(
        (*prefix, SOCKLEDGER, *place.flags(free_port()), *flags),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert not done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("sockledger: ")
    assert "Traceback" not in done.stderr
    place.assert_clean()
    return done.stderr


@pytest.mark.parametrize("name", NEEDED)
def test_missing_capability(place: Surroundings, name: str) -> None:
    others = [f"CAP_{other.upper()}" for other in NEEDED if other != name]
    line = refused(place, prefix=without("sys_admin", name))
    assert f"CAP_{name.upper()}" in line
    assert not any(other in line for other in others)
    assert "run as root, or grant" in line


def test_no_root(place: Surroundings) -> None:
    line = refused(place, prefix=as_nobody())
    assert "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN: run as root" in line


def test_lock_folder_of_another_user(place: Surroundings) -> None:
    prefix = (*in_mounts(f"mount --bind {place.bpffs} /sys/fs/bpf"), *as_nobody(*NEEDED))
    line = refused(place, "--path.bpffs=/sys/fs/bpf", prefix=prefix)
    assert re.search(r"bpf/sockledger: Permission denied: the daemon must be able", line)


def test_three_capabilities_are_enough(place: Surroundings) -> None:
    """Nothing else is needed where bpffs is mounted and a folder in it is the daemon's."""
    daemon = place.run(prefix=("setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin"))
    assert daemon.lines("level=WARN") == daemon.lines("level=ERROR") == 0
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("/proc", "not on a cgroup v2 file system: mount one"), ("/nowhere", "No such file or directory")],
)
def test_cgroupfs_is_none(place: Surroundings, folder: str, reason: str) -> None:
    line = refused(place, f"--path.cgroupfs={folder}")
    assert f"{folder}: {reason}" in line
    assert "--path.cgroupfs" in line


def test_no_cgroup2_at_all(place: Surroundings) -> None:
    prefix = (*in_mounts("umount --all --types cgroup2"), "sh", "-c", 'exec "$0" run "$4" "$5"')
    line = refused(place, prefix=prefix)  # without --path.cgroupfs
    assert "no cgroup v2 hierarchy is mounted: mount -t cgroup2 none" in line
    assert "--path.cgroupfs" in line


def test_no_btf(place: Surroundings) -> None:
    line = refused(place, prefix=in_mounts("mount -t tmpfs none /sys/kernel/btf"))
    assert "/sys/kernel/btf/vmlinux is missing" in line
    assert "CONFIG_DEBUG_INFO_BTF" in line


def test_which_node_this_is_is_not_known(place: Surroundings) -> None:
    flag = place.configure("workloads: {kubernetes: {kubeconfig: in-cluster}}")
    line = refused(place, flag, prefix=("env", "--unset=NODE_NAME"))
    assert "workloads.kubernetes: nothing says which node this is: set NODE_NAME in the environment" in line


def test_networks_of_a_host_that_is_elsewhere(place: Surroundings, netns: Netns) -> None:
    flag = place.configure("node_networks: [host]")
    line = refused(place, flag, prefix=("nsenter", f"--net={netns.path}"))
    assert (
        "node_networks: this is not the host's network namespace, whose addresses they are: run there" in line
    )


def test_networks_in_a_file_that_is_not_there(place: Surroundings) -> None:
    line = refused(place, place.configure("networks_file: /nowhere/networks.yml"))
    assert (
        "/nowhere/networks.yml: cannot be read: No such file or directory; give a readable YAML file" in line
    )


def test_port_in_use(place: Surroundings) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        line = refused(place, f"--web.listen-address=127.0.0.1:{port}")
    assert f"--web.listen-address 127.0.0.1:{port}: address already in use: stop" in line


def test_address_of_nobody(place: Surroundings) -> None:
    line = refused(place, "--web.listen-address=192.0.2.1:80")
    assert "192.0.2.1:80: no interface has this address: give" in line


@pytest.mark.parametrize("address", ["10042", "localhost:70000", "::1:80", "[zz]:80", "a b:80"])
def test_bad_listen_address(place: Surroundings, address: str) -> None:
    line = refused(place, f"--web.listen-address={address}", status=2)
    assert "--web.listen-address" in line
    assert address in line


def test_unknown_flag(place: Surroundings) -> None:
    assert "--colector.traffic" in refused(place, "--colector.traffic", status=2)


def test_unknown_key(place: Surroundings) -> None:
    line = refused(place, place.configure("flush: {interval: 1s}\natach: {meters: []}\n"))
    assert "config.yml:2: atach: unknown key (did you mean attach?)" in line


def test_no_configuration_file(place: Surroundings) -> None:
    assert "/nowhere.yml: cannot be read: No such file" in refused(place, "--config.file=/nowhere.yml")


def test_bogus_libbpf(place: Surroundings) -> None:
    (place.folder / "libbpf.so.1").write_text("no library")
    line = refused(place, prefix=("env", f"LD_LIBRARY_PATH={place.folder}"))
    assert "libbpf.so.1 cannot be used" in line
    assert "apt install libbpf1" in line


def test_libbpf_without_a_function(place: Surroundings) -> None:
    library = place.folder / "libbpf.so.1"
    run("clang", "-shared", "-x", "c", "/dev/null", "-o", str(library))
    line = refused(place, prefix=("env", f"LD_LIBRARY_PATH={place.folder}"))
    assert re.search("libbpf.so.1 cannot be used .*undefined symbol.*install libbpf 1.1 or later", line)


def test_no_libbpf(place: Surroundings) -> None:
    found = next(line for line in run("ldconfig", "-p").splitlines() if "libbpf.so.1 " in line)
    hidden = str(Path(found.split()[-1]).resolve())
    line = refused(place, prefix=in_mounts(f"mount --bind /dev/null {hidden}"))
    assert "libbpf.so.1 cannot be used" in line


@contextmanager
def exclusive(place: Surroundings, program: Path, cgroup: Path) -> Iterator[None]:
    """Another's program on a cgroup, without BPF_F_ALLOW_MULTI."""
    pin = str(place.bpffs / "pass")
    run("bpftool", "prog", "load", str(program), pin, "type", "cgroup/skb")
    run("bpftool", "cgroup", "attach", str(cgroup), "egress", "pinned", pin)
    try:
        yield
    finally:
        run("bpftool", "cgroup", "detach", str(cgroup), "egress", "pinned", pin)
        Path(pin).unlink()


@pytest.mark.parametrize("where", ["there", "above"])
def test_exclusive_program(place: Surroundings, exclusive_program: Path, where: str) -> None:
    with new_cgroup(place.cgroup.path, "inner") as inner:
        root = {"there": place.cgroup.path, "above": inner.path}[where]
        with exclusive(place, exclusive_program, place.cgroup.path):
            line = refuse_with_another_attached(place, root)
    assert f"{root}: the cgroup refuses program sl_transmit: another program is attached there" in line
    assert "bpftool cgroup show" in line


def refuse_with_another_attached(place: Surroundings, root: Path) -> str:
    before = place.attached()
    done = subprocess.run(
        (SOCKLEDGER, *place.flags(free_port()), f"--path.cgroupfs={root}"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert place.attached() == before
    assert not (place.bpffs / "sockledger").exists()
    return done.stderr


@pytest.mark.parametrize("why", ["missing", "not allowed"])
def test_bpffs_cannot_be_mounted(place: Surroundings, why: str) -> None:
    folder = place.folder / "other"
    if why == "not allowed":
        folder.mkdir()
    prefix = without("sys_admin") if why == "not allowed" else ()
    line = refused(place, f"--path.bpffs={folder}", prefix=prefix)
    assert f"{folder}: not a BPF file system, and mounting one failed" in line
    assert f"mount -t bpf bpf {folder}" in line


def test_bpffs_is_mounted_if_it_is_not(place: Surroundings) -> None:
    folder = place.folder / "other"
    folder.mkdir()
    try:
        place.run(f"--path.bpffs={folder}").stop()
        assert os.path.ismount(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not (folder / "sockledger").exists()
    finally:
        run("umount", str(folder))


def test_too_few_descriptors(place: Surroundings) -> None:
    assert shutil.which("prlimit")
    line = refused(place, prefix=("prlimit", "--nofile=20"))
    assert "Too many open files" in line
    assert line.endswith("raise the limit of open files (LimitNOFILE=)\n")


def test_damaged_object(place: Surroundings) -> None:
    damaged = place.folder / "damaged"
    damaged.write_bytes(object_image()[:3000])
    prefix = in_mounts(f"mount --bind {damaged} {files('sockledger.kernel') / 'sockledger.bpf.o'}")
    assert "the BPF object is damaged" in refused(place, prefix=prefix)
    done = subprocess.run((*prefix, SOCKLEDGER, "doctor"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch("sockledger: the BPF object is damaged .*\n", done.stderr)


def doctor(place: Surroundings, *prefix: str) -> list[str]:
    """What the doctor says is not as the daemon needs it."""
    flags = (f"--path.cgroupfs={place.cgroup.path}", f"--path.bpffs={place.bpffs}")
    done = subprocess.run(
        (*prefix, SOCKLEDGER, "doctor", *flags), capture_output=True, text=True, check=False
    )
    assert not done.stderr
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == bool(failures)
    return failures


def test_doctor_finds_what_stops_the_daemon(place: Surroundings) -> None:
    assert doctor(place) == []
    no_btf = in_mounts("mount -t tmpfs none /sys/kernel/btf")
    assert [line.split(":")[0] for line in doctor(place, *no_btf)] == ["FAIL  BTF"]
    read_only = in_mounts(f"mount -o remount,bind,ro {place.bpffs}")
    [line] = doctor(place, *read_only)
    assert f"{place.bpffs} is not writable" in line
    assert "Read-only file system" in refused(place, prefix=read_only)
    assert "FAIL  bpffs" in [line.split(":")[0] for line in doctor(place, *as_nobody())]


def test_descriptors_that_nobody_passed_on(place: Surroundings) -> None:
    for value in ("abc", "77", "77,78"):
        line = refused(place, prefix=("env", f"SOCKLEDGER_INHERITED_FDS={value}"))
        assert "take it out of the environment" in line


def test_stderr_is_closed(place: Surroundings) -> None:
    shell = f"{SOCKLEDGER} check --config.file /no 2>&-; {SOCKLEDGER} run --config.file /no 2>&-; echo $?"
    done = subprocess.run(("sh", "-c", shell), capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_socket_activation_is_checked_before_waiting(place: Surroundings) -> None:
    place.run()
    command = (SOCKLEDGER, *place.flags(free_port()), "--web.systemd-socket")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "no socket activation file descriptors found" in done.stderr


def test_bpffs_hides_nothing(place: Surroundings) -> None:
    folder = place.folder / "other"
    folder.mkdir()
    (folder / "file").touch()
    line = refused(place, f"--path.bpffs={folder}")
    assert f"{folder}: neither a BPF file system nor an empty folder" in line
    assert (folder / "file").exists()
