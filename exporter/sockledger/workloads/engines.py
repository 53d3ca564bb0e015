"""What Docker and Podman call their containers, asked for over their local sockets.

Both speak Docker's API (moby api/swagger.yaml, ContainerInspect; podman
pkg/api/server/register_containers.go). A thread of its own asks, so nothing waits for an engine that is slow,
and one that fails is asked again later.
"""

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import SimpleQueue
from signal import SIG_BLOCK, pthread_sigmask, valid_signals
from threading import Thread

from sockledger.errors import printable

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
RETRY_SECONDS = 60.0
_MAX_BYTES = 1 << 20
_NAME = re.compile("/([a-zA-Z0-9][a-zA-Z0-9_.-]{0,254})")  # moby daemon/names
_MAX_NAMES = 10_000


class EngineNames:
    """The names that engines have told. *sockets* are by the runtime that a path says."""

    def __init__(
        self, sockets: Mapping[str, Path] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sockets = dict(sockets or {})
        self._clock = clock
        self._names: dict[str, str] = {}  # by id; empty: nobody knows it
        self._asked: set[str] = set()
        self._unanswered: set[str] = set()  # are asked again
        self._retry_at = 0.0
        self._questions: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._answers: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
        self._left_alone: dict[str, float] = {}  # runtimes that are not there or hang: until when
        self._failed: set[str] = set()  # those that had no name the last time: told of once
        if self._sockets:
            Thread(target=self._ask_for_ever, name="engines", daemon=True).start()

    def know(self, runtime: str) -> bool:
        """Whether any of them may know a container; where its path does not say its *runtime*, each may."""
        return runtime in self._sockets or bool(self._sockets and not runtime)

    def look(self) -> bool:
        """Take what has been answered; return whether names may have come."""
        changed = False
        while not self._answers.empty():
            container_id, name = self._answers.get()
            if name is None:
                self._unanswered.add(container_id)
                self._retry_at = self._retry_at or self._clock() + RETRY_SECONDS
                continue
            self._names[container_id] = name
            self._asked.discard(container_id)
            changed = True
        if self._retry_at and self._clock() >= self._retry_at:
            self._asked -= self._unanswered
            self._unanswered.clear()
            self._retry_at = 0.0
            changed = True
        while len(self._names) > _MAX_NAMES:
            del self._names[next(iter(self._names))]
        return changed

    def find(self, runtime: str, container_id: str) -> str | None:
        """Return a container's name, None if it has not come; empty if nobody knows it."""
        name = self._names.get(container_id)
        if name is None and container_id not in self._asked:
            self._asked.add(container_id)
            self._questions.put((runtime, container_id))
        return name

    def up(self) -> dict[str, bool]:
        """Return whether each engine answers, as far as is known, by runtime."""
        return {runtime: runtime not in self._failed for runtime in self._sockets}

    def _ask_for_ever(self) -> None:
        pthread_sigmask(SIG_BLOCK, valid_signals())  # they are for the daemon's first thread
        while True:
            runtime, container_id = self._questions.get()
            names: list[str | None] = []
            for engine in [runtime] if runtime else self._sockets:
                names.append(self._ask(engine, container_id))
                if names[-1]:
                    break
            self._answers.put((container_id, names[-1] or (None if None in names else "")))

    def _ask(self, engine: str, container_id: str) -> str | None:
        """Return what an engine calls a container, empty if it has none such; None if it does not answer."""
        path = self._sockets[engine]
        if self._clock() < self._left_alone.get(engine, 0.0):
            return None
        try:
            name = _inspect(path, container_id)
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            if engine not in self._failed:
                logger.warning(
                    "containers are shown by their ids: an engine does not answer",
                    extra={"socket": str(path), "error": printable(str(error))},
                )
            again = engine in self._failed
            self._failed.add(engine)
            # one container may hang, but hardly two
            if isinstance(error, OSError) and (again or not isinstance(error, TimeoutError)):
                self._left_alone[engine] = self._clock() + RETRY_SECONDS / 2
            return None
        self._failed.discard(engine)
        return name


class _LocalConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _inspect(path: Path, container_id: str) -> str:
    connection = _LocalConnection(path)
    try:
        connection.request("GET", f"/containers/{container_id}/json")
        response = connection.getresponse()
        if response.status == 404:
            return ""
        if response.status != 200:
            raise HTTPException(f"{response.status} {response.reason}")
        found = json.loads(response.read(_MAX_BYTES))
    finally:
        connection.close()
    name = _NAME.fullmatch(str(found.get("Name"))) if isinstance(found, dict) else None
    if not name:
        raise HTTPException("an answer without a name")
    return name[1]
