"""Pods' labels from an API server: one that answers, and all the ways in which one may not."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.patience import eventually
from tests.unit.test_names import FakeRoot, Notes
from tests.unit.test_pods import ID, OTHER, POD, UID, link

from sockledger.workloads import paths, pod_client
from sockledger.workloads import pod_watch as module
from sockledger.workloads.names import WAIT_SECONDS, Names
from sockledger.workloads.naming import Missing, Naming, Workload, more_of
from sockledger.workloads.pod_watch import Pod, PodWatch
from sockledger.workloads.pods import PodNames

NODE = "worker-1.example.org"
JITTER_SECONDS, STEADY_SECONDS = module.JITTER_SECONDS, module.STEADY_SECONDS
USUAL = {name: seconds for name, seconds in vars(module).items() if name.endswith("_SECONDS")}
Waits = tuple[float, ...]
Answer = tuple[int, bytes] | tuple[int, bytes, str]  # status, body, and what that is, as a rule JSON


def metadata(uid: str = UID, name: str = "web-0", **more: object) -> dict[str, Any]:
    return {"metadata": {"namespace": "shop", "name": name, "uid": uid, **more}}


class Api(ThreadingHTTPServer):
    """Answers as kube-apiserver does when it is asked for the metadata of one node's pods."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.pods: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []  # since the list
        self.lists = self.watches = self.cuts = 0
        self.page = 1000  # so many pods are told at once
        self.tokens = {"secret"}
        self.list_answer: Answer | None = None
        self.watch_answer: Answer | None = None
        self.told = threading.Condition()
        self.ended = False
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def tell(self, what: str, pod: dict[str, Any]) -> None:
        with self.told:
            pod["metadata"]["resourceVersion"] = str(1001 + len(self.events))
            self.events.append({"type": what, "object": pod})
            self.told.notify_all()

    def cut(self) -> None:
        """Have all watches end in the middle."""
        with self.told:
            self.cuts += 1
            self.told.notify_all()

    def end(self) -> None:
        with self.told:
            if self.ended:
                return
            self.ended = True
            self.told.notify_all()
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert url.path == "/api/v1/pods"
        assert asked["fieldSelector"] == f"spec.nodeName={NODE}"
        if self.headers["Authorization"].removeprefix("Bearer ") not in self.server.tokens:
            self.answer((401, b"{}"))
            return
        if asked.get("watch") == "true":
            assert "as=PartialObjectMetadata;" in self.headers["Accept"]
            assert asked["allowWatchBookmarks"] == "true"
            self.watch(int(asked["resourceVersion"]))
        else:
            assert "as=PartialObjectMetadataList;" in self.headers["Accept"]
            # where to go on has a version of its own
            page = int(asked["continue"]) if "continue" in asked else 0
            assert asked.get("resourceVersion") == (None if page else "0")
            self.server.lists += page == 0
            version = 1000 * self.server.lists  # of other objects there are many
            about = {"resourceVersion": str(version)}
            last = page + self.server.page
            if last < len(self.server.pods):
                about["continue"] = str(last)
            listed = {"metadata": about, "items": self.server.pods[page:last]}
            self.answer(self.server.list_answer or (200, json.dumps(listed).encode()))

    def answer(self, answer: Answer) -> None:
        self.send_response(answer[0])
        if kind := answer[2] if len(answer) == 3 else "application/json":
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def watch(self, version: int) -> None:
        self.server.watches += 1
        if self.server.watch_answer:
            self.answer(self.server.watch_answer)
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000000")  # fewer are a cut
        self.end_headers()
        with self.server.told:
            cuts = self.server.cuts
            while not self.server.ended and self.server.cuts == cuts:
                for event in self.server.events[version % 1000 :]:
                    self.wfile.write(json.dumps(event).encode() + b"\n")
                version = len(self.server.events)
                self.server.told.wait()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JITTER_SECONDS", 0.0)
    monkeypatch.setattr(module, "PACE_SECONDS", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(module, "STEADY_SECONDS", 0.2)
    monkeypatch.setattr(pod_client, "PACE_SECONDS", 0.01)


def answers(watch: PodWatch) -> bool:
    watch.look()
    return watch.answers


def assert_unanswered(api: Api, watch: PodWatch) -> None:
    """It comes to nothing, nor does it answer in between, however often it is tried."""
    eventually(lambda: not answers(watch))
    before = api.watches
    while api.watches < before + 9:
        assert not answers(watch)
        time.sleep(0.001)


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    yield server
    server.end()


Watching = Callable[..., PodWatch]


@pytest.fixture
def watching(api: Api, tmp_path: Path) -> Iterator[Watching]:
    """Makes those that ask the server, or another."""
    made: list[PodWatch] = []

    def watch(url: str = f"http://127.0.0.1:{api.server_port}", **chosen: list[str]) -> PodWatch:
        made.append(PodWatch(NODE, kubeconfig(tmp_path, url), **chosen))
        return made[-1]

    yield watch
    parked = [park(each) for each in made]
    api.end()
    assert all(each.wait(30) for each in parked)


def park(watch: PodWatch) -> threading.Event:
    """Have its thread do nothing from its next round on; return what tells of that."""
    parked = threading.Event()

    def wait(_: object) -> None:
        parked.set()
        threading.Event().wait()

    watch._follow = wait  # type: ignore[method-assign, assignment]
    return parked


def kubeconfig(folder: Path, url: str, token: str = "secret", **user: object) -> Path:
    made = folder / "kubeconfig"
    config = {
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "us", "user": user or {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "here", "user": "us"}}],
        "current-context": "it",
    }
    made.write_text(json.dumps(config))
    return made


def comes_to(watch: PodWatch, uid: str, pod: Pod | None) -> None:
    def come() -> bool:
        watch.look()
        return watch.find(uid) == pod

    eventually(come, f"{uid} is {pod}")


def test_what_is_chosen(api: Api, watching: Watching) -> None:
    labels = {"app": "web", "app.kubernetes.io/name": "shop-web", "not-chosen": "x", "empty": ""}
    api.pods = [metadata(labels=labels, annotations={"example.org/text": "a\0b\n" + "c" * 100})]
    api.pods.append(metadata("other", "web-1"))
    watch = watching(
        labels=["app", "app.kubernetes.io/name", "empty", "missing"], annotations=["example.org/text"]
    )
    chosen = {
        "label_app": "web",
        "label_app_kubernetes_io_name": "shop-web",
        "annotation_example_org_text": "a\0b\n" + "c" * 59,
    }
    comes_to(watch, UID, Pod("shop", "web-0", more_of(chosen)))
    comes_to(watch, "other", Pod("shop", "web-1", ""))
    assert dict(Workload(more=more_of(chosen)).labels()[5:]) == chosen


def test_pods_on_several_pages(api: Api, watching: Watching) -> None:
    api.page = 2
    api.pods = [metadata(str(number), f"web-{number}") for number in range(5)]
    watch = watching()
    comes_to(watch, "4", Pod("shop", "web-4", ""))
    assert all(watch.find(str(number)) for number in range(5))
    assert api.lists == 1


HASH = "0123456789abcdef"
STATIC = dict.fromkeys(("kubernetes.io/config.hash", "kubernetes.io/config.mirror"), HASH)


def test_a_static_pod(api: Api, watching: Watching) -> None:
    """Its cgroups have the hash of its manifest; the uid is that of its image in the API."""
    api.pods = [metadata(annotations=STATIC, labels={"app": "etcd"})]
    watch = watching(labels=["app"])
    comes_to(watch, HASH, Pod("shop", "web-0", '{"label_app":"etcd"}'))


def test_a_copy_of_a_static_pod(api: Api, watching: Watching) -> None:
    """It has the same annotations, and goes, as kubelet deletes it; the first one stays, and may change."""
    etcd, copy = Pod("shop", "etcd", '{"label_app":"etcd"}'), Pod("shop", "copy", "")
    api.pods = [metadata(name="etcd", annotations=STATIC, labels={"app": "etcd"})]
    watch = watching(labels=["app"])
    comes_to(watch, HASH, etcd)
    api.tell("ADDED", metadata("copied", "copy", annotations=STATIC))
    comes_to(watch, "copied", copy)
    assert watch.find(HASH) == etcd
    api.tell("DELETED", metadata("copied", "copy", annotations=STATIC))
    eventually(watch.look)
    api.tell("DELETED", metadata(name="etcd", annotations=STATIC))
    api.tell("ADDED", metadata("again", "etcd", annotations=STATIC, labels={"app": "b"}))
    comes_to(watch, HASH, Pod("shop", "etcd", '{"label_app":"b"}'))
    assert api.lists == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_copy_of_a_static_pod_in_a_list(first: bool) -> None:
    def told(*pods: Pod) -> module._Told:
        return module._Told([(HASH, pod) for pod in pods], are_all=True)

    etcd, changed, copy = Pod("shop", "etcd", ""), Pod("shop", "etcd", "a"), Pod("shop", "copy", "")
    watch = PodWatch()
    for each in (told(etcd), told(*((copy, changed) if first else (changed, copy)))):
        watch._take(each)
    assert watch.find(HASH) == changed
    watch._take(module._Told([(HASH, copy)], present=False))
    assert watch._pods == {HASH: changed}
    watch._take(told(copy))
    assert watch.find(HASH) == copy, "the other is not there any more"


def test_a_pod_that_says_it_is_another(api: Api, watching: Watching) -> None:
    """Anybody who makes pods may write what only kubelet should."""
    names = ("kubernetes.io/config.hash", "kubernetes.io/config.mirror")
    api.pods = [metadata(labels={"app": "victim"})]
    for count in (1, 2):
        api.pods.append(metadata(f"evil-{count}", "evil", annotations=dict.fromkeys(names[:count], UID)))
    watch = watching(labels=["app"])
    comes_to(watch, "evil-2", Pod("shop", "evil", ""))
    assert watch.find("evil-1") == Pod("shop", "evil", "")
    assert watch.find(UID) == Pod("shop", "web-0", '{"label_app":"victim"}')


def test_pods_come_change_and_go(api: Api, watching: Watching) -> None:
    api.pods = [metadata(labels={"app": "a"})]
    watch = watching(labels=["app"])
    comes_to(watch, UID, Pod("shop", "web-0", '{"label_app":"a"}'))
    api.tell("ADDED", metadata("second", "web-1"))
    comes_to(watch, "second", Pod("shop", "web-1", ""))
    api.tell("BOOKMARK", metadata("third"))
    api.tell("MODIFIED", metadata(labels={"app": "b"}))
    comes_to(watch, UID, Pod("shop", "web-0", '{"label_app":"b"}'))
    assert watch.find("third") is None
    assert not watch.look()
    api.tell("DELETED", metadata("second", "web-1"))
    eventually(watch.look)
    assert watch.find("second") == Pod("shop", "web-1", ""), "its cgroup may be there still"
    assert api.lists == api.watches == 1


@pytest.mark.parametrize(
    "gone",
    [
        (200, b'{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}\n'),
        (410, b'{"kind": "Status", "code": 410, "message": "too old"}'),
    ],
)
def test_a_version_that_is_too_old(
    api: Api, watching: Watching, gone: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """All is listed again, and who has gone meanwhile stays known for a while."""
    api.watch_answer = gone
    api.pods = [metadata()]
    watch = watching()
    comes_to(watch, UID, Pod("shop", "web-0", ""))
    api.pods = [metadata("second", "web-1")]
    comes_to(watch, "second", Pod("shop", "web-1", ""))
    assert watch.find(UID) == Pod("shop", "web-0", "")
    assert not caplog.records


def test_so_many_that_are_gone(api: Api, watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_GONE", 2)
    api.pods = [metadata(f"pod-{number}") for number in range(4)]
    watch = watching()
    comes_to(watch, "pod-3", Pod("shop", "web-0", ""))
    for number in range(3):
        api.tell("DELETED", metadata(f"pod-{number}"))
    comes_to(watch, "pod-0", None)
    assert watch.find("pod-1")
    assert watch.find("pod-2")


FORBIDDEN = json.dumps(
    {"kind": "Status", "code": 403, "message": 'pods is forbidden: User "x" cannot list resource "pods"'}
).encode()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((403, FORBIDDEN), 'pods is forbidden: User "x" cannot list resource "pods"'),
        ((500, b"{}"), "500 Internal Server Error"),
        ((503, b"down", ""), "503 Service Unavailable"),
        ((503, b"<html>", "text/html"), "503 Service Unavailable"),
        ((503, b"down"), "503 Service Unavailable"),
        ((503, b"[" * 100_000), "503 Service Unavailable"),
        ((503, b"[]"), "503 Service Unavailable"),
        ((403, FORBIDDEN, ""), 'pods is forbidden: User "x" cannot list resource "pods"'),
        ((200, b"<html>\n"), ""),
        ((200, b"[]"), ""),
        ((200, b"{}"), ""),
        ((200, b'{"metadata": {}, "items": []}'), ""),
        ((200, b'{"metadata": {"resourceVersion": "100"}, "items": [{"metadata": {}}]}'), ""),
        ((200, b'{"metadata": {"resourceVersion": "100"}, "items": [{}]}'), ""),
        ((200, b'{"metadata": {"resourceVersion": "100"}, "items": [{"metadata": {"labels": 1}}]}'), ""),
        ((302, b""), "302 Found"),
    ],
)
def test_a_server_that_answers_otherwise(
    api: Api, watching: Watching, answer: Answer, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of once, and asked again."""
    caplog.set_level(logging.INFO)
    api.list_answer = answer
    watch = watching(labels=["app"])
    eventually(lambda: api.lists > 2 and not answers(watch))
    api.list_answer = None
    api.pods = [metadata(labels={"app": "a"})]
    comes_to(watch, UID, Pod("shop", "web-0", '{"label_app":"a"}'))
    eventually(lambda: answers(watch))
    said, back = [each for each in caplog.records if each.name == module.__name__]
    assert "\n" not in said.error  # type: ignore[attr-defined]
    assert 0 < len(said.error) <= 200  # type: ignore[attr-defined]
    assert error in said.error  # type: ignore[attr-defined]
    assert back.message == "the Kubernetes API answers again"


@pytest.mark.parametrize(
    "answer",
    [
        (403, FORBIDDEN),
        (200, b"nonsense\n"),
        (200, b'{"type": "ADDED", "object": {}}\n'),
        (500, b""),
        (500, b"", ""),
    ],
)
def test_a_watch_that_is_answered_otherwise(api: Api, watching: Watching, answer: Answer) -> None:
    api.watch_answer = answer
    api.pods = [metadata()]
    watch = watching()
    comes_to(watch, UID, Pod("shop", "web-0", ""))
    eventually(lambda: api.watches > 2)
    api.watch_answer = None
    api.tell("ADDED", metadata("second", "web-1"))
    comes_to(watch, "second", Pod("shop", "web-1", ""))


def test_a_watch_that_is_forbidden_where_a_list_is_not(
    api: Api, watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not answer all the while, which is told once, in the server's words."""
    caplog.set_level(logging.INFO)
    api.watch_answer = 403, FORBIDDEN
    watch = watching()
    assert_unanswered(api, watch)
    api.watch_answer = None
    eventually(lambda: answers(watch))
    said, back = [each for each in caplog.records if each.name == module.__name__]
    assert "forbidden" in said.error  # type: ignore[attr-defined]
    assert back.message == "the Kubernetes API answers again"


def test_a_watch_that_is_cut(api: Api, watching: Watching, caplog: pytest.LogCaptureFixture) -> None:
    """Again and again, by a load balancer that forgets it: that is its end, if it has held for a while."""
    caplog.set_level(logging.INFO)
    watch = watching()
    for number in range(4):
        watches = api.watches
        eventually(lambda: api.watches > watches)  # noqa: B023
        time.sleep(2 * module.STEADY_SECONDS)
        api.tell("ADDED", metadata(str(number)))
        comes_to(watch, str(number), Pod("shop", "web-0", ""))
        api.cut()
        assert answers(watch)
    assert not [each for each in caplog.records if each.name == module.__name__]


@pytest.mark.parametrize(
    "answer", [(200, b"nonsense\n"), (200, b'{"type": "ERROR", "object": {"code": 500}}\n')]
)
def test_a_watch_that_is_granted_and_broken(
    api: Api, watching: Watching, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of once, and does not answer all the while."""
    caplog.set_level(logging.INFO)
    api.watch_answer = answer
    watch = watching()
    assert_unanswered(api, watch)
    assert len([each for each in caplog.records if each.name == module.__name__]) == 1


def rounds(monkeypatch: pytest.MonkeyPatch, *times: Sequence[float]) -> tuple[PodWatch, list[Waits]]:
    """Go through rounds, each with when watches are granted, and when that ends; return how it waits."""
    left, clock = list(times), Mock(**{"monotonic.return_value": 0.0})
    waits: list[Waits] = []

    def follow(granted: Callable[[], None]) -> None:
        start = clock.monotonic()
        *grants, end = left.pop(0)
        for at in grants:
            clock.monotonic.return_value = start + at
            granted()
        clock.monotonic.return_value = start + end
        raise OSError("cut")

    def wait(*seconds: float) -> float:
        waits.append(seconds)
        if not left:
            raise SystemExit
        return 0.0

    fakes = {"time": clock, "random": Mock(uniform=wait), "pthread_sigmask": Mock()}
    for name, each in (USUAL | fakes).items():
        monkeypatch.setattr(module, name, each)
    watch = PodWatch()
    monkeypatch.setattr(watch, "_follow", follow)
    with pytest.raises(SystemExit):
        watch._follow_for_ever()
    watch.look()
    return watch, waits


def test_one_that_fails_is_asked_more_and_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a watch has held. When that is cut, those of all nodes may have been."""
    steady, anew = (0, STEADY_SECONDS), (0, JITTER_SECONDS)
    doubled = [(seconds / 2, seconds) for seconds in (1, 2, 4, 8, 16, 32, 60, 60)]
    _, waits = rounds(monkeypatch, *8 * [(0,)], steady, (0,), steady)
    assert waits == [anew, *doubled, anew, doubled[0], anew]


def test_watches_that_end_as_they_should_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has held since the first of them, if it is cut soon after the last."""
    watch, waits = rounds(monkeypatch, (0, STEADY_SECONDS - 1, STEADY_SECONDS))
    assert watch.answers
    assert waits == 2 * [(0, JITTER_SECONDS)]


def test_it_answers_since_the_first_watch() -> None:
    watch = Told()
    watch.fail()
    watch.grant()
    watch.grant(time.monotonic())
    assert answers(watch)


def test_a_server_that_goes_and_comes_back(api: Api, watching: Watching) -> None:
    api.pods = [metadata()]
    watch = watching()
    comes_to(watch, UID, Pod("shop", "web-0", ""))
    api.end()
    eventually(lambda: not answers(watch))
    assert not watch.look()
    assert watch.find(UID) == Pod("shop", "web-0", "")
    other = Api(api.server_port)
    try:
        other.pods = [metadata("second", "web-1")]
        comes_to(watch, "second", Pod("shop", "web-1", ""))
    finally:
        other.end()


def test_a_server_that_falls_silent(api: Api, watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a load balancer has forgotten the connection: all is listed again."""
    monkeypatch.setattr(pod_client, "SILENCE_SECONDS", 0.05)
    watch = watching()
    eventually(lambda: api.lists > 2)
    assert api.watches >= 2
    assert watch.find(UID) is None


def test_watches_that_end_at_once(api: Api, watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_client, "PACE_SECONDS", 3600.0)
    slept: list[float] = []
    enough, original = threading.Event(), time.sleep

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds > 1:
            enough.wait(30)
        else:
            original(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    api.watch_answer = 200, b""
    watching()
    eventually(lambda: any(seconds > 3500 for seconds in slept))
    assert api.watches == 1
    enough.set()


def test_tokens_that_are_replaced(
    api: Api,
    watching: Watching,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are read again every now and then, before the server refuses the old one."""
    monkeypatch.setattr(pod_client, "RENEW_SECONDS", 0.1)
    api.watch_answer = 200, b""
    watch = watching()
    eventually(lambda: api.lists > 0)
    api.tokens.add("another")
    kubeconfig(tmp_path, f"http://127.0.0.1:{api.server_port}", token="another")
    for _ in range(2):
        lists = api.lists
        eventually(lambda lists=lists: api.lists > lists + 1)  # type: ignore[misc]
        api.tokens.discard("secret")
    assert answers(watch)
    assert not caplog.records


def test_another_reason(api: Api, watching: Watching, caplog: pytest.LogCaptureFixture) -> None:
    """Each is told of, once in a row."""
    api.list_answer = 403, FORBIDDEN
    watch = watching()
    for answer in ((403, FORBIDDEN), (500, b"{}")):
        api.list_answer = answer
        lists = api.lists
        eventually(lambda lists=lists: not answers(watch) and api.lists > lists + 3)  # type: ignore[misc]
    said = [str(each.error) for each in caplog.records if each.name == module.__name__]  # type: ignore[attr-defined]
    assert len(said) == 2
    assert "forbidden" in said[0]
    assert "500" in said[1]
    assert not answers(watch)


@pytest.mark.parametrize("content", [None, "", "[", "a: b", "clusters: []\ncontexts: []", "\0"])
def test_no_kubeconfig(tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """It may come."""
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    watch = PodWatch(NODE, path)
    eventually(lambda: not answers(watch))
    assert park(watch).wait(30)
    (record,) = (each for each in caplog.records if each.name == module.__name__)
    assert record.error  # type: ignore[attr-defined]


def test_a_token_that_ends_in_a_newline(api: Api, tmp_path: Path) -> None:
    """As where a file has it as a block."""
    path = kubeconfig(tmp_path, f"http://127.0.0.1:{api.server_port}", token=" secret\n")
    watch = PodWatch(NODE, path)
    eventually(lambda: api.watches > 0)
    assert answers(watch)
    parked = park(watch)
    api.end()
    assert parked.wait(30)


@pytest.mark.parametrize(
    ("user", "token"),
    [
        ("", "SECRET\nSECRET"),
        ("", "SECRET SECRET\r"),
        ("us:SECRET@", "wrong"),
        ("us:SECRET/SECRET@", "wrong"),
    ],
)
def test_secrets_are_not_told(
    api: Api, tmp_path: Path, user: str, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = PodWatch(NODE, kubeconfig(tmp_path, f"http://{user}127.0.0.1:{api.server_port}", token))
    eventually(lambda: not answers(watch))
    assert park(watch).wait(30)
    (record,) = (each for each in caplog.records if each.name == module.__name__)
    assert "SECRET" not in record.error  # type: ignore[attr-defined]


def test_a_secret_may_be_longer_than_what_is_told() -> None:
    error = ValueError(f"not https://us:{'SECRET' * 99}@a, https://us:SEC@RET@b, Basic SECRET\n")
    assert module._line(error) == "not https://...@a, https://...@b, Basic ..."


@pytest.mark.parametrize("token", ["!SECRET ", "*SECRET"])
def test_what_yaml_says_of_a_secret_is_not_told(
    api: Api, tmp_path: Path, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One without quotes is a tag or an alias, which is unknown."""
    path = kubeconfig(tmp_path, f"http://127.0.0.1:{api.server_port}", token="TOKEN")
    text = path.read_text()
    assert text.count('"TOKEN"') == 1
    path.write_text(text.replace('"TOKEN"', token))
    watch = PodWatch(NODE, path)
    eventually(lambda: not answers(watch))
    assert park(watch).wait(30)
    (record,) = (each for each in caplog.records if each.name == module.__name__)
    assert "SECRET" not in record.error  # type: ignore[attr-defined]


def test_a_long_answer_takes_no_longer() -> None:
    """Whoever sends it would hold up all of the daemon."""
    began = time.process_time()
    assert len(module._line(ValueError("/" * 1_000_000))) <= 200
    assert time.process_time() - began < 5, "it would be an hour"


def test_a_key_that_is_missing_is_told_as_such() -> None:
    assert module._line(KeyError("clusters")) == "KeyError 'clusters'"


def test_an_exec_plugin_that_hangs(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of once, and answers when it does not hang any more."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "HANG_SECONDS", 0.2)
    os.mkfifo(tmp_path / "fifo")
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": "cat",
        "args": [str(tmp_path / "fifo")],
    }
    watch = PodWatch(NODE, kubeconfig(tmp_path, f"http://127.0.0.1:{api.server_port}", exec=plugin))
    eventually(lambda: not answers(watch))
    for _ in range(3):
        assert not answers(watch)
    (tmp_path / "fifo").write_text('{"status": {"token": "secret"}}')
    eventually(lambda: answers(watch))
    said, back = [each for each in caplog.records if each.name == module.__name__]
    assert "exec plugin" in said.error  # type: ignore[attr-defined]
    assert back.message == "the Kubernetes API answers again"
    parked = park(watch)
    api.end()
    assert parked.wait(30)


def test_what_does_not_hang() -> None:
    """It has just been asked, or there is a watch, which may tell nothing for long."""
    watch = Told()
    watch._news.put(module._Asked(time.monotonic()))
    assert answers(watch)
    watch._news.put(module._Asked(-math.inf))
    watch.grant()
    assert answers(watch)


def test_what_has_failed_does_not_hang(caplog: pytest.LogCaptureFixture) -> None:
    """It is told of as it failed, and nothing more while nobody asks."""
    watch = Told()
    watch._news.put(module._Asked(-math.inf))
    watch.fail()
    for _ in range(2):
        assert not answers(watch)
    assert [each.error for each in caplog.records] == ["away"]  # type: ignore[attr-defined]


def test_outside_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    watch = PodWatch(NODE)
    eventually(lambda: not answers(watch))
    assert park(watch).wait(30)


def test_nobody_is_asked() -> None:
    watch = PodWatch()
    assert not watch.on
    assert not watch.look()
    assert watch.find(UID) is None


class Told(PodWatch):
    """What has been told so far."""

    def __init__(self, **pods: Pod) -> None:
        super().__init__(labels=["app"])
        self.on = True
        self.tell(pods)

    def tell(self, pods: dict[str, Pod]) -> None:
        self._news.put(module._Told([*pods.items()]))

    def fail(self) -> None:
        self._news.put(module._Failed("away"))

    def grant(self, at: float = -math.inf) -> None:
        self._news.put(module._Granted(at))


LABELS = Missing(set(), {"label_app"})
WEB = Pod("shop", "web-0", '{"label_app":"web"}')
NAMED = Workload("shop", "web-0", "nginx", more=WEB.more)
UNLABELLED = NAMED._replace(more="")


class Node:
    """A container's cgroup, and its names at a time of our own."""

    def __init__(self, folder: Path, watch: PodWatch, *paths: str, naming: Naming | None = None) -> None:
        self.now = 0.0
        self.paths = dict(enumerate(paths or (f"{POD}/{ID}",), 2))
        self.names = Names(
            FakeRoot(self.paths),
            Notes(),
            naming or Naming(),
            PodNames(folder),
            watch=watch,
            clock=lambda: self.now,
        )

    def resolve(self) -> tuple[Workload | None, Missing | None]:
        """What the first is called, and what is missing of that."""
        names, missing = self.names.resolve(self.paths, {})
        return names.get(2), missing.get(2)


def test_labelled(tmp_path: Path) -> None:
    link(tmp_path, "nginx", ID)
    watch = Told(**{UID: WEB})
    node = Node(tmp_path, watch)
    assert node.resolve() == (NAMED, None)
    watch.tell({UID: WEB._replace(more="")})
    assert node.resolve() == (UNLABELLED, None), "labels may change"


def test_labels_are_waited_for(tmp_path: Path) -> None:
    link(tmp_path, "nginx", ID)
    watch = Told()
    node = Node(tmp_path, watch)
    assert node.resolve() == (None, None)
    node.now = WAIT_SECONDS
    assert node.resolve() == (UNLABELLED, LABELS), "what it had before, if it had any"
    watch.tell({UID: WEB})
    assert node.resolve() == (NAMED, None)


def test_no_labels_are_waited_for_from_a_server_that_is_away(tmp_path: Path) -> None:
    link(tmp_path, "nginx", ID)
    watch = Told()
    watch.fail()
    assert Node(tmp_path, watch).resolve() == (UNLABELLED, LABELS)


def test_who_is_shown_already_is_not_waited_for(tmp_path: Path) -> None:
    """Not even when the server answers again, and tells of others first."""
    link(tmp_path, "nginx", ID)
    watch = Told()
    watch.fail()
    node = Node(tmp_path, watch)
    assert node.resolve() == (UNLABELLED, LABELS)
    watch.grant()
    watch.tell({"another": WEB})
    assert node.resolve() == (UNLABELLED, LABELS)
    watch.tell({UID: WEB})
    assert node.resolve() == (NAMED, None)


def test_a_link_that_comes_late_while_the_server_is_away(tmp_path: Path) -> None:
    """Labels are missing, the rest is known now."""
    watch = Told()
    watch.fail()
    link(tmp_path, "other", OTHER, uid="another")
    node = Node(tmp_path, watch)
    assert node.resolve() == (None, None)
    node.now = WAIT_SECONDS
    assert node.resolve() == (
        Workload(pod=UID, container=ID[:12]),
        Missing({"namespace", "pod", "container"}, LABELS.labels),
    )
    link(tmp_path, "nginx", ID)
    assert node.resolve() == (UNLABELLED, LABELS)


@pytest.mark.parametrize(
    ("naming", "workload", "missing"),
    [
        (Naming(hidden=frozenset({"pod", "container"})), Workload(), {"namespace"}),
        (Naming(level=paths.POD), Workload(pod=UID), {"namespace", "pod"}),
    ],
)
def test_settings_count_while_the_server_is_away(
    tmp_path: Path, naming: Naming, workload: Workload, missing: set[str]
) -> None:
    watch = Told()
    watch.fail()
    assert Node(tmp_path / "nothing", watch, naming=naming).resolve() == (
        workload,
        Missing(missing, LABELS.labels),
    )


def test_named_by_the_server_where_there_are_no_links(tmp_path: Path) -> None:
    node = Node(tmp_path / "nothing", Told(**{UID: WEB}))
    assert node.resolve() == (NAMED._replace(container=ID[:12]), None)


def test_who_is_no_pod_is_not_waited_for(tmp_path: Path) -> None:
    assert Node(tmp_path, Told(), "/a").resolve() == (Workload(cgroup="/a"), None)


def test_labels_without_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The longest are left out, and that is told once for each pod."""
    link(tmp_path, "nginx", ID)
    long = {f"label_{number}": str(number) * 63 for number in range(6)}
    watch = Told(**{UID: WEB._replace(more=more_of({"label_app": "web", **long}))})
    node = Node(tmp_path, watch)
    for change in range(2):
        named, _ = node.resolve()
        assert named
        assert dict(named.labels()).items() >= {"pod": "web-0", "label_app": "web"}.items()
        watch.tell({UID: WEB._replace(more=more_of({"label_app": "web", **long, "label_x": str(change)}))})
    said = [each.getMessage() for each in caplog.records]
    assert said == ["a pod's labels do not fit beside its names: the longest are left out"]
