"""Against the real web server: how a body is cut into pieces, and what it does behind one, is its business."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from accounts.models import User
from devstack.ports import free_port
from tests.processes import Processes
from tests.waiting import wait_until

ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse battery"}


@pytest.fixture
def web(processes: Processes) -> Iterator[httpx.Client]:
    port = free_port()
    processes.start("granian", "--interface=wsgi", f"--port={port}", "--blocking-threads=2", "config.wsgi:application")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, timeout=60)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client


def in_pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


@pytest.mark.django_db(transaction=True)
def test_a_chunked_body_is_read_and_refused_like_any_other(web: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    response = web.post("/signup", content=in_pieces(json.dumps(ANN).encode()), headers=headers)
    assert response.request.headers["Transfer-Encoding"] == "chunked"
    assert response.status_code == 201
    assert User.objects.get().email == ANN["email"]

    padded = json.dumps({**ANN, "padding": "x" * 20_000}).encode()
    for body, connection in ((padded, None), (b"x" * 300_000, "close")):
        response = web.post("/signup", content=in_pieces(body), headers=headers)
        assert response.status_code == 413
        assert "too large" in response.json()["error"]["message"]
        assert response.headers.get("Connection") == connection

    assert web.post("/signup", content=in_pieces(b""), headers=headers).status_code == 400


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_closes_behind_an_unread_body_is_announced(web: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    for _ in range(20):
        response = web.post("/signup", content=b"x" * 300_000, headers=headers)
        assert (response.status_code, response.headers["Connection"]) == (413, "close")
        response = web.post("/signup", content=b"{}", headers=headers)
        assert (response.status_code, "Connection" in response.headers) == (422, False)
    assert "Connection" not in web.get("/health").headers
