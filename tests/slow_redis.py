"""A way to the real Redis on which every answer takes its time."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from django.conf import settings

from devstack.ports import LOOPBACK

CHUNK_BYTES = 65_536


class SlowRedis(socketserver.ThreadingTCPServer):
    """Passes everything on, answers `delay_seconds` later than they came, and remembers what Redis was told."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Passing)
        self.delay_seconds = 0.12
        self.told = b""
        target = urlsplit(settings.REDIS_URL)
        self.target = (target.hostname or LOOPBACK, target.port or 6379)
        self.url = f"redis://:{target.password}@{LOOPBACK}:{self.server_address[1]}/0"

    def count(self, command: bytes) -> int:
        """How often Redis was told this."""
        return self.told.count(command)


class _Passing(socketserver.BaseRequestHandler):
    server: SlowRedis

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as redis:
            threading.Thread(target=self._answer, args=[redis], daemon=True).start()
            while chunk := self.request.recv(CHUNK_BYTES):
                self.server.told += chunk
                redis.sendall(chunk)

    def _answer(self, redis: socket.socket) -> None:
        try:
            while chunk := redis.recv(CHUNK_BYTES):
                time.sleep(self.server.delay_seconds)
                self.request.sendall(chunk)
        except OSError:
            return  # one of the two ends has left


@pytest.fixture
def slow_redis(empty_redis: None) -> Iterator[SlowRedis]:
    """The Redis of this test run, slower than a request may wait."""
    with SlowRedis() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
