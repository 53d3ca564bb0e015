"""The Kubernetes API, as far as pods' metadata go. Imported only where it is asked: the client takes 6 MB."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
from lightkube import Client, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.core.exceptions import ApiError
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Pod

WATCH_SECONDS = 240  # then the server ends a watch, and the next one goes on from there
SILENCE_SECONDS = WATCH_SECONDS + 30.0  # after which a server, or the way to it, is gone
PACE_SECONDS = 1.0  # at least, between watches: a server may end each at once
# A client reads its token once. Kubelet replaces a pod's when a fifth of its hour is left.
RENEW_SECONDS = 600.0
_CHUNK = 500
_KIND = "application/json;as={};g=meta.k8s.io;v=v1"


class ExpiredError(Exception):
    """All has to be listed again, by a new client: this one, or what the server remembers, is too old."""


class _Transport(httpx2.HTTPTransport):
    """Has requests ask for what the client has no words for, and tells of watches that are granted."""

    _last = float("-inf")

    def __init__(self, granted: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._granted = granted
        self._renew_at = time.monotonic() + RENEW_SECONDS

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        watches = "watch" in request.url.params
        # a pod's metadata are a tenth of it
        request.headers["Accept"] = _KIND.format("PartialObjectMetadata" + ("" if watches else "List"))
        if watches:
            if time.monotonic() > self._renew_at:
                raise ExpiredError
            request.url = request.url.copy_merge_params({"allowWatchBookmarks": "true"})
            request.extensions["timeout"]["read"] = SILENCE_SECONDS  # the client would wait for ever
            time.sleep(max(0.0, self._last + PACE_SECONDS - time.monotonic()))
            self._last = time.monotonic()
        elif "continue" not in request.url.params:
            # Out of the server's memory: all nodes may ask at once, and etcd would look at all pods of the
            # cluster. One that lags behind others may take a change of labels back, until its watch has that.
            request.url = request.url.copy_merge_params({"resourceVersion": "0"})
        response = super().handle_request(request)
        if not response.is_success:
            # else the client takes JSON that is announced for a Status, and fails where nothing is announced
            response.headers["Content-Type"] = ""
        elif watches:
            self._granted()
        return response


def connect(kubeconfig: Path | None, granted: Callable[[], None]) -> Client:
    """Return a client as a kubeconfig has it; without one as the service account of our own pod.

    It raises all kinds of exceptions, here and when it is used. It has to be closed. *granted* is called for
    each watch that begins.
    """
    found = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
    config = found.get()
    if config is None or config.user is None:
        raise ValueError(f"{kubeconfig}: the current context has no user")
    if config.user.token:  # in a file it may be a block, which ends in a newline
        config.user.token = config.user.token.strip()
    # no proxies and other authorities from the environment: the server is near
    verify = verify_cluster(config.cluster, config.user, config.abs_file, trust_env=False)
    transport = _Transport(granted, verify=verify, trust_env=False)
    return Client(config=config, transport=transport, trust_env=False)


def list_pods(client: Client, node: str) -> tuple[list[ObjectMeta], str]:
    """Return the pods of a node, and the version from which on `watch_pods` has what changes."""
    found = client.list(Pod, namespace="*", fields={"spec.nodeName": node}, chunk_size=_CHUNK)
    try:
        pods = [_metadata(pod) for pod in found]
    except httpx2.HTTPStatusError as error:
        raise _refusal(error.response) from None
    return pods, found.resourceVersion


def watch_pods(client: Client, node: str, version: str) -> Iterator[tuple[bool, ObjectMeta]]:
    """Yield each pod of a node that comes or changes (True) or goes (False). May raise `ExpiredError`."""
    events = client.watch(
        Pod,
        namespace="*",
        fields={"spec.nodeName": node},
        server_timeout=WATCH_SECONDS,
        resource_version=version,
    )
    try:
        for what, pod in events:
            if what in ("ADDED", "MODIFIED", "DELETED"):  # and no bookmark
                yield what != "DELETED", _metadata(pod)
    except httpx2.HTTPStatusError as error:
        code = error.status.code if isinstance(error, ApiError) else error.response.status_code
        if code == httpx2.codes.GONE:
            raise ExpiredError from None
        if isinstance(error, ApiError):
            raise
        raise _refusal(error.response) from None


def _refusal(response: httpx2.Response) -> Exception:
    """Return what a server says of what it refuses; the client says only how it was asked."""
    try:
        response.read()
        said = ApiError(request=response.request, response=response).status.message
    except (ValueError, RecursionError, httpx2.HTTPError):
        said = None
    return ValueError(said or f"{response.status_code} {response.reason_phrase}".rstrip())


def _metadata(pod: Pod) -> ObjectMeta:
    if pod.metadata is None:
        raise ValueError("an answer without metadata")
    return pod.metadata
