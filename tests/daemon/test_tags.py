"""Tags from the command line up to the page: born at 0, kept over SIGKILL, limits and their cgroups' ends."""

import os
import socket
import stat
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.daemon.support import SOCKLEDGER, Daemon, Page, Surroundings
from tests.daemon.test_bad_input import refused
from tests.kernel.machine import Cgroup, new_cgroup
from tests.patience import PATIENCE, eventually
from tests.scrapes import Scrapes

from sockledger import tags

IPV4_UDP = 28

Moved = tuple[int, int]  # bytes received and sent


def figures(page: Page, cgroup: str) -> dict[str, Moved]:
    """What has been moved by tag."""
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (name, labels), value in page.samples.items():
        of = dict(labels)
        for index, way in enumerate(("receive", "transmit")):
            if name == f"sockledger_tagged_{way}_bytes_total" and of["cgroup"] == cgroup:
                found[of["tag"]][index] += int(value)
    return {tag: (received, sent) for tag, (received, sent) in found.items()}


def command(place: Surroundings, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (SOCKLEDGER, *map(str, arguments), f"--path.bpffs={place.bpffs}"),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def tag(place: Surroundings, sock: socket.socket, *arguments: str) -> None:
    done = command(place, "tag", "--pid", os.getpid(), "--fd", sock.fileno(), *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def complaint(place: Surroundings, *arguments: object, status: int = 1) -> str:
    """Return the one line in which a command says why it fails."""
    done = command(place, *arguments)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("sockledger: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("sockledger: ").removesuffix("\n")


@contextmanager
def talker(cgroup: Cgroup) -> Iterator[socket.socket]:
    """A socket that talks to itself."""
    with cgroup.joined():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.bind(("127.0.0.1", 0))
        made.connect(made.getsockname())
        made.settimeout(PATIENCE)
        yield made


def talk(sock: socket.socket, size: int = 100) -> Moved:
    sock.send(bytes(size))
    sock.recv(size)
    return size + IPV4_UDP, size + IPV4_UDP


def plus(one: Moved, other: Moved) -> Moved:
    return one[0] + other[0], one[1] + other[1]


def test_from_the_command_line_to_the_page(place: Surroundings) -> None:
    """Tags, and what is counted by them, live on: with the next daemon, other limits, another cgroup."""
    place.pinned = True
    scrapes, truth = Scrapes(), defaultdict[str, Moved](lambda: (0, 0))

    def run(**limits: int) -> Daemon:
        text = ", ".join(f"{name}: {value}" for name, value in limits.items())
        return place.run(place.configure(f"persist: {{gone: 1s}}\nlimits: {{{text}}}"))

    def look(daemon: Daemon) -> None:
        for _ in range(2):
            page = daemon.settled("one")
            scrapes.take("one", page.text)
        assert figures(page, "/a") == figures(Page(scrapes.increases("one")), "/a") == truth

    daemon = run(cgroups=100)
    look(daemon)
    for turn in range(2):
        with new_cgroup(place.cgroup.path, "a") as a, talker(a) as one, talker(a) as other:
            talk(other)
            tag(place, one, "checkout-api", "--create")
            truth["checkout-api"] = plus(truth["checkout-api"], talk(one))
            tag(place, one, "search", "--replace")
            truth["search"] = plus(truth["search"], talk(one, 10))
            look(daemon)
            daemon.process.kill()
            daemon.process.wait()
            truth["search"] = plus(truth["search"], talk(one, 20))
            daemon = run(cgroups=200 + turn)
            truth["search"] = plus(truth["search"], talk(one, 30))
            done = command(place, "untag", "--pid", os.getpid(), "--fd", one.fileno())
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            talk(one)
            look(daemon)
        look(daemon)
    page = daemon.page()
    assert page.sum("overcounted_bytes_total") == page.sum("unattributed_bytes_total") == 0


def test_of_a_workload_as_many_are_kept(place: Surroundings) -> None:
    """The counters of others end with their cgroup, and are born again."""
    place.pinned = True
    scrapes, truth = Scrapes(ending=True), defaultdict[str, Moved](lambda: (0, 0))
    daemon = place.run(place.configure("persist: {gone: 1s}\nlimits: {tags: 2}"))
    for turn in range(3):
        with new_cgroup(place.cgroup.path, "a") as a, talker(a) as sock:
            for name in (f"a{turn}", f"b{turn}", "c"):
                tag(place, sock, name)
                shown = "other" if name == "c" else name
                truth[shown] = plus(truth[shown], talk(sock))
            for _ in range(2):
                page = daemon.settled("one")
                scrapes.take("one", page.text)
            assert figures(Page(scrapes.increases("one")), "/a") == truth
            assert figures(page, "/a").keys() >= {f"a{turn}", f"b{turn}", "other"}
        eventually(lambda: "/a" not in daemon.page("one").labels("receive_bytes_total", "cgroup"), "gone")
        scrapes.take("one", daemon.page("one").text)


def test_what_is_refused(place: Surroundings) -> None:
    place.pinned = True
    ours = os.getpid()
    with ExitStack() as stack:
        tcp, unix = (stack.enter_context(socket.socket(each)) for each in (socket.AF_INET, socket.AF_UNIX))
        null = stack.enter_context(Path(os.devnull).open())
        of = ("--pid", ours, "--fd", tcp.fileno())
        path = place.bpffs / "sockledger-tags/tags"
        assert complaint(place, "tag", *of, "a") == f"{path}: no sockledger counts tags here"
        daemon = place.run()
        what = f"descriptor {tcp.fileno()} of process {ours}"
        assert complaint(place, "untag", *of) == f"{what}: the socket has no tag"
        assert complaint(place, "tag", *of, "a", "--replace") == f"{what}: the socket has no tag"
        tag(place, tcp, "a")
        assert complaint(place, "tag", *of, "a", "--create") == f"{what}: the socket has a tag already"
        assert complaint(place, "tag", *of, "a b") == (
            "'a b' is no tag: 1 to 31 ASCII characters without spaces, and not 'other'"
        )
        fd = unix.fileno()
        assert complaint(place, "tag", "--pid", ours, "--fd", fd, "a") == (
            f"descriptor {fd} of process {ours}: is of AF_UNIX, and tags are for IPv4 and IPv6 sockets"
        )
        fd = null.fileno()
        assert complaint(place, "tag", "--pid", ours, "--fd", fd, "a") == (
            f"descriptor {fd} of process {ours}: is no socket"
        )
        assert complaint(place, "tag", "--pid", ours, "--fd", 999999, "a") == (
            f"descriptor 999999 of process {ours}: there is none"
        )
        with subprocess.Popen(["true"]) as gone:
            pass
        assert complaint(place, "tag", "--pid", gone.pid, "--fd", 3, "a") == (
            f"process {gone.pid}: there is none, or it has ended"
        )
        for arguments, text in (
            (("tag", *of), "the following arguments are required: NAME"),
            (("tag", *of, "a", "--create", "--replace"), "not allowed with argument"),
            (("tag", "--pid", "-1", "--fd", 1, "a"), "-1"),
            (("tag", "--pid", "x", "--fd", 1, "a"), '"x" is not a whole number'),
            (("untag", "--pid", 1), "the following arguments are required: --fd"),
        ):
            assert text in complaint(place, *arguments, status=2)
        daemon.stop()
        tag(place, tcp, "b")
        assert place.uninstall().returncode == 0
        assert not path.parent.exists()


def test_who_may(place: Surroundings) -> None:
    place.pinned = True
    place.run(place.configure("tags: {owner: daemon, group: 4242}"))
    folder = place.bpffs / "sockledger-tags"
    for path, mode in ((folder, 0o750), (folder / "tags", 0o660)):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, 1, 4242)


def test_without_pins_or_tags(place: Surroundings) -> None:
    """There is nothing to tag by, and nothing is shown."""
    with new_cgroup(place.cgroup.path, "a") as a, talker(a) as sock:
        for pinned, flags in ((False, ()), (True, ("--no-collector.tags",))):
            place.pinned = pinned
            daemon = place.run(*flags)
            with pytest.raises(FileNotFoundError, match="no sockledger counts tags here"):
                tags.tag(sock, "a", bpffs=place.bpffs)
            talk(sock)
            page = daemon.settled()
            assert "sockledger_tagged" not in page.text
            assert not page.labels("map_entries", "map") & {"tag_names", "tagged_totals"}
            daemon.stop()


def test_somebody_elses_folder(place: Surroundings, tmp_path: Path) -> None:
    """Where others may make links in bpffs, nothing behind one is touched."""
    place.pinned = True
    folder, elsewhere = place.bpffs / "sockledger-tags", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o711)
    (elsewhere / "tags").touch()
    folder.symlink_to(elsewhere)
    assert refused(place).endswith("bpf/sockledger-tags: is no folder: remove it\n")
    assert place.uninstall().returncode == 0
    assert (elsewhere / "tags").exists()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o711
    folder.unlink()
    folder.mkdir(mode=0o777)
    os.chown(folder, 65534, 65534)
    place.run()
    assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (0, 0o750)


def test_the_helper_needs_nothing_of_the_daemons() -> None:
    """An application may have no libbpf, and none of our libraries."""
    allowed = set(sys.stdlib_module_names) | {"sockledger", "sockledger.tags"}
    program = (
        "import sys; before = set(sys.modules); import sockledger.tags; "
        "print(*sorted({name for name in set(sys.modules) - before}))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {name for name in found.stdout.split() if name.partition(".")[0] not in allowed} == set()
    assert {name for name in found.stdout.split() if name.startswith("sockledger")} == {
        "sockledger",
        "sockledger.tags",
    }
