"""A real HTTP server inside the tests, which answers what it is told, and can be slow, endless, or hold its answer."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

ENDLESS_PART = b"x" * 65536


@dataclass(frozen=True)
class Received:
    """A request as it came in; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What to answer."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"thanks"
    # After the head a body without end follows, as fast as the client takes it.
    is_endless: bool = False
    # Each byte of the head comes alone, with this pause between.
    drip_seconds: float = 0


class HttpServer:
    """Listens on a free port of a loopback address; answers 200 unless told otherwise."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.requests: list[Received] = []
        self.held_count = 0
        self.sent_bytes = 0
        self._replies: deque[Reply] = deque()
        self._default = Reply()
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    # The client has gone.
                    self.close_connection = True

            def do_POST(self) -> None:
                server._serve(self)

            do_GET = do_PATCH = do_PUT = do_POST  # noqa: N815  # their names

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.host, self.port = host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    def answer(self, *replies: Reply) -> None:
        """The next requests are answered so, one each; then with what `always` says."""
        self._replies.extend(replies)

    def always(self, reply: Reply) -> None:
        """From now on requests are answered so."""
        self._default = reply

    def hold(self) -> None:
        """Requests that come now get no answer until `release`; `held_count` of them wait."""
        self._open.clear()

    def release(self) -> None:
        """Answers those that wait."""
        self._open.set()

    def start(self) -> None:
        """Listens."""
        self._thread.start()

    def stop(self) -> None:
        """Listens no more."""
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.requests.append(Received(handler.command, handler.path, headers, body))
            reply = self._replies.popleft() if self._replies else self._default
            self.held_count += 1
        self._open.wait(60)
        with self._lock:
            self.held_count -= 1
        self._send(handler, reply)

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        lines = [f"HTTP/1.1 {reply.status} Said", *(f"{name}: {value}" for name, value in reply.headers.items())]
        if not (reply.is_endless or "Content-Length" in reply.headers):
            lines.append(f"Content-Length: {len(reply.body)}")
        head = "\r\n".join([*lines, "", ""]).encode()
        if reply.drip_seconds:
            for byte in head:
                handler.wfile.write(bytes([byte]))
                threading.Event().wait(reply.drip_seconds)
        else:
            handler.wfile.write(head)
        handler.wfile.write(reply.body)
        # A length that the reply states itself may promise more than there is.
        handler.close_connection = "Content-Length" in reply.headers or reply.is_endless
        while reply.is_endless:
            handler.wfile.write(ENDLESS_PART)
            self.sent_bytes += len(ENDLESS_PART)


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    """An HTTP server for one test, at the loopback address that webhooks may be sent to."""
    server = HttpServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def private_server() -> Iterator[HttpServer]:
    """An HTTP server at an address that webhooks may not be sent to."""
    server = HttpServer("127.0.0.2")
    server.start()
    yield server
    server.stop()
