r"""What a cgroup's path says of whose it is: rules, each for what one runtime or manager makes.

Paths nest: a node of a cluster may be a container, and a container may have a systemd or containers in it.
The first pod of a path counts, with the container right below it; without a pod the first container: these
the host's own kubelet or runtime has made, and knows by name. What they make for themselves is theirs. A
unit is the nearest systemd's: below the container, if there is one.
"""

import os
import re
from typing import NamedTuple


class Identity(NamedTuple):
    """Whose a cgroup is; empty what its path does not say."""

    pod_uid: str = ""
    container_id: str = ""
    container: str = ""  # its name, where the path has that and no id
    runtime: str = ""  # that knows the container
    unit: str = ""


_END = "(?=/|$)"
_ID = "[0-9a-f]{64}"
_TOP = "(?<=^/)"  # such a name may be anything's further down
_BUILDKIT = "buildkit"


def _compiled(runtime: str, *patterns: str) -> list[tuple[str, re.Pattern[str]]]:
    return [(runtime, re.compile(f"/(?:{pattern}){_END}")) for pattern in patterns]


def _scope(prefix: str) -> str:
    """Return what finds a runtime's scope, with crun's own cgroup below."""
    return f"{prefix}-(?P<id>{_ID})\\.scope(?:/container)?"


# kubelet: pkg/kubelet/cm/cgroup_manager_linux.go (ToSystemd) and helpers_linux.go (GetPodCgroupNameSuffix).
# Any --cgroup-root may come first, as kind's kubelet.slice. A uid is 32 hex digits for static pods, and
# anything where the manifest has one. A runtime that is not told of the systemd driver makes one folder of
# slice, runtime and id, with colons (opencontainers/cgroups, fs2/defaultpath.go).
_POD = re.compile(
    r"/(?:kubepods(?:/burstable|/besteffort)?/pod(?P<uid>[^/]+)"
    r"|(?:[^/]+-)?kubepods(?:-burstable|-besteffort)?-pod(?P<escaped>[^/:-]+)\.slice)(?=[/:]|$)"
)

# Right below a pod: containerd internal/cri/server/helpers.go (getCgroupsPath), cri-o internal/config/cgmgr,
# moby daemon/oci_linux.go (withCgroups); crun's /container below (crun.1, run.oci.systemd.subgroup). CRI-O's
# monitor is no container, and where the slice has crio-ID without .scope, that is an empty sandbox.
_IN_POD = [
    *_compiled("containerd", _scope("cri-containerd")),
    *_compiled("cri-o", f"crio-(?P<id>{_ID})(?:\\.scope)?(?:/container)?"),
    *_compiled("docker", _scope("docker")),
    *_compiled("", f"(?:kata_)?(?P<id>{_ID})"),
    ("containerd", re.compile(f":cri-containerd:(?P<id>{_ID}){_END}")),
    ("cri-o", re.compile(f":crio:(?P<id>{_ID}){_END}")),
]

_CONTAINERS = [
    # moby daemon/oci_linux.go (withCgroups), cmd/dockerd cgroup drivers; also --cgroup-parent, and rootless
    *_compiled("docker", _scope("docker"), f"docker/(?P<id>{_ID})"),
    # steps of a build: moby daemon/command/daemon_unix.go (newCgroupParent), buildkit identity/randomid.go
    # (each has an id of its own, that nobody ever sees)
    *_compiled(_BUILDKIT, r"docker-[0-9a-z]{25}\.scope(?:/container)?", r"(?:docker/)?buildkit/[0-9a-z]{25}"),
    # podman libpod/container_internal_linux.go (getOCICgroupPath); of a Quadlet the unit is the better name
    *_compiled("podman", f"(?:{_ID}/)?libpod-(?P<id>{_ID})(?:\\.scope)?(?:/container)?"),
    # nerdctl pkg/cmd/container/run_cgroup_linux.go; containerd pkg/oci/spec.go: the client's namespace and id
    *_compiled("containerd", _scope("nerdctl"), f"cri-containerd-(?P<id>{_ID})\\.scope"),
    *_compiled(
        "containerd",
        f"(?:default|k8s\\.io)/(?P<id>{_ID})",
        _TOP + r"default/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)",
    ),
    *_compiled("cri-o", _scope("crio"), f"crio/crio-(?P<id>{_ID})"),
    # runc specconv/spec_linux.go, crun cgroup-systemd.c: who is told of no path
    *_compiled("", r"(?:runc|crun)-(?P<name>[A-Za-z0-9+._-]+)\.scope(?:/container)?"),
    # a parent that the user chose
    *_compiled("", f"(?P<id>{_ID})"),
    # lxc cgroups/cgfsng.c; Incus' projects (internal/server/project); Proxmox' lxc/VMID/ns (PVE/LXC.pm)
    *_compiled(
        "lxc", r"lxc\.payload[./](?P<name>[^/]+)", _TOP + r"lxc/(?P<name>[^/]+)(?:/payload|/ns)?(?!/monitor$)"
    ),
    *_compiled("lxc", r"lxc-(?P<name>[^/]+)-[0-9]+\.scope"),
    # systemd-nspawn, with a unit of its own or with machined's (machine_start_scope)
    *_compiled("systemd-nspawn", r"systemd-nspawn@(?P<escaped>[^/]+)\.service(?:/payload)?"),
    *_compiled("systemd-nspawn", r"machine-(?P<escaped>(?!qemu\\x2d)[^/]+)\.scope/payload"),
]

# systemd src/basic/unit-name.c (VALID_CHARS); the types that have cgroups (systemd.resource-control(5)).
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap|slice)")
# cgroup-util.c (cg_path_get_user_unit): below these another manager has its own units.
_MANAGER = re.compile(r"(?:user|capsule)@[^/]+\.service")
_ESCAPE = re.compile(rb"\\x(?!00)([0-9a-f]{2})")  # no label has a NUL


LEAF, CONTAINER, POD, UNIT = LEVELS = ("leaf", "container", "pod", "unit")


def cut(path: str, level: str | int) -> str:
    """Return a path up to the container, pod or unit that *level* asks for, or so many components of it.

    One that has no such part is returned whole, and so is each for `LEAF`. The unit is the host's.
    """
    if isinstance(level, int):
        return "/".join(path.split("/")[: level + 1])
    end = len(path)
    if level == UNIT:
        end = _units(path)[1] or end
    elif pod := _POD.search(path) if level == POD else None:
        end = pod.end()
    elif level == CONTAINER and (found := _pod(path) or _container(path)):
        end = found[1]
    return path[:end]


def identify(path: str) -> Identity:
    """Return whose a cgroup is, by its path below the root."""
    found, end = _pod(path) or _container(path) or (Identity(), 0)
    return found._replace(unit=_units(path[end:])[0])


def _pod(path: str) -> tuple[Identity, int] | None:
    """Return the first pod with its container, and where their part of the path ends."""
    if not (pod := _POD.search(path)):
        return None
    found = Identity(pod_uid=pod["uid"] or pod["escaped"].replace("_", "-"))  # no uid has a "_" of its own
    for runtime, pattern in _IN_POD:
        if match := pattern.match(path, pod.end()):
            return found._replace(container_id=match["id"], runtime=runtime), match.end()
    return found, pod.end()


def _container(path: str) -> tuple[Identity, int] | None:
    """Return the first container, and where its part of the path ends."""
    matches = [(runtime, match) for runtime, pattern in _CONTAINERS if (match := pattern.search(path))]
    if not matches:
        return None
    runtime, match = min(matches, key=lambda each: each[1].start())
    groups = match.groupdict()
    name = groups.get("name") or _unescaped(groups.get("escaped", ""))
    if runtime == _BUILDKIT:
        name = runtime
    return Identity(container_id=groups.get("id", ""), container=name, runtime=runtime), match.end()


def _unescaped(name: str) -> str:
    r"""Return a unit's part as it was before systemd wrote its odd characters as ``\xNN``."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(name)))


def _units(path: str) -> tuple[str, int]:
    """Return the unit that a path begins with, a user's with its manager's, and where the first of them ends.

    What a service makes below its own cgroup is its own. Where there is none it is the last slice, 0.
    """
    units: list[str] = []
    last_slice = ""
    at = first = 0
    for part in path.split("/")[1:]:
        at += 1 + len(part)
        name = part.removeprefix("_")  # where it would be called as one of the kernel's files (cg_escape)
        if not _UNIT.fullmatch(name):
            break
        if name.endswith(".slice"):
            last_slice = name
            continue
        units.append(name)
        first = first or at
        if not _MANAGER.fullmatch(name):
            break
    return "/".join(units) or last_slice, first
