import asyncio
import gzip
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from html.parser import HTMLParser
from typing import Any
from unittest.mock import Mock

import pytest

from sockledger.web import pages, server
from sockledger.web.listen import bind
from sockledger.web.server import Scrape, ScrapeRequest, Server

PAGE = b"# TYPE x gauge\nx 1.0\n" * 100
HUGE_PAGE = b"x" * 30_000_000
PATIENCE = 20


class Running:
    """A server whose event loop runs in a thread."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.requests: list[ScrapeRequest] = []
        self.executor = ThreadPoolExecutor(1)
        self.sockets = bind([("127.0.0.1", 0)])
        self.port: int = self.sockets[0].getsockname()[1]
        scrape: Callable[[ScrapeRequest], bytes] = options.pop("scrape", lambda _request: PAGE)
        self.delivered: list[ScrapeRequest] = []

        def recorded(request: ScrapeRequest) -> Scrape:
            self.requests.append(request)
            return Scrape(scrape(request), partial(self.delivered.append, request))

        defaults: dict[str, Any] = {
            "ready": lambda: True,
            "telemetry_path": "/metrics",
            "max_requests": 40,
            "version": "1.2.3",
        }
        self.server = Server(self.sockets, recorded, self.executor, **(defaults | options))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.call(self._start())

    async def _start(self) -> None:
        self.server.start()

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def stop(self, grace_seconds: float = PATIENCE) -> None:
        self.call(self.server.stop(grace_seconds))

    def close(self) -> None:
        self.stop(0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.executor.shutdown()
        for listening in self.sockets:
            listening.close()

    def get(
        self, path: str = "/metrics", method: str = "GET", **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            response = connection.getresponse()
            return response, response.read()

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(sent)
        return connection


@contextmanager
def running(**options: Any) -> Iterator[Running]:
    with closing(Running(options)) as made:
        yield made


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    got = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            got += chunk
    return got


class Gate:
    """A scrape that waits to be let go."""

    def __init__(self, page: bytes = PAGE) -> None:
        self.page = page
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _request: ScrapeRequest) -> bytes:
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return self.page


# Answers


def test_metrics() -> None:
    with running() as web:
        response, body = web.get()
    assert (response.status, body) == (200, PAGE)
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "Accept-Encoding" in response.headers["Vary"]
    assert response.headers["Content-Encoding"] is None
    assert response.headers["Server"] is None


def test_the_format_is_negotiated() -> None:
    with running() as web:
        response, _ = web.get(Accept="application/openmetrics-text;version=1.0.0")
        web.get()
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert [request.openmetrics for request in web.requests] == [True, False]


def test_a_prometheus_server_is_known_by_address_and_user_agent() -> None:
    prometheus = {"X_Prometheus_Scrape_Timeout_Seconds": "10", "User_Agent": "Prometheus/3.5.0"}
    with running() as web:
        web.get(**prometheus)
        web.get(User_Agent="curl/8")
        web.get(method="HEAD", **prometheus)
    scrapers = [request.scraper for request in web.requests]
    assert scrapers == ["127.0.0.1 Prometheus/3.5.0", None, None]


@pytest.mark.parametrize("accepted", ["gzip", "deflate, GZIP;q=0.5", "gzip ; q=1.0", "br,gzip"])
def test_gzip(accepted: str) -> None:
    with running() as web:
        response, body = web.get(Accept_Encoding=accepted)
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(body) < len(PAGE)
    assert gzip.decompress(body) == PAGE


@pytest.mark.parametrize("accepted", ["", "identity", "gzip;q=0", "gzip; q=0.000, br", "xgzip"])
def test_no_gzip(accepted: str) -> None:
    with running() as web:
        response, body = web.get(Accept_Encoding=accepted)
    assert response.headers["Content-Encoding"] is None
    assert body == PAGE


@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/-/ready"])
def test_head_answers_as_get_without_body(path: str) -> None:
    with running() as web:
        response, body = web.get(path, "HEAD")
        whole, content = web.get(path)
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == whole.headers["Content-Length"] == str(len(content))
    assert response.headers["Content-Type"] == whole.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/-/ready"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_not_allowed(path: str, method: str) -> None:
    with running() as web:
        response, body = web.get(path, method)
    assert (response.status, body) == (405, b"Method Not Allowed\n")
    assert response.headers["Allow"] == "GET, HEAD"
    assert web.requests == []


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/metricsx", "/-/", "//", "/favicon.ico"])
def test_unknown_paths(path: str) -> None:
    with running() as web:
        response, body = web.get(path)
    assert (response.status, body) == (404, b"Not Found\n")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_the_telemetry_path_is_no_pattern() -> None:
    with running(telemetry_path="/a.b") as web:
        assert web.get("/a.b")[1] == PAGE
        assert web.get("/axb")[0].status == 404
        assert web.get("/metrics")[0].status == 404


def test_metrics_at_the_root_replace_the_landing_page() -> None:
    with running(telemetry_path="/") as web:
        assert web.get("/")[1] == PAGE


def test_health_and_readiness() -> None:
    ready = False
    with running(ready=lambda: ready) as web:
        assert web.get("/-/healthy")[0].status == 200
        response, body = web.get("/-/ready")
        assert (response.status, body) == (503, b"sockledger is not ready yet.\n")
        ready = True
        response, body = web.get("/-/ready")
        assert (response.status, body) == (200, b"sockledger is ready.\n")


def test_a_failing_scrape_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_request: ScrapeRequest) -> bytes:
        raise RuntimeError("the map is gone")

    with running(scrape=fail) as web:
        response, body = web.get()
        assert (response.status, body) == (500, b"Internal Server Error\n")
        assert web.get("/-/healthy")[0].status == 200
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "the map is gone" in caplog.text


def test_ordinary_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running() as web:
        for path in ("/metrics", "/nothing", "/"):
            web.get(path)
        web.get("/metrics", "POST")
    assert caplog.records == []


def test_one_connection_serves_several_requests() -> None:
    with (
        running() as web,
        closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=PATIENCE)) as connection,
    ):
        connection.connect()
        own = connection.sock
        for _ in range(3):
            connection.request("GET", "/metrics")
            assert connection.getresponse().read() == PAGE
            assert connection.sock is own


# Load and clients that behave badly


def test_health_is_answered_while_a_scrape_runs() -> None:
    gate = Gate()
    with running(scrape=gate) as web, web.connect(b"GET /metrics HTTP/1.0\r\n\r\n") as client:
        assert gate.entered.wait(PATIENCE)
        assert web.get("/-/healthy")[0].status == 200
        gate.opened.set()
        assert received(client).endswith(PAGE)


def test_too_many_scrapes_are_refused() -> None:
    gate = Gate()
    with running(scrape=gate, max_requests=2) as web, ExitStack() as clients:
        waiting = [clients.enter_context(web.connect(b"GET /metrics HTTP/1.0\r\n\r\n")) for _ in range(2)]
        eventually(lambda: web.server._scrapes.full)
        response, body = web.get()
        assert response.status == 503
        assert body == b"Limit of concurrent requests reached (2), try again later.\n"
        assert web.get("/-/healthy")[0].status == 200
        gate.opened.set()
        assert all(received(client).endswith(PAGE) for client in waiting)
        eventually(lambda: not web.server._scrapes.full)
        assert web.get()[0].status == 200


def test_without_limit_all_scrapes_are_served() -> None:
    gate = Gate()
    with running(scrape=gate, max_requests=0) as web, ExitStack() as clients:
        waiting = [clients.enter_context(web.connect(b"GET /metrics HTTP/1.0\r\n\r\n")) for _ in range(60)]
        assert gate.entered.wait(PATIENCE)
        gate.opened.set()
        assert all(received(client).endswith(PAGE) for client in waiting)


def test_a_client_that_has_gone_is_not_scraped_for() -> None:
    gate = Gate()
    with running(scrape=gate) as web:
        with web.connect(b"GET /metrics HTTP/1.0\r\n\r\n") as first:
            assert gate.entered.wait(PATIENCE)
            with web.connect(b"GET /metrics HTTP/1.0\r\n\r\n"):
                eventually(lambda: len(web.server._scrapes.running) == 2)
            eventually(lambda: len(web.server._scrapes.running) == 1)
            gate.opened.set()
            assert received(first).endswith(PAGE)
        web.get()
        assert len(web.requests) == 2


def test_half_sent_and_silent_requests_keep_nobody_waiting() -> None:
    with running() as web, ExitStack() as clients:
        for number in range(300):
            clients.enter_context(web.connect(b"GET /metrics HTTP/1.1\r\nHost:" if number % 2 else b""))
        assert web.get()[1] == PAGE


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /metrics HTTP/1.1\r\nHost:", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf"],
)
def test_half_sent_and_silent_requests_are_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT_SECONDS", 0.2)
    with running() as web, web.connect(sent) as client:
        assert received(client) == b""


def test_a_request_that_trickles_in_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(client: socket.socket) -> None:
        for _ in range(PATIENCE * 20):
            client.sendall(b"X: y\r\n")
            time.sleep(0.05)

    monkeypatch.setattr(server, "IDLE_TIMEOUT_SECONDS", 0.3)
    with running() as web, web.connect(b"GET / HTTP/1.1\r\n") as client, pytest.raises(ConnectionError):
        trickle(client)


def test_beyond_the_limit_the_connection_idle_longest_goes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    with running() as web, ExitStack() as clients:
        first, second, third = (clients.enter_context(web.connect()) for _ in range(3))
        for _ in range(2):  # with the second answer it is certain that the first one is noted
            first.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n")
            assert first.recv(1000).endswith(b"sockledger is healthy.\n")
        assert web.get("/-/ready")[0].status == 200
        assert received(second) == b""
        third.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert received(third).endswith(b"sockledger is healthy.\n")
        for _ in range(100):
            clients.enter_context(web.connect())
        assert web.get()[0].status == 200
        assert received(first) == b""
        eventually(lambda: len(web.server._http._connections) <= 3)
    assert caplog.text.count("all 3 connections are in use") == 1


@contextmanager
def answering_two_scrapes() -> Iterator[Running]:
    """A server that works on two scrapes meanwhile; both are answered in the end."""
    gate = Gate()
    with running(scrape=gate) as web, ExitStack() as clients:
        scrapes = [clients.enter_context(web.connect(b"GET /metrics HTTP/1.0\r\n\r\n")) for _ in range(2)]
        eventually(lambda: len(web.server._scrapes.running) == 2)
        yield web
        gate.opened.set()
        assert all(received(scrape).endswith(PAGE) for scrape in scrapes)


def test_a_new_connection_is_refused_if_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    with answering_two_scrapes() as web, web.connect(b"GET / HTTP/1.0\r\n\r\n") as refused:
        assert received(refused) == b""


def test_connections_that_are_answered_are_not_closed_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    with answering_two_scrapes() as web:
        for _ in range(10):
            assert web.get("/-/healthy")[0].status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    ],
)
def test_oversized_and_malformed_requests_are_closed(sent: bytes) -> None:
    with running() as web:
        with web.connect() as client:
            with suppress(ConnectionError):
                client.sendall(sent)
            assert received(client) in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert web.requests == []
        assert web.get()[0].status == 200


def reading_nothing(web: Running) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", web.port))
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    return client


def test_a_client_that_does_not_read_keeps_nobody_waiting() -> None:
    with running(scrape=lambda _request: HUGE_PAGE) as web, reading_nothing(web):
        eventually(lambda: len(web.requests) == 1)
        assert web.get()[1] == HUGE_PAGE
        assert web.get("/-/healthy")[0].status == 200


def test_a_client_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_TIMEOUT_SECONDS", 0.3)
    with running(scrape=lambda _request: HUGE_PAGE, max_requests=1) as web, reading_nothing(web) as client:
        eventually(lambda: len(web.requests) == 1)
        eventually(lambda: not web.server._scrapes.full)
        eventually(lambda: not web.server._http._connections)
        assert len(received(client)) < len(HUGE_PAGE)


def test_a_client_that_leaves_while_it_is_written_to_frees_its_place() -> None:
    with running(scrape=lambda _request: HUGE_PAGE, max_requests=1) as web:
        with reading_nothing(web) as client:
            assert client.recv(1)
            assert web.get("/-/healthy")[0].status == 200
            assert web.get()[0].status == 503
        eventually(lambda: not web.server._scrapes.full)


@pytest.mark.parametrize(
    ("version", "header"),
    [("1.0", ""), ("1.1", "Connection: close\r\n"), ("1.1", "Connection: keep-alive\r\n")],
)
@pytest.mark.parametrize("page", [PAGE, HUGE_PAGE], ids=["small", "huge"])
def test_delivered_on_every_kind_of_connection(version: str, header: str, page: bytes) -> None:
    request = (
        f"GET /metrics HTTP/{version}\r\nHost: a\r\n{header}X-Prometheus-Scrape-Timeout-Seconds: 1\r\n\r\n"
    )
    with running(scrape=lambda _request: page) as web, web.connect(request.encode()) as client:
        got = b""
        while not got.endswith(b"\r\n\r\n" + page):
            got += client.recv(1 << 20)
        eventually(lambda: len(web.delivered) == 1)
        assert b"Content-Length: %d\r\n" % len(page) in got


def test_delivered_is_what_has_gone_out() -> None:
    with running(scrape=lambda request: HUGE_PAGE if request.scraper is None else PAGE) as web:
        with reading_nothing(web) as client:
            assert client.recv(1)
        eventually(lambda: not web.server._http._connections)
        prometheus = {"X_Prometheus_Scrape_Timeout_Seconds": "10", "User_Agent": "Prometheus/3.5.0"}
        web.get(**prometheus)
        eventually(lambda: bool(web.delivered))
        assert [request.scraper for request in web.delivered] == ["127.0.0.1 Prometheus/3.5.0"]


def pipelined(web: Running, path: str, number: int) -> socket.socket:
    client = reading_nothing(web)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * number)
    return client


def test_pipelined_scrapes(caplog: pytest.LogCaptureFixture) -> None:
    with running() as web:
        with pipelined(web, "/metrics", 2000):
            eventually(lambda: len(web.requests) > 100)
        eventually(lambda: not web.server._http._connections and not web.server._scrapes.running)
        assert len(web.requests) < 2000
    assert not caplog.text


# Stopping


def test_stop_does_not_answer_what_is_pipelined() -> None:
    with running() as web, ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(pipelined(web, "/-/healthy", 1000))
            clients.enter_context(pipelined(web, "/metrics", 1000))
        eventually(lambda: len(web.requests) > 10)
        web.stop(0.2)
        assert len(web.requests) < 20 * 1000


def test_stop_answers_connections_it_has_just_accepted() -> None:
    with running() as web, web.connect() as client:
        eventually(lambda: len(web.server._http._connections) == 1)
        stopped = asyncio.run_coroutine_threadsafe(web.server.stop(PATIENCE), web.loop)
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert received(client).endswith(PAGE)
        stopped.result(PATIENCE)


def test_stop_lets_a_running_scrape_finish() -> None:
    gate = Gate()
    with running(scrape=gate) as web, web.connect(b"GET /metrics HTTP/1.0\r\n\r\n") as client:
        assert gate.entered.wait(PATIENCE)
        stopped = asyncio.run_coroutine_threadsafe(web.server.stop(PATIENCE), web.loop)
        time.sleep(0.2)
        assert not stopped.done()
        gate.opened.set()
        stopped.result(PATIENCE)
        assert received(client).endswith(PAGE)


def test_stop_does_not_wait_longer_than_the_grace_period() -> None:
    gate = Gate()
    with running(scrape=gate) as web, web.connect(b"GET /metrics HTTP/1.0\r\n\r\n") as client:
        assert gate.entered.wait(PATIENCE)
        web.stop(grace_seconds=0.1)
        assert received(client) == b""
        gate.opened.set()


def test_stop_closes_connections_and_keeps_the_sockets_for_a_successor() -> None:
    with running() as web, web.connect() as idle:
        web.get()
        web.stop()
        assert received(idle) == b""
        with web.connect(b"GET /metrics HTTP/1.0\r\n\r\n") as waiting:
            assert web.server.sockets == tuple(web.sockets)
            successor = Server(
                web.sockets,
                lambda _request: Scrape(b"from the successor\n", Mock()),
                web.executor,
                ready=lambda: True,
                telemetry_path="/metrics",
                max_requests=0,
                version="2",
            )
            web.server = successor
            web.call(web._start())
            assert received(waiting).endswith(b"from the successor\n")
        assert len(web.requests) == 1


# Landing page


class Links(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, value) for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_landing_page() -> None:
    with running() as web:
        response, body = web.get("/")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    page = Links(body.decode())
    assert page.found == [("a", "/metrics"), ("a", "/-/healthy"), ("a", "/-/ready")]
    assert "1.2.3" in page.text
    assert "url(" not in page.text
    assert "prefers-color-scheme: dark" in page.text


def test_landing_page_escapes_its_values() -> None:
    page = Links(pages.landing('/"><b src=x>&amp;', "<script src=x>"))
    assert page.found[0] == ("a", '/"><b src=x>&amp;')
    assert all(tag == "a" for tag, _ in page.found)
    assert "<script src=x>" in page.text
