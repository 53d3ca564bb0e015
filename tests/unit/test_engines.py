"""Containers' names from an engine's socket: one that answers, and all the ways in which one may not."""

import json
import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest
from tests.patience import eventually
from tests.unit.test_names import FakeRoot, Notes

from sockledger.workloads import engines as module
from sockledger.workloads.engines import RETRY_SECONDS, EngineNames
from sockledger.workloads.names import WAIT_SECONDS, Names
from sockledger.workloads.naming import Missing, Naming, Workload
from sockledger.workloads.pods import PodNames

ID, OTHER = "a" * 64, "b" * 64


class Engine(ThreadingUnixStreamServer):
    """Answers as moby's GET /containers/ID/json, by path, with a status and a body; None: never."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.path = path
        self.answers: dict[str, tuple[int, bytes] | None] = {}
        self.asked: Counter[str] = Counter()
        self.released = threading.Event()

    def name(self, container_id: str, name: str) -> None:
        body = json.dumps({"Id": container_id, "Name": name, "State": {"Running": True}}).encode()
        self.answers[container_id] = 200, body


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        _, kind, container_id, what = self.path.split("/")
        assert (kind, what) == ("containers", "json")
        self.server.asked[container_id] += 1
        answer = self.server.answers.get(container_id, (404, b'{"message": "No such container"}'))
        if answer is None:
            self.server.released.wait(30)
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "engine.sock") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answered(names: EngineNames, container_id: str, runtime: str = "docker") -> str:
    """Ask until there is an answer."""
    names.find(runtime, container_id)
    eventually(lambda: names.look() and names.find(runtime, container_id) is not None)
    return names.find(runtime, container_id) or ""


def test_a_name(engine: Engine) -> None:
    engine.name(ID, "/web")
    names = EngineNames({"docker": engine.path})
    assert answered(names, ID) == "web"
    assert answered(names, OTHER) == "", "it knows no such container"
    assert not names.look()
    assert engine.asked == {ID: 1, OTHER: 1}
    assert names.up() == {"docker": True}


def test_who_may_know(engine: Engine) -> None:
    names = EngineNames({"podman": engine.path})
    assert names.know("podman")
    assert names.know("")
    assert not names.know("docker")
    assert not EngineNames().know("")


def test_a_container_of_either(engine: Engine, tmp_path: Path) -> None:
    """Where the path does not say whose it is, and one of them does not answer."""
    engine.name(ID, "/web")
    names = EngineNames({"docker": tmp_path / "nobody.sock", "podman": engine.path})
    assert answered(names, ID, runtime="") == "web"


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (200, b"no JSON"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"Name": 7}'),
        (200, b"\xff"),
        None,
    ],
)
def test_one_that_fails_is_asked_again(
    engine: Engine,
    answer: tuple[int, bytes] | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.1)
    clock = Clock()
    names = EngineNames({"docker": engine.path}, clock)
    engine.answers[ID] = answer
    assert names.find("docker", ID) is None
    eventually(lambda: bool(caplog.records))
    engine.name(OTHER, "/other")
    if answer:
        assert answered(names, OTHER) == "other"
    else:
        engine.answers[OTHER] = None
        for container_id in (OTHER, "c" * 64):
            names.find("docker", container_id)
        eventually(lambda: names._answers.qsize() == 3)
    for _ in range(3):
        assert not names.look()
        assert names.find("docker", ID) is None
    assert engine.asked == {ID: 1, OTHER: 1}, "one that hangs is left alone"
    engine.name(ID, "/web")
    clock.now += RETRY_SECONDS
    assert names.look()
    assert answered(names, ID) == "web"
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.WARNING, "containers are shown by their ids: an engine does not answer")
    ]


def test_one_container_that_hangs_is_not_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.1)
    engine.answers[ID] = None
    engine.name(OTHER, "/other")
    names = EngineNames({"docker": engine.path})
    names.find("docker", ID)
    assert answered(names, OTHER) == "other"


def test_one_that_has_none_tells_nothing_of_the_other(engine: Engine, tmp_path: Path) -> None:
    names = EngineNames({"docker": tmp_path / "nobody.sock", "podman": engine.path})
    names.find("", ID)
    eventually(lambda: not names._answers.empty())
    names.look()
    assert names.find("", ID) is None, "it may be the other's"


def test_signals_are_for_others(engine: Engine) -> None:
    before = set(threading.enumerate())
    EngineNames({"docker": engine.path})
    (thread,) = set(threading.enumerate()) - before

    def blocked() -> int:
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
        return int(mask, 16)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        eventually(lambda number=number: bool(blocked() >> (number - 1) & 1))  # type: ignore[misc]


def test_nobody_waits_for_one_that_hangs(engine: Engine) -> None:
    engine.answers[ID] = None
    names = EngineNames({"docker": engine.path})
    for _ in range(100):
        assert not names.look()
        assert names.find("docker", ID) is None
    eventually(lambda: engine.asked[ID] == 1)


def test_nothing_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a socket, nor anybody who listens."""
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
    for name in ("none.sock", "deaf.sock", "x" * 200):
        path = tmp_path / name
        names = EngineNames({"docker": path})
        assert names.find("docker", ID) is None
        eventually(lambda path=path: str(path) in [vars(each).get("socket") for each in caplog.records])  # type: ignore[misc]
        eventually(lambda names=names: names.up() == {"docker": False})  # type: ignore[misc]


def test_as_a_workload(engine: Engine, tmp_path: Path) -> None:
    """The id stands for a name that does not come, until it does."""
    clock = Clock()
    paths = {2: f"/system.slice/docker-{ID}.scope", 3: f"/system.slice/docker-{OTHER}.scope", 4: f"/lxc/{ID}"}
    engine.name(ID, "/web")
    engine.answers[OTHER] = 500, b""
    names = Names(
        FakeRoot(paths),
        Notes(),
        Naming(),
        PodNames(tmp_path / "none"),
        EngineNames({"docker": engine.path}, clock),
        clock=clock,
    )
    assert names.resolve(paths, {})[0] == {4: Workload(container=ID)}
    eventually(lambda: 2 in names.resolve(paths, {})[0])
    assert names.resolve(paths, {})[0][2] == Workload(container="web")
    clock.now += WAIT_SECONDS
    eventually(lambda: engine.asked[OTHER] == 1)
    named, missing = names.resolve(paths, {})
    assert named[3] == Workload(container=OTHER[:12])
    assert missing == {3: Missing({"container"})}, "what it had before a restart it keeps"
    engine.name(OTHER, "/db")
    clock.now += RETRY_SECONDS
    eventually(lambda: names.resolve(paths, {})[0][3] == Workload(container="db"))
    assert not names.resolve(paths, {})[1]
