"""What the Kubernetes API says of this node's pods: the labels and annotations that users chose, and names.

A thread of its own lists and watches them, so nothing waits for a server that is slow; what it has told stays
known while it is away.
"""

import logging
import math
import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from signal import SIG_BLOCK, pthread_sigmask, valid_signals
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from sockledger.errors import printable
from sockledger.workloads.naming import more_of

if TYPE_CHECKING:
    from lightkube.models.meta_v1 import ObjectMeta

logger = logging.getLogger(__name__)

JITTER_SECONDS = 3.0  # at most: the daemons of all nodes may be started at once, or their watches be cut
PACE_SECONDS = 1.0
RETRY_SECONDS = 60.0  # at most
STEADY_SECONDS = 10.0  # a watch that has held for so long has been granted in earnest
HANG_SECONDS = 60.0  # for a watch, or a failure: what is asked of a server has limits of its own

# Of the API's image of a static pod, which kubelet makes: that it is one, and what cgroups have for its uid.
# Anybody may write annotations, but kubelet deletes images of what is not there, and a uid is no hash.
_MIRROR, _HASH = "kubernetes.io/config.mirror", "kubernetes.io/config.hash"
_UID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOT_IN_NAMES = re.compile("[^a-zA-Z0-9_]")
_MOST_GONE = 1000
_MOST_CHARACTERS = 63  # of a value: a label's is never longer, an annotation's may be 256 KiB
_MOST_OF_ERRORS = 200
# Of requests, and of a kubeconfig. Of a password that has a slash the beginning is taken for a port; one
# without quotes that begins with ! or * is a tag or an alias.
_SECRETS = re.compile(
    "(?<=//)[^ ]*(?=@)|(?<=Invalid port: ).*|(?<=Bearer ).*|(?<=Basic ).*|(?<=the tag ).*|(?<= alias ).*"
)


class Pod(NamedTuple):
    """What the API calls a pod; *more* are the chosen labels and annotations, as `Workload.more`."""

    namespace: str
    name: str
    more: str


def label_name(kind: str, key: str) -> str:
    """Return what a label or an annotation is called here, as in kube-state-metrics' kube_pod_labels."""
    return f"{kind}_{_NOT_IN_NAMES.sub('_', key)}"


class _Told(NamedTuple):
    """Pods that have come or changed, or are gone, by what their cgroups have for a uid; or all there are."""

    pods: Sequence[tuple[str, Pod]]
    present: bool = True
    are_all: bool = False


class _Asked(NamedTuple):
    """A round has begun, which comes to a watch or fails."""

    at: float


class _Failed(NamedTuple):
    """Nothing can be told now."""

    reason: str


class _Granted(NamedTuple):
    """A watch has begun."""

    at: float


class PodWatch:
    """The pods that the server has told of, or did until a while ago."""

    def __init__(
        self,
        node: str = "",
        kubeconfig: Path | None = None,
        labels: Iterable[str] = (),
        annotations: Iterable[str] = (),
    ) -> None:
        """Without a *node* nobody is asked; without a *kubeconfig* as the service account of our own pod."""
        self.on = bool(node)
        self._reason = ""  # why nothing is told
        self._granted = math.inf  # since when there is a watch
        self._asked = math.inf  # since when it is waited for
        self._node = node
        self._kubeconfig = kubeconfig
        self._labels = {key: label_name("label", key) for key in labels}
        self._annotations = {key: label_name("annotation", key) for key in annotations}
        self._pods: dict[str, Pod] = {}  # by what their cgroups have for a uid
        self._gone: dict[str, Pod] = {}
        self._news: SimpleQueue[_Told | _Asked | _Failed | _Granted] = SimpleQueue()
        if self.on:
            Thread(target=self._follow_for_ever, name="pod-watch", daemon=True).start()

    @property
    def answers(self) -> bool:
        """Whether the server does, as far as is known."""
        return not self._reason

    @property
    def chosen(self) -> Collection[str]:
        """Names of all labels that a pod may have here."""
        return {*self._labels.values(), *self._annotations.values()}

    def look(self) -> bool:
        """Take what has been told; return whether names may have changed."""
        before = self._pods
        while not self._news.empty():
            match self._news.get():
                case _Asked(at):
                    self._asked = at
                case _Failed(reason):
                    self._fail(reason)
                case _Granted(at):
                    self._granted, self._asked = min(self._granted, at), math.inf
                case _Told() as told:
                    self._take(told)
        if time.monotonic() - self._asked > HANG_SECONDS:
            self._fail("no answer for a minute, as where an exec plugin hangs")
        if self._reason and _is_steady(self._granted):
            logger.info("the Kubernetes API answers again")
            self._reason = ""
        return self._pods != before

    def _fail(self, reason: str) -> None:
        if reason != self._reason:
            logger.warning(
                "what the Kubernetes API said of pods may be out of date: it tells nothing now",
                extra={"error": reason},
            )
        self._reason, self._granted, self._asked = reason, math.inf, math.inf

    def _take(self, told: _Told) -> None:
        named = {(uid, each.namespace, each.name) for uid, each in told.pods}
        pods = {
            uid: each
            for uid, each in self._pods.items()
            if not told.are_all or (uid, each.namespace, each.name) in named
        }
        for uid, pod in told.pods:
            # it may be but a copy of a static pod, with the same annotations: who was there first is meant
            if pods.setdefault(uid, pod)[:2] == pod[:2]:
                pods[uid] = pod
                if not told.present:
                    del pods[uid]
        gone = [each for each in (self._gone | self._pods).items() if each[0] not in pods]
        self._gone = dict(gone[-_MOST_GONE:])  # nobody may have asked for them yet
        self._pods = pods

    def find(self, uid: str) -> Pod | None:
        """Return what a pod is called, None if nobody has told."""
        return self._pods.get(uid) or self._gone.get(uid)

    def _follow_for_ever(self) -> None:
        pthread_sigmask(SIG_BLOCK, valid_signals())  # they are for the daemon's first thread
        while True:
            time.sleep(random.uniform(0, JITTER_SECONDS))  # noqa: S311
            retry = PACE_SECONDS
            while not self._has_held():
                time.sleep(random.uniform(retry / 2, retry))  # noqa: S311
                retry = min(2 * retry, RETRY_SECONDS)

    def _has_held(self) -> bool:
        """Follow pods until all has to be listed again; return whether watches have held for a while."""
        began = math.inf  # the first one

        def note_granted() -> None:
            nonlocal began
            now = time.monotonic()
            began = min(began, now)
            self._news.put(_Granted(now))

        self._news.put(_Asked(time.monotonic()))
        try:
            self._follow(note_granted)
        except Exception as error:
            # one that has held may be cut, as where a load balancer forgets it: all is listed again
            if not _is_steady(began):
                self._news.put(_Failed(_line(error)))
        return _is_steady(began)

    def _follow(self, granted: Callable[[], None]) -> None:
        """List all pods, and follow what changes for as long as the server knows that."""
        from sockledger.workloads import pod_client  # heavy, and few need it

        with pod_client.connect(self._kubeconfig, granted) as client:
            pods, version = pod_client.list_pods(client, self._node)
            listed = [each for pod in pods for each in self._by_uid(pod)]
            self._news.put(_Told(listed, are_all=True))
            with suppress(pod_client.ExpiredError):
                for present, pod in pod_client.watch_pods(client, self._node, version):
                    self._news.put(_Told(self._by_uid(pod), present))

    def _by_uid(self, metadata: "ObjectMeta") -> list[tuple[str, Pod]]:
        """Return what a pod is called, by all that its cgroups may have for its uid."""
        labels, annotations = metadata.labels or {}, metadata.annotations or {}
        chosen = {name: labels.get(key) for key, name in self._labels.items()}
        chosen |= {name: annotations.get(key) for key, name in self._annotations.items()}
        if not (metadata.namespace and metadata.name and metadata.uid):
            raise ValueError("a pod without a name or a uid")
        more = {name: value[:_MOST_CHARACTERS] for name, value in chosen.items() if value}
        pod = Pod(metadata.namespace, metadata.name, more_of(more))
        hashed = annotations.get(_HASH) if _MIRROR in annotations else None
        is_hash = hashed and not _UID.fullmatch(hashed)
        return [(metadata.uid, pod), *([(hashed, pod)] if is_hash else ())]


def _is_steady(since: float) -> bool:
    return time.monotonic() - since >= STEADY_SECONDS


def _line(error: Exception) -> str:
    """Return what is wrong, in a line that is not too long: a client's may show all of an answer.

    And what it was asked with, which nobody should read in a log.
    """
    line = str(error).split("\n")[0][: 10 * _MOST_OF_ERRORS]  # or a long one would take long
    text = _SECRETS.sub("...", line)[:_MOST_OF_ERRORS]
    if text in ("", "None") or isinstance(error, KeyError):  # whose text is but the key
        text = f"{type(error).__name__} {text}".removesuffix("None").rstrip()
    return printable(text)
