"""`sockledger doctor`: what this kernel and these privileges allow, a line each."""

import os
import platform
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sockledger.errors import UserError
from sockledger.kernel import libbpf
from sockledger.kernel.attachments import hot_paths
from sockledger.kernel.cgroups import CgroupRoot, find_root
from sockledger.kernel.datapath import Parts, set_parts
from sockledger.kernel.features import (
    BTF,
    CAP_SYS_ADMIN,
    CAPABILITIES,
    NO_BTF,
    counts_runs,
    effective_capabilities,
    sees_all_processes,
    tells_calls,
    too_old,
)
from sockledger.kernel.filesystem import is_bpffs, require_mountable
from sockledger.kernel.links import HOT_PATH, attach_cgroup
from sockledger.kernel.lock import Lock
from sockledger.kernel.objects import open_object
from sockledger.kernel.pins import Pins


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. *needed* without *ok* means that the daemon cannot run."""

    subject: str
    ok: bool
    detail: str
    needed: bool = True

    def line(self) -> str:
        """Return it as it is printed."""
        mark = "ok  " if self.ok else "FAIL" if self.needed else "no  "
        return f"{mark}  {self.subject}: {self.detail}"


def examine(cgroupfs: Path | None, bpffs: Path) -> Iterator[Finding]:
    """Yield what is found. Nothing stays loaded or attached."""
    yield _kernel()
    yield from _capabilities()
    yield Finding("BTF", BTF.exists(), str(BTF) if BTF.exists() else NO_BTF)
    root: CgroupRoot | None = None
    try:
        root = find_root(cgroupfs)
        yield Finding("cgroup v2", ok=True, detail=str(root.path))
        yield _names(root)
    except UserError as error:
        yield Finding("cgroup v2", ok=False, detail=str(error))
    lock = _lock(bpffs)
    yield lock
    try:
        yield Finding("libbpf", ok=True, detail=libbpf.version())
    except UserError as error:
        yield Finding("libbpf", ok=False, detail=str(error))
        return
    if not BTF.exists():
        return  # no program loads
    programs = list(_programs())
    yield from programs
    if not all(program.ok for program in programs):
        return  # what follows is about programs that run
    if root is not None:
        yield _attachment(root)
        if lock.ok or not lock.needed:
            yield _other_daemons(root, bpffs)
    yield _calls()
    yield _older_connections()
    yield _run_statistics()


def _kernel() -> Finding:
    old = too_old(platform.release())
    return Finding("kernel", old is None, old or f"{platform.release()} {platform.machine()}", needed=False)


def _capabilities() -> Iterator[Finding]:
    effective = effective_capabilities()
    for capability in CAPABILITIES:
        ok = capability.held(effective)
        yield Finding(
            capability.name, ok, f"{'' if ok else 'missing: '}{capability.purpose}", capability.needed
        )


def _names(root: CgroupRoot) -> Finding:
    try:
        below = next((found for found in root.walk() if found[1] != "/"), None)
        if below is None:
            return Finding(
                "cgroup names", ok=True, detail="no cgroup below the root to try with", needed=False
            )
        root.path_of(below[0])
    except OSError as error:
        return Finding(
            "cgroup names", ok=False, detail=f"by walking the hierarchy ({error.strerror})", needed=False
        )
    return Finding("cgroup names", ok=True, detail="by handle", needed=False)


def _lock(bpffs: Path) -> Finding:
    try:
        if not is_bpffs(bpffs):
            require_mountable(bpffs)
            may = bpffs.is_dir() and bool(effective_capabilities() >> CAP_SYS_ADMIN & 1)
            detail = f"{bpffs} is none; {'the daemon mounts it' if may else f'mount -t bpf bpf {bpffs}'}"
            return Finding("bpffs", ok=False, detail=detail, needed=not may)
        if not (bpffs / "sockledger").exists():
            if not os.access(bpffs, os.W_OK | os.X_OK):
                return Finding("bpffs", ok=False, detail=f"{bpffs} is not writable, or not for this user")
            return Finding("bpffs", ok=True, detail=f"{bpffs}, no daemon runs")
        lock = Lock(bpffs)
        free = lock.try_acquire()
    except (UserError, PermissionError) as error:
        return Finding("bpffs", ok=False, detail=str(error))
    lock.release()
    detail = f"{bpffs}, {'no daemon runs' if free else 'a daemon runs: another would wait'}"
    if Pins(bpffs).there():
        detail += ", counts are pinned there"
    return Finding("bpffs", ok=True, detail=detail)


def _programs() -> Iterator[Finding]:
    """Load each program alone, with the maps it uses."""
    with closing(open_object()) as listed:
        names = sorted(name for name in listed.programs if tells_calls() or not name.startswith("sl_task_"))
    for name in names:
        with closing(open_object()) as tried:
            try:
                tried.choose(name)
                set_parts(tried, 0, Parts(tcp_histograms=True, peers=True, tasks=True), comms=1, tags=1)
                tried.load()
            except libbpf.LoadError as error:
                yield Finding(f"program {name}", ok=False, detail=str(error))
            else:
                yield Finding(f"program {name}", ok=True, detail="loads")


def _attachment(root: CgroupRoot) -> Finding:
    """Attach a program that only counts for itself, and take it off again."""
    with closing(open_object()) as tried:
        try:
            tried.choose("sl_meter_receive")
            tried.load()
            attach_cgroup(tried.programs["sl_meter_receive"], root.fd, str(root.path)).destroy()
        except (UserError, libbpf.LoadError) as error:
            return Finding("attaching", ok=False, detail=str(error))
    return Finding("attaching", ok=True, detail=f"{root.path} takes programs")


def _other_daemons(root: CgroupRoot, bpffs: Path) -> Finding:
    others = set(hot_paths(root.id)) - Pins(bpffs).link_ids(HOT_PATH)
    detail = f"one is attached to {root.path}: another would wait" if others else "none is attached"
    return Finding("other daemons", ok=True, detail=detail)


def _calls() -> Finding:
    on = tells_calls()
    detail = "what processes send and receive is counted in their own storage"
    if not sees_all_processes():
        detail = "each is added at once, which takes longer: this is a pid namespace of its own"
    if not on:
        detail = "not on this kernel (sock_send_length, Linux 6.3): no AF_UNIX, and nothing by process"
    return Finding("calls on sockets", on, detail, needed=False)


def _older_connections() -> Finding:
    found = sees_all_processes()
    detail = "found at start"
    if not found:
        detail = "found at their first packet: this is a pid namespace of its own (Kubernetes: hostPID)"
    return Finding("older TCP connections", found, detail, needed=False)


def _run_statistics() -> Finding:
    on = counts_runs()
    detail = "sockledger_bpf_program_run_seconds_total is exported"
    if not on:
        detail = "kernel.bpf_stats_enabled is 0 (it costs every packet): no run_seconds and runs"
    return Finding("run statistics", on, detail, needed=False)
