"""The HTTP server: what is answered on the listening sockets, and to how many."""

import asyncio
import gzip
import logging
import re
import resource
import socket
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from sockledger.exposition.text import negotiate
from sockledger.web import pages

_log = logging.getLogger(__name__)

# A connection that is idle between two scrapes must outlive the longest sensible scrape interval, 2 minutes.
IDLE_TIMEOUT_SECONDS = 150

WRITE_TIMEOUT_SECONDS = 30

# Silent clients must not use up the file descriptors, of which they get a quarter at most: accept() would
# fail in a busy loop.
MAX_CONNECTIONS = 512
_CROWDED_WARNING_SECONDS = 60

# How long a stop waits for the requests of connections that it has accepted just before.
_REQUEST_SECONDS = 0.1

_MAX_HEADER_BYTES = 16 * 1024
_MAX_BODY_BYTES = 1024

# Level 1 takes 40 ms for a page of 14 MB and leaves a tenth; level 6 takes 100 ms to leave a thirteenth.
_GZIP_LEVEL = 1


@dataclass(frozen=True, slots=True)
class ScrapeRequest:
    """Who asks for the metrics, None if it is no Prometheus server, and in which format."""

    scraper: str | None
    openmetrics: bool


@dataclass(frozen=True, slots=True)
class Scrape:
    """A page of metrics; *delivered* is called when it has gone out to a client that was still there."""

    page: bytes
    delivered: Callable[[], None]


class Server:
    """Serves the metrics, the health checks and the landing page on *sockets*.

    *scrape* and `Scrape.delivered` run in *executor*, so that the event loop always answers. More than
    *max_requests* scrapes at a time are refused; 0 is no limit.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        scrape: Callable[[ScrapeRequest], Scrape],
        executor: Executor,
        *,
        ready: Callable[[], bool],
        telemetry_path: str,
        max_requests: int,
        version: str,
    ) -> None:
        self.sockets = tuple(sockets)
        self._scrapes = _Scrapes(scrape, executor, max_requests)
        routes: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
            (re.escape(telemetry_path), _Metrics, {"scrapes": self._scrapes}),
            ("/-/healthy", _Healthy, {}),
            ("/-/ready", _Ready, {"ready": ready}),
            ("/", _Landing, {"html": pages.landing(telemetry_path, version)}),
        ]
        application = Application(routes, default_handler_class=_NotFound, log_function=_log_request)
        self._http = _HTTPServer(
            application,
            answering=self._scrapes.running,
            idle_connection_timeout=IDLE_TIMEOUT_SECONDS,
            body_timeout=IDLE_TIMEOUT_SECONDS,
            max_header_size=_MAX_HEADER_BYTES,
            max_body_size=_MAX_BODY_BYTES,
        )

    def start(self) -> None:
        """Accept connections, on the running event loop."""
        # Duplicates, as tornado closes its sockets when it stops and a successor may need ours.
        self._http.add_sockets([listening.dup() for listening in self.sockets])

    async def stop(self, grace_seconds: float) -> None:
        """Accept no more, let running scrapes finish within the grace period, close all connections.

        `sockets` stay open, for a successor; the caller closes them.
        """
        self._http.stop()
        await asyncio.sleep(min(_REQUEST_SECONDS, grace_seconds))
        await self._scrapes.finished(grace_seconds)
        self._http.close_streams()


class _HTTPServer(HTTPServer):
    """An HTTP server with a limit to its connections: a new one replaces the one that is idle longest."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Take tornado's arguments, and *answering*: connections that are not idle."""
        self._answering: Container[IOStream] = kwargs.pop("answering")
        super().initialize(*args, **kwargs)
        self._open: dict[IOStream, None] = {}  # the one whose last request is longest ago first
        self._most = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._warn_from = 0.0

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._open) >= self._most:
            self._warn()
            idle = next((each for each in self._open if each not in self._answering), None)
            if idle is None:
                stream.close()
                return
            del self._open[idle]
            idle.close()
        self._open[stream] = None
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: Any) -> Any:
        """Note that a connection waits for its first request, or for the next one."""
        if request_conn.stream in self._open:
            del self._open[request_conn.stream]
            self._open[request_conn.stream] = None  # now the last
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        self._open.pop(cast(HTTP1ServerConnection, server_conn).stream, None)
        super().on_close(server_conn)

    def close_streams(self) -> None:
        """Close all connections; whatever requests have been read already are not waited for."""
        for stream in list(self._open):
            stream.close()

    def _warn(self) -> None:
        now = time.monotonic()
        if now >= self._warn_from:
            self._warn_from = now + _CROWDED_WARNING_SECONDS
            _log.warning("all %d connections are in use: new ones replace idle ones", self._most)


class _Scrapes:
    """The scrapes that are being answered, from the request to the last byte of the response."""

    def __init__(self, scrape: Callable[[ScrapeRequest], Scrape], executor: Executor, limit: int) -> None:
        self.limit = limit
        self.running: list[IOStream] = []  # one may be here twice: requests can be pipelined
        self._scrape = scrape
        self._executor = executor
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def full(self) -> bool:
        """Whether one more is one too many."""
        return 0 < self.limit <= len(self.running)

    @contextmanager
    def answering(self, stream: IOStream) -> Iterator[None]:
        """Count a scrape as running."""
        self.running.append(stream)
        self._idle.clear()
        try:
            yield
        finally:
            self.running.remove(stream)
            if not self.running:
                self._idle.set()

    def start(self, request: ScrapeRequest, *, compressed: bool) -> asyncio.Future[Scrape]:
        """Start a scrape."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, self._run, request, compressed)

    def _run(self, request: ScrapeRequest, compressed: bool) -> Scrape:  # noqa: FBT001
        scrape = self._scrape(request)
        if compressed:
            scrape = replace(scrape, page=gzip.compress(scrape.page, _GZIP_LEVEL, mtime=0))
        return scrape

    def delivered(self, scrape: Scrape) -> None:
        """Tell that a page has gone out."""
        self._executor.submit(scrape.delivered)

    async def finished(self, timeout_seconds: float) -> None:
        """Wait until none is running, or for the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            _log.warning(
                "a scrape is still running after %g seconds, its connection is closed", timeout_seconds
            )


class _Handler(RequestHandler):
    """Answers in plain text, and closes clients that do not read the answer."""

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Type", "text/plain; charset=utf-8")

    def compute_etag(self) -> None:
        """No page is asked for twice, so that a hash of it would be of no use."""

    @property
    def stream(self) -> IOStream:
        """The connection to the client."""
        return cast(HTTP1Connection, self.request.connection).stream

    def limit_writing(self) -> asyncio.TimerHandle:
        """Close the connection after a while, unless that is cancelled."""
        return asyncio.get_running_loop().call_later(WRITE_TIMEOUT_SECONDS, self.stream.close)

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> "asyncio.Future[None]":
        timeout = self.limit_writing()
        written = super().finish(chunk)
        written.add_done_callback(lambda _: timeout.cancel())
        return written

    def write_error(self, status_code: int, **_kwargs: Any) -> None:
        if status_code == 405:
            self.set_header("Allow", "GET, HEAD")
        self.finish(f"{self._reason}\n")

    def log_exception(self, _type: object, value: BaseException | None, _traceback: object) -> None:
        if value is not None and not isinstance(value, HTTPError | StreamClosedError):
            _log.error("%s failed", self.request.path, exc_info=value)

    def head(self) -> Any:
        """Answer as to GET; tornado leaves the body out."""
        return self.get()


class _Metrics(_Handler):
    _scrape: asyncio.Future[Scrape] | None = None

    def initialize(self, scrapes: _Scrapes) -> None:
        self._scrapes = scrapes

    async def get(self) -> None:
        if self._scrapes.full:
            self.set_status(503)
            self.finish(f"Limit of concurrent requests reached ({self._scrapes.limit}), try again later.\n")
            return
        if self.stream.closed():  # requests that were pipelined by a client that has gone
            return
        with self._scrapes.answering(self.stream):
            headers = self.request.headers
            openmetrics, content_type = negotiate(headers.get("Accept"))
            compressed = _accepts_gzip(headers.get("Accept-Encoding", ""))
            self._scrape = self._scrapes.start(
                ScrapeRequest(self._scraper(), openmetrics), compressed=compressed
            )
            try:
                scrape = await self._scrape
            except asyncio.CancelledError:
                return
            self.set_header("Content-Type", content_type)
            self.set_header("Vary", "Accept, Accept-Encoding")
            if compressed:
                self.set_header("Content-Encoding", "gzip")
            self.set_header("Content-Length", str(len(scrape.page)))
            self.write(scrape.page)
            timeout = self.limit_writing()
            try:
                self.flush()
                await self.stream.write(b"")  # tornado's own futures hide that a client has gone
            except StreamClosedError:
                return
            finally:
                timeout.cancel()
            self._scrapes.delivered(scrape)

    def on_connection_close(self) -> None:
        """Drop the scrape of a client that has gone, unless it is running."""
        if self._scrape is not None:
            self._scrape.cancel()

    def _scraper(self) -> str | None:
        headers = self.request.headers
        if self.request.method != "GET" or "X-Prometheus-Scrape-Timeout-Seconds" not in headers:
            return None
        return f"{self.request.remote_ip} {headers.get('User-Agent', '')}"


class _Healthy(_Handler):
    def get(self) -> None:
        self.finish("sockledger is healthy.\n")


class _Ready(_Handler):
    def initialize(self, ready: Callable[[], bool]) -> None:
        self._is_ready = ready

    def get(self) -> None:
        if self._is_ready():
            self.finish("sockledger is ready.\n")
        else:
            self.set_status(503)
            self.finish("sockledger is not ready yet.\n")


class _Landing(_Handler):
    def initialize(self, html: str) -> None:
        self._html = html

    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(self._html)


class _NotFound(_Handler):
    def prepare(self) -> None:
        raise HTTPError(404)


def _log_request(handler: RequestHandler) -> None:
    request = handler.request
    _log.debug("%s %s from %s: %d", request.method, request.path, request.remote_ip, handler.get_status())


def _accepts_gzip(accept_encoding: str) -> bool:
    for coding in accept_encoding.split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() == "gzip":
            return re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight, re.IGNORECASE) is None
    return False
