"""What a kernel or its surroundings may lack, probed; its version only explains a refusal."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sockledger.errors import UserError

STATUS = Path("/proc/self/status")
BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
BTF = Path("/sys/kernel/btf/vmlinux")
PID_NAMESPACE = Path("/proc/self/ns/pid")
PROC_PID_INIT_INO = 0xEFFFFFFC  # include/linux/proc_ns.h
LOCKDOWN = Path("/sys/kernel/security/lockdown")
# Before it no program of type syscall takes a map that sets no entries aside.
LEAST_KERNEL = (6, 1)
NO_BTF = f"{BTF} is missing: a kernel with CONFIG_DEBUG_INFO_BTF is needed"


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability, by its number in include/uapi/linux/capability.h; *needed*: not without it."""

    number: int
    name: str
    purpose: str
    needed: bool

    def held(self, effective: int) -> bool:
        """Whether a process with these *effective* capabilities has it, or CAP_SYS_ADMIN that includes it."""
        including = (self.number, CAP_SYS_ADMIN) if self.number in (CAP_BPF, CAP_PERFMON) else (self.number,)
        return any(effective >> number & 1 for number in including)


CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
CAPABILITIES = (
    Capability(CAP_BPF, "CAP_BPF", "make maps and load programs", needed=True),
    Capability(CAP_PERFMON, "CAP_PERFMON", "load programs that read the kernel's own types", needed=True),
    Capability(12, "CAP_NET_ADMIN", "load and attach the cgroup programs", needed=True),
    Capability(2, "CAP_DAC_READ_SEARCH", "name cgroups by handle, not by walking all of them", needed=False),
    Capability(CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "mount bpffs where it is not", needed=False),
)


def effective_capabilities() -> int:
    """Return this process's effective capabilities, a bit each."""
    lines = STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)


def require() -> None:
    """Raise UserError unless the kernel and the privileges allow the daemon to run."""
    effective = effective_capabilities()
    missing = [each.name for each in CAPABILITIES if each.needed and not each.held(effective)]
    if missing:
        raise UserError(
            f"missing capabilities: {', '.join(missing)}: run as root, or grant them "
            "(systemd: AmbientCapabilities=; Kubernetes: securityContext.capabilities.add)"
        )
    if not BTF.exists():
        raise UserError(NO_BTF)


def too_old(release: str) -> str | None:
    """Return what is needed in place of a kernel of this *release*, None if it is new enough."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or tuple(map(int, found.groups())) >= LEAST_KERNEL:
        return None
    least = ".".join(map(str, LEAST_KERNEL))
    return f"Linux {least} or later is needed, or one to which its BPF is backported: this is {release}"


def sees_all_processes() -> bool:
    """Whether this is the first pid namespace, beyond which an iterator over files sees no process."""
    return PID_NAMESPACE.stat().st_ino == PROC_PID_INIT_INO


def forbids_reading() -> bool:
    """Whether the kernel lets no program read its memory, as TCP's and UDP's do (lockdown(7))."""
    return LOCKDOWN.exists() and "[confidentiality]" in LOCKDOWN.read_text()


@cache
def tells_calls() -> bool:
    """Whether the kernel tells what calls on sockets have moved (sock_send_length; since 6.3)."""
    return b"\0btf_trace_sock_send_length\0" in BTF.read_bytes()


def counts_runs() -> bool:
    """Whether the kernel counts runs of programs and their time (kernel.bpf_stats_enabled)."""
    return BPF_STATS.exists() and BPF_STATS.read_text().strip() == "1"
