"""Workloads have the names that people know them by, as far as their cgroups' paths have them."""

import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.daemon.support import Page, Surroundings
from tests.daemon.test_signals import reload
from tests.daemon.traffic import send_datagrams
from tests.kernel.machine import Cgroup, Netns, new_cgroup
from tests.patience import eventually
from tests.scrapes import Scrapes
from tests.unit.test_engines import Engine, engine
from tests.unit.test_pod_watch import FORBIDDEN, NODE, Api, api, kubeconfig, metadata
from tests.unit.test_pods import link

from sockledger.daemon import LOOK_SECONDS
from sockledger.workloads.naming import LABELS, Workload, more_of

__all__ = ["api", "engine"]  # fixtures

UID = "31dd0274-bb43-4975-bdbc-7e10047a23f8"
ID = "0123456789abcdef" * 4
USER = "user.slice/user-1000.slice/user@1000.service"
POD = Workload(pod=UID, container=ID[:12])

MOUNT = "mount -t tmpfs none /var/log"
MOUNT_LINKS = f'{MOUNT} && mkdir /var/log/containers && mount --bind "$0" /var/log/containers'


def with_links(folder: Path | None) -> tuple[str, ...]:
    """How to run a daemon that finds kubelet's links in a folder, or none: this machine may have some."""
    return ("unshare", "--mount", "sh", "-c", f'{MOUNT_LINKS if folder else MOUNT} && exec "$@"', str(folder))


NAMED_POD = Workload("shop", "web-0", "nginx")

WORKLOADS = {
    f"kubepods/burstable/pod{UID}/{ID}": POD,
    f"kubepods/burstable/pod{UID}/{ID}/nested": POD,
    f"kubepods/burstable/pod{UID}": Workload(pod=UID),
    f"system.slice/docker-{ID}.scope": Workload(container=ID[:12]),
    "lxc.payload.web1/system.slice/nginx.service": Workload(container="web1", unit="nginx.service"),
    "system.slice/nginx.service": Workload(unit="nginx.service"),
    "system.slice/nginx.service/worker": Workload(unit="nginx.service"),
    f"{USER}/app.slice/nginx.service": Workload(unit="user@1000.service/nginx.service"),
    "rc/nginx\udcff": Workload(cgroup="/rc/nginx\\xff"),
}


def make(place: Surroundings, stack: ExitStack, path: str) -> Cgroup:
    """Make a cgroup with all that are missing above it; on leaving *stack* they go again."""
    at = Cgroup(place.cgroup.path)
    for name in path.split("/"):
        below = Cgroup(at.path / name)
        at = below if below.path.exists() else stack.enter_context(new_cgroup(at.path, name))
    return at


def sent(page: Page) -> dict[Workload, int]:
    """What each workload has sent."""
    found: Counter[Workload] = Counter()
    for (name, labels), value in page.samples.items():
        if name == "sockledger_transmit_bytes_total":
            of = dict(labels)
            more = {label: text for label, text in of.items() if label.startswith(("label_", "annotation_"))}
            found[Workload(**{label: of[label] for label in LABELS}, more=more_of(more))] += int(value)
    return dict(found)


def test_named_by_their_paths(place: Surroundings, netns: Netns) -> None:
    """What shares a name is one workload; it goes on with the next cgroup, and the next daemon."""
    place.pinned = True
    truth: Counter[Workload] = Counter()
    daemon = place.run(prefix=with_links(None))
    for turn in range(2):
        with ExitStack() as stack:
            for number, (path, workload) in enumerate(WORKLOADS.items()):
                cgroup = make(place, stack, path)
                truth[workload] += send_datagrams(netns, cgroup, cgroup, number=number + turn + 1)
            assert sent(daemon.settled()) == truth
            daemon.process.kill()
        daemon = place.run(prefix=with_links(None))
        assert sent(daemon.settled()) == truth


def test_named_by_the_links_to_logs(place: Surroundings, netns: Netns, tmp_path: Path) -> None:
    """Also if the container is gone, and its link, before anybody flushes; and by the next daemon."""
    place.pinned = True
    folder = tmp_path / "containers"
    folder.mkdir()
    prefix = with_links(folder)
    daemon = place.run(place.configure("flush: {interval: 1h}"), prefix=prefix)
    truth: Counter[Workload] = Counter()
    with ExitStack() as stack:
        for turn, container_id in enumerate((ID, ID[::-1]), 1):
            pod = make(place, stack, f"kubepods/burstable/pod{UID}")
            with new_cgroup(pod.path, container_id) as cgroup:
                truth[NAMED_POD] += send_datagrams(netns, cgroup, cgroup, number=turn)
                made = link(folder, NAMED_POD.container, container_id, NAMED_POD.pod, UID)
                time.sleep(3 * LOOK_SECONDS)
            made.unlink()
        assert sent(daemon.settled()) == truth
    daemon.process.kill()
    daemon.process.wait()
    assert sent(place.run(prefix=prefix).settled()) == truth


def test_named_by_an_engine(place: Surroundings, netns: Netns, engine: Engine) -> None:
    flag = place.configure(f"workloads: {{docker: {{socket: {engine.path}}}}}")
    engine.name(ID, "/web")
    daemon = place.run(flag)
    with ExitStack() as stack:
        cgroup = make(place, stack, f"system.slice/docker-{ID}.scope")
        truth = send_datagrams(netns, cgroup, cgroup, number=1)
        eventually(lambda: sent(daemon.settled()) == {Workload(container="web"): truth})
        assert daemon.page().sum("name_source_up", source="docker") == 1
    assert engine.asked == {ID: 1}


def test_labelled_by_the_api_server(place: Surroundings, netns: Netns, tmp_path: Path, api: Api) -> None:
    """While it answers, changes its mind, goes, and is away at a restart: nothing falls, and all is there."""
    place.pinned = True
    scrapes = Scrapes()
    flag = place.configure(
        f"""workloads:
          kubernetes:
            kubeconfig: {kubeconfig(tmp_path, f"http://127.0.0.1:{api.server_port}")}
            node: {NODE}
            pod_labels: [app]
        """
    )
    folder = tmp_path / "containers"
    for name, container_id, uid in (("web-0", ID, UID), ("web-1", ID[::-1], UID[::-1])):
        link(folder, "nginx", container_id, name, uid)
    prefix = with_links(folder)
    truth: Counter[Workload] = Counter()
    api.pods = [metadata(UID, "web-0", labels={"app": "shop", "other": "x"})]
    with ExitStack() as stack:
        first = make(place, stack, f"kubepods/burstable/pod{UID}/{ID}")
        daemon = place.run(flag, prefix=prefix)

        def talk(cgroup: Cgroup, **changes: str) -> None:
            """Send something that is to be counted under this name."""
            workload = NAMED_POD._replace(**changes)
            truth[workload] += send_datagrams(netns, cgroup, cgroup, number=len(truth) + 1)
            eventually(lambda: scrape() == truth, f"{truth}")

        def scrape() -> dict[Workload, int]:
            scrapes.take("one", daemon.settled("one").text)
            return sent(Page(scrapes.increases("one")))

        talk(first, more='{"label_app":"shop"}')
        assert daemon.page().sum("name_source_up", source="kubernetes") == 1
        api.tell("MODIFIED", metadata(UID, "web-0", labels={"app": "store"}))
        eventually(lambda: '"store"' in daemon.settled().text)
        talk(first, more='{"label_app":"store"}')
        api.end()
        eventually(lambda: daemon.page().sum("name_source_up", source="kubernetes") == 0)
        # the connection's end may be one reason, that nobody listens another
        assert daemon.lines("the Kubernetes API", "tells nothing now", "level=WARN") in (1, 2)
        talk(first, more='{"label_app":"store"}')
        daemon.process.kill()
        daemon.process.wait()
        daemon = place.run(flag, prefix=prefix)
        talk(first, more='{"label_app":"store"}')
        second = make(place, stack, f"kubepods/burstable/pod{UID[::-1]}/{ID[::-1]}")
        talk(second, pod="web-1")
        other = Api(api.server_port)
        stack.callback(other.end)
        other.list_answer = 403, FORBIDDEN
        eventually(lambda: other.lists > 1)
        talk(second, pod="web-1")
        assert scrape() == truth


def test_named_otherwise(place: Surroundings, netns: Netns) -> None:
    """By other rules, after kill -9 and after SIGHUP; what was sent meanwhile stays with the name before."""
    place.pinned = True
    scrapes = Scrapes()
    rules = (
        (r"/jobs/(?P<container>\w+)", lambda path: Workload(container=path.split("/")[1])),
        (r"(?P<unit>\w)$", lambda path: Workload(unit=path[-1])),
        (r"^nothing(?P<pod>)", lambda path: Workload(cgroup=f"/{path}")),
    )
    truth: Counter[Workload] = Counter()
    with ExitStack() as stack:
        cgroups = {path: make(place, stack, path) for path in ("jobs/one/a", "jobs/one/b", "jobs/two/a")}

        def talk(name: Callable[[str], Workload]) -> None:
            for number, (path, cgroup) in enumerate(cgroups.items(), 1):
                truth[name(path)] += send_datagrams(netns, cgroup, cgroup, number=number)

        daemon = place.run()
        before = rules[-1][1]
        for turn, (rule, name) in enumerate((*rules, *rules)):
            for _ in range(2):
                scrapes.take("one", daemon.settled("one").text)
            talk(before)  # nobody has seen these yet
            flag = place.configure(f"workloads: {{rules: [{{match: '{rule}'}}]}}")
            if turn % 2:
                reload(daemon)
            else:
                daemon.process.kill()
                daemon.process.wait()
                daemon = place.run(flag)
            for _ in range(2):
                scrapes.take("one", daemon.settled("one").text)
            talk(name)
            before = name
        for _ in range(2):
            scrapes.take("one", daemon.settled("one").text)
        assert sent(Page(scrapes.increases("one"))) == truth


def test_protocol_and_family_hidden(place: Surroundings, netns: Netns) -> None:
    """Nothing is on a page twice, and what has neither label goes on."""
    place.pinned = True
    before: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    with new_cgroup(place.cgroup.path, "a") as a:
        for hidden in ("{}", "{protocol: never}", "{family: never, protocol: never}", "{}"):
            daemon = place.run(place.configure(f"networks: {{a: [127.0.0.0/8]}}\nlabels: {hidden}"))
            daemon.settled("one")
            send_datagrams(netns, a, a, number=5)
            with netns.entered(), a.joined(), ExitStack() as ends:
                server = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
                ends.enter_context(socket.create_connection(server.getsockname()))
                ends.enter_context(server.accept()[0])
            daemon.settled("one")
            page = daemon.settled("one")
            for direction in ("receive", "transmit"):
                everything = page.sum(f"{direction}_bytes_total", cgroup="/a")
                assert page.sum(f"peer_{direction}_bytes_total", cgroup="/a", peer="a") == everything
            now = {
                (name, labels): value
                for (name, labels), value in page.samples.items()
                if ("cgroup", "/a") in labels and name.endswith("_total") and "family" not in dict(labels)
            }
            assert len(now) > 10
            assert all(now[each] >= value for each, value in before.items())
            before = now
            daemon.process.kill()
            daemon.process.wait()
