"""What pods and their containers are called, as the node itself knows it: by the links to their logs.

kubelet makes one for each container, a moment after it has started it, and keeps it as long as the
container's log (pkg/kubelet/kuberuntime/kuberuntime_container.go, legacy.go):

    /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log -> /var/log/pods/NAMESPACE_POD_UID/CONTAINER/0.log

So no API server is asked, and no right is needed but to read a folder. The name of a link is cut to 255
characters, and then lacks the container's id; what it points to is never cut.
"""

import errno
import logging
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

FOLDER = Path("/var/log/containers")  # no option of kubelet's changes it
SANDBOX = "POD"  # as the kubelet and cAdvisor call what holds a pod's network and runs nothing of its own

_ID = re.compile(r"-(?P<id>[0-9a-f]{64})\.log$")
_POD_FOLDER = re.compile("(?P<namespace>[^_]+)_(?P<name>[^_]+)_(?P<uid>.+)")
_MOST_GONE = 1000
_FRESH_NS = 10**9  # so long after a change, another one may leave the folder's time as it is


class Container(NamedTuple):
    """What Kubernetes calls a container; of a pod as such *name* is empty."""

    namespace: str
    pod: str
    name: str = ""


class PodNames:
    """The names that the links say, or said until a while ago."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.present = False  # whether there is such a folder
        self._folder = folder
        self._changed = 0  # the folder's time of change, where a later one can't be the same
        self._containers: dict[str, Container] = {}  # by id
        self._pods: dict[str, Container] = {}  # by uid
        self._cut: set[str] = set()  # pods with a container whose id is not known, by uid
        self._stuck = False

    def look(self) -> bool:
        """Read the folder if it has changed; return whether names may have."""
        try:
            now, changed = time.time_ns(), self._folder.stat().st_mtime_ns
            if self.present and changed == self._changed:
                return False
            self._read()
        except OSError as error:
            before, self._stuck = self._stuck, not isinstance(error, FileNotFoundError)
            if self._stuck and not before:
                logger.warning("pods are not named", extra={"error": str(error)})
            self.present = False
            return False
        self.present, self._stuck = True, False
        self._changed = changed if now - changed > _FRESH_NS else 0
        return True

    def _read(self) -> None:
        containers: dict[str, Container] = {}
        pods: dict[str, Container] = {}
        cut: set[str] = set()
        with os.scandir(self._folder) as links:
            for link in links:
                try:
                    target = Path(link.path).readlink()
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.EINVAL):  # gone meanwhile, or no link
                        continue
                    raise
                if not (pod := _POD_FOLDER.fullmatch(target.parent.parent.name)):
                    continue
                pods[pod["uid"]] = Container(pod["namespace"], pod["name"])
                if match := _ID.search(link.name):
                    containers[match["id"]] = Container(pod["namespace"], pod["name"], target.parent.name)
                else:
                    cut.add(pod["uid"])
        self._containers = _with_gone(containers, self._containers)
        self._pods = _with_gone(pods, self._pods)
        self._cut = (self._cut | cut) & self._pods.keys()

    @property
    def known(self) -> bool:
        """Whether any pod is, or cannot be now, so that those that are not may have had links."""
        return self._stuck or (self.present and bool(self._pods))

    def find(self, uid: str, container_id: str) -> Container | None:
        """Return what a container is called if its link is there; without an id what its pod is."""
        return self._containers.get(container_id) if container_id else self._pods.get(uid)

    def guess(self, uid: str) -> Container | None:
        """Return what a container is called whose link does not come, by its pod, if that is known.

        That is the sandbox, which has no log; but where an id was cut off, nobody knows its name.
        """
        pod = self._pods.get(uid)
        return pod and pod._replace(name="" if uid in self._cut else SANDBOX)


def _with_gone(present: dict[str, Container], before: dict[str, Container]) -> dict[str, Container]:
    """Return what is there and the last that were before: nobody may have asked for them yet."""
    gone = [(key, each) for key, each in before.items() if key not in present]
    return dict(gone[-_MOST_GONE:]) | present
