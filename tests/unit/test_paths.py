r"""Layouts of cgroup paths as they are found on hosts, each with the source that defines it."""

import pytest

from sockledger.workloads.paths import Identity, identify

ID, NODE, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4, "00ff" * 16
UID = "31dd0274-bb43-4975-bdbc-7e10047a23f8"
UID_ = UID.replace("-", "_")
HASH = "9729a196c4723b60ab401eaff722982d"
STEP = "j6v0k3xyz8q1o2p3r4s5t6u7w"
BURSTABLE = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"
KIND = (
    "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
    f"kubelet-kubepods-burstable-pod{UID_}.slice"
)
BESTEFFORT = f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice"
STATIC = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice"
USER = "user.slice/user-1000.slice/user@1000.service"


def pod(runtime: str, container_id: str = ID, uid: str = UID) -> Identity:
    return Identity(pod_uid=uid, container_id=container_id, runtime=runtime)


def container(runtime: str, container_id: str = ID) -> Identity:
    return Identity(container_id=container_id, runtime=runtime)


def named(runtime: str, name: str) -> Identity:
    return Identity(container=name, runtime=runtime)


def unit(name: str) -> Identity:
    return Identity(unit=name)


NOTHING = Identity()

# By source: paths with what they say.
LAYOUTS: dict[str, dict[str, Identity]] = {
    "kubernetes pkg/kubelet/cm/cgroup_manager_linux.go, qos_container_manager_linux.go: driver cgroupfs": {
        f"/kubepods/burstable/pod{UID}/{ID}": pod(""),
        f"/kubepods/besteffort/pod{UID}/{ID}": pod(""),
        f"/kubepods/pod{UID}/{ID}": pod(""),
        f"/kubepods/pod{UID}": pod("", ""),
        "/kubepods/burstable": NOTHING,
    },
    "kubernetes pkg/kubelet/cm/cgroup_manager_linux.go; containerd internal/cri/server/helpers.go": {
        f"/{BURSTABLE}/cri-containerd-{ID}.scope": pod("containerd"),
        f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope": pod("containerd"),
        f"/{BURSTABLE}": pod("", ""),
        "/kubepods.slice/kubepods-burstable.slice": unit("kubepods-burstable.slice"),
    },
    "kubernetes pkg/kubelet/config/common.go (applyDefaults): static pods": {
        f"/kubepods/burstable/pod{HASH}/{ID}": pod("", uid=HASH),
        f"/{STATIC}/cri-containerd-{ID}.scope": pod("containerd", uid=HASH),
        f"/kubepods/podchosen-by.hand/{ID}": pod("", uid="chosen-by.hand"),
    },
    "kubernetes --cgroup-root": {
        f"/my-root/kubepods/pod{UID}/{ID}": pod(""),
        f"/my.slice/my_root-kubepods.slice/my_root-kubepods-pod{UID_}.slice/crio-{ID}.scope": pod("cri-o"),
    },
    "cri-o internal/config/cgmgr; crun crun.1 (run.oci.systemd.subgroup)": {
        f"/{BURSTABLE}/crio-{ID}.scope": pod("cri-o"),
        f"/{BURSTABLE}/crio-{ID}.scope/container": pod("cri-o"),
        f"/{BURSTABLE}/crio-{ID}.scope/container/exec": pod("cri-o"),
        f"/kubepods/burstable/pod{UID}/crio-{ID}": pod("cri-o"),
        f"/{BURSTABLE}/crio-conmon-{ID}.scope": pod("", "")._replace(unit=f"crio-conmon-{ID}.scope"),
        f"/system.slice/crio-conmon-{ID}.scope": unit(f"crio-conmon-{ID}.scope"),
        f"/system.slice/crio-{ID}.scope": container("cri-o"),
    },
    "cri-dockerd core/docker_service.go": {
        f"/{BURSTABLE}/docker-{ID}.scope": pod("docker"),
    },
    "opencontainers/cgroups fs2/defaultpath.go: kubelet with systemd, containerd without": {
        f"/system.slice/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}": pod("containerd"),
    },
    "kata-containers src/runtime/virtcontainers/sandbox.go; gvisor pkg/shim/v1/runsc/service.go": {
        f"/kubepods/burstable/pod{UID}/kata_{ID}": pod(""),
        f"/kubepods/burstable/pod{UID}": pod("", ""),
    },
    "kind pkg/cluster/internal/kubeadm/config.go (cgroupRoot), images/base/files/etc/systemd": {
        f"/system.slice/docker-{NODE}.scope/{KIND}/cri-containerd-{ID}.scope": pod("containerd"),
        f"/docker/{NODE}/kubelet/kubepods/burstable/pod{UID}/{ID}": pod(""),
        f"/machine.slice/libpod-{NODE}.scope/container/{KIND}/cri-containerd-{ID}.scope": pod("containerd"),
        f"/system.slice/docker-{NODE}.scope/system.slice/containerd.service": container(
            "docker", NODE
        )._replace(unit="containerd.service"),
        f"/system.slice/docker-{NODE}.scope/kubelet.slice/kubelet.service": container(
            "docker", NODE
        )._replace(unit="kubelet.service"),
        f"/system.slice/docker-{NODE}.scope/init.scope": container("docker", NODE)._replace(
            unit="init.scope"
        ),
    },
    "k3s pkg/daemons/agent (kubeletArgs); rootless: k3s#3005": {
        f"/{BESTEFFORT}/cri-containerd-{ID}.scope": pod("containerd"),
        f"/{USER}/k3s-rootless.service/kubepods/pod{UID}/{ID}": pod(""),
        "/system.slice/k3s.service": unit("k3s.service"),
    },
    "moby contrib/dind: what a container makes for itself": {
        f"/{BURSTABLE}/cri-containerd-{NODE}.scope/docker/{ID}": pod("containerd", NODE),
        f"/{BURSTABLE}/cri-containerd-{NODE}.scope/kubepods/pod{HASH}/{ID}": pod("containerd", NODE),
        f"/docker/{NODE}/docker/{ID}": container("docker", NODE),
        f"/system.slice/docker-{NODE}.scope/system.slice/docker-{ID}.scope": container(
            "docker", NODE
        )._replace(unit=f"docker-{ID}.scope"),
        f"/docker/{NODE}/init": container("docker", NODE),
    },
    "moby daemon/oci_linux.go (withCgroups), daemon_unix.go (UsingSystemd)": {
        f"/system.slice/docker-{ID}.scope": container("docker"),
        f"/docker/{ID}": container("docker"),
        f"/{USER}/user.slice/docker-{ID}.scope": container("docker"),
        f"/my.slice/my-own.slice/docker-{ID}.scope": container("docker"),
        f"/actions_job/{ID}": container(""),
        f"/ecstasks.slice/ecstasks-{HASH}.slice/docker-{ID}.scope": container("docker"),
        "/system.slice/docker.service": unit("docker.service"),
        "/system.slice/docker.socket": unit("docker.socket"),
        "/system.slice/docker-cleanup.scope": unit("docker-cleanup.scope"),
    },
    "moby daemon/command/daemon_unix.go (newCgroupParent), buildkit identity/randomid.go (NewID)": {
        f"/system.slice/docker-{STEP}.scope": named("buildkit", "buildkit"),
        f"/docker/buildkit/{STEP}": named("buildkit", "buildkit"),
        f"/buildkit/{STEP}": named("buildkit", "buildkit"),
    },
    "containerd pkg/oci/spec.go; nerdctl pkg/cmd/container/run_cgroup_linux.go": {
        "/default/web-1": named("containerd", "web-1"),
        f"/default/{ID}": container("containerd"),
        f"/k8s.io/{ID}": container("containerd"),
        f"/system.slice/nerdctl-{ID}.scope": container("containerd"),
        f"/{USER}/user.slice/nerdctl-{ID}.scope": container("containerd"),
        f"/system.slice/cri-containerd-{ID}.scope": container("containerd"),
    },
    "podman libpod/container_internal_linux.go (getOCICgroupPath), oci_conmon_linux.go": {
        f"/machine.slice/libpod-{ID}.scope/container": container("podman"),
        f"/machine.slice/libpod-{ID}.scope": container("podman"),
        f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope/container": container("podman"),
        f"/{USER}/user.slice/libpod-{ID}.scope/container": container("podman"),
        f"/libpod_parent/libpod-{ID}": container("podman"),
        f"/libpod_parent/{OTHER}/libpod-{ID}": container("podman"),
        f"/my/parent/{OTHER}/libpod-{ID}": container("podman"),
        f"/machine.slice/libpod-conmon-{ID}.scope": unit(f"libpod-conmon-{ID}.scope"),
        f"/machine.slice/libpod-{ID}.scope/container/system.slice/nginx.service": container(
            "podman"
        )._replace(unit="nginx.service"),
        f"/{USER}/user.slice/podman-pause-1a2b3c4d.scope": unit(
            "user@1000.service/podman-pause-1a2b3c4d.scope"
        ),
    },
    "podman pkg/systemd/quadlet/quadlet.go (--cgroups=split)": {
        f"/system.slice/web.service/libpod-payload-{ID}": unit("web.service"),
        "/system.slice/web.service/runtime": unit("web.service"),
        f"/{USER}/app.slice/web.service/libpod-payload-{ID}": unit("user@1000.service/web.service"),
    },
    "runc libcontainer/specconv/spec_linux.go, crun src/libcrun/cgroup-systemd.c": {
        "/system.slice/runc-web.scope": named("", "web"),
        "/system.slice/crun-web.scope/container": named("", "web"),
    },
    "lxc src/lxc/cgroups/cgfsng.c, doc/lxc.system.conf": {
        "/lxc.payload.web1": named("lxc", "web1"),
        "/lxc.payload.web1/.lxc": named("lxc", "web1"),
        "/lxc.payload/web1": named("lxc", "web1"),
        "/lxc/web1/payload": named("lxc", "web1"),
        "/lxc/web1/monitor": NOTHING,
        "/lxc.monitor.web1": NOTHING,
        f"/lxc/web1/monitor/docker/{ID}": named("lxc", "web1"),
        f"/{USER}/app.slice/lxc-web1-0.scope/init": named("lxc", "web1"),
        "/lxc.payload.web1/system.slice/nginx.service": named("lxc", "web1")._replace(unit="nginx.service"),
        f"/lxc.payload.web1/system.slice/docker-{ID}.scope": named("lxc", "web1")._replace(
            unit=f"docker-{ID}.scope"
        ),
    },
    "incus internal/server/project/project.go (Instance)": {
        "/lxc.payload.shop_web1/init.scope": named("lxc", "shop_web1")._replace(unit="init.scope"),
    },
    "proxmox pve-container PVE/LXC.pm": {
        "/lxc/101/ns/system.slice/ssh.service": named("lxc", "101")._replace(unit="ssh.service"),
        "/lxc/101/ns": named("lxc", "101"),
    },
    "systemd src/nspawn/nspawn-cgroup.c, src/machine": {
        "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service": named(
            "systemd-nspawn", "web"
        )._replace(unit="nginx.service"),
        "/machine.slice/systemd-nspawn@my\\x2dweb.service/supervisor": named("systemd-nspawn", "my-web"),
        "/machine.slice/machine-my\\x2dweb.scope/payload": named("systemd-nspawn", "my-web"),
        "/machine.slice/machine-caf\\xc3\\xa9\\x00.scope/payload": named("systemd-nspawn", "café\\x00"),
        "/machine.slice/machine-qemu\\x2d1\\x2dvm1.scope/libvirt/emulator": unit(
            "machine-qemu\\x2d1\\x2dvm1.scope"
        ),
    },
    "systemd src/basic/cgroup-util.c (cg_path_get_unit), src/core/unit.c (unit_set_default_slice)": {
        "/system.slice/nginx.service": unit("nginx.service"),
        "/system.slice/system-getty.slice/getty@tty1.service": unit("getty@tty1.service"),
        "/system.slice/system-systemd\\x2dfsck.slice/systemd-fsck@dev-disk-by\\x2duuid-1.service": unit(
            "systemd-fsck@dev-disk-by\\x2duuid-1.service"
        ),
        "/a.slice/a-b.slice/foo.service": unit("foo.service"),
        "/system.slice/foo.service/payload/deeper": unit("foo.service"),
        "/system.slice/foo.service/bar.service": unit("foo.service"),
        "/system.slice/foo.service/default/worker": unit("foo.service"),
        "/system.slice/lxc/foo.service": unit("system.slice"),
        "/system.slice/foo@a:lxc.payload.web1.service": unit("foo@a:lxc.payload.web1.service"),
        "/init.scope": unit("init.scope"),
        "/system.slice": unit("system.slice"),
        f"/system.slice/var-lib-docker-overlay2-{ID}-merged.mount": unit(
            f"var-lib-docker-overlay2-{ID}-merged.mount"
        ),
        "/azure.slice/walinuxagent.service": unit("walinuxagent.service"),
        "/system.slice/run-p1234-i5678.service": unit("run-p1234-i5678.service"),
    },
    "systemd src/basic/cgroup-util.c (cg_escape)": {
        "/system.slice/_cpu.service": unit("cpu.service"),
        "/system.slice/__foo.service": unit("_foo.service"),
        "/_io.slice/a.service": unit("a.service"),
    },
    "systemd src/basic/cgroup-util.c (cg_path_get_user_unit), docs/DESKTOP_ENVIRONMENTS.md": {
        "/user.slice/user-1000.slice/session-3.scope": unit("session-3.scope"),
        f"/{USER}/init.scope": unit("user@1000.service/init.scope"),
        f"/{USER}/app.slice/nginx.service": unit("user@1000.service/nginx.service"),
        f"/{USER}/app.slice/app-gnome-firefox-1234.scope": unit(
            "user@1000.service/app-gnome-firefox-1234.scope"
        ),
        f"/{USER}/app.slice/app-foo.slice/foo@x.service/below": unit("user@1000.service/foo@x.service"),
        f"/{USER}": unit("user@1000.service"),
    },
    "an exporter in a container that sees its own part of the hierarchy: cgroup_namespaces(7)": {
        "/": NOTHING,
        f"/{KIND}/cri-containerd-{ID}.scope": pod("containerd"),
        "/init.scope": unit("init.scope"),
    },
    "what nobody has a name for": {
        "/mesos/1/leaf": NOTHING,
        "/rc/sshd": NOTHING,
        "/a b/c\\d\xff": NOTHING,
        "/x.serviced": NOTHING,
        f"/x{ID}": NOTHING,
    },
}


@pytest.mark.parametrize(
    ("path", "identity"), [(path, each) for layout in LAYOUTS.values() for path, each in layout.items()]
)
def test_layouts(path: str, identity: Identity) -> None:
    assert identify(path) == identity
