"""Uploads against the real web server: bodies that are longer or shorter than they say."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from PIL import Image

from accounts.models import User
from accounts.services import create_token
from devstack.ports import free_port
from media_jobs.models import Picture
from tests.media_jobs.samples import corners, saved
from tests.processes import Processes
from tests.waiting import wait_until

BOUNDARY = "boundary"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture
def port(processes: Processes) -> int:
    port = free_port()
    processes.start("granian", "--interface=wsgi", f"--port={port}", "--blocking-threads=2", "config.wsgi:application")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, timeout=60)
    return port


@pytest.fixture
def token(transactional_db: None) -> str:
    return create_token(user=User.objects.create_user("ann@example.com", name="Ann"))


def answer_to(port: int, token: str | None, body: bytes, *, declared: int) -> bytes:
    """The first bytes of the answer to a body of another length than declared; empty where the server hung up."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST /api/images HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {declared}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head.encode() + body)
        if len(body) < declared and body:
            client.shutdown(socket.SHUT_WR)
        try:
            return client.recv(65_536)
        except ConnectionResetError:
            return b""


def stored_files() -> list[Path]:
    return [path for path in Path(settings.MEDIA_ROOT).rglob("*") if path.is_file()]


# The larger one is written to a temporary file on its way.
@pytest.mark.parametrize("side", [400, 2500])
def test_a_body_that_lies_about_its_length_becomes_no_picture(port: int, token: str, side: int) -> None:
    content = saved(Image.effect_noise((side, side), 90).convert("RGB"))
    whole = HEAD + content + TAIL
    before = stored_files()
    # Cut off in the middle of the file, and one byte before the last boundary is whole.
    for body in (whole[: len(whole) // 2], whole[:-5]):
        assert not answer_to(port, token, body, declared=len(whole)).startswith(b"HTTP/1.1 202")
    # Declared too short, the rest of the file is not part of it.
    answer_to(port, token, whole, declared=len(whole) // 2)
    assert Picture.objects.count() == 0
    assert stored_files() == before
    assert answer_to(port, token, whole, declared=len(whole)).startswith(b"HTTP/1.1 202")
    assert Picture.objects.count() == 1


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(port: int, token: str) -> None:
    too_large = settings.PICTURE_MAX_BYTES * 2
    assert answer_to(port, token, b"", declared=too_large).startswith(b"HTTP/1.1 413")


def test_a_stranger_is_refused_before_his_upload_is_sent(port: int) -> None:
    assert answer_to(port, None, b"", declared=settings.PICTURE_MAX_BYTES).startswith(b"HTTP/1.1 401")


def test_a_chunked_upload_needs_a_length_unless_it_is_small(port: int, token: str) -> None:
    def in_pieces(content: bytes) -> Iterator[bytes]:
        body = HEAD + content + TAIL
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
    }
    url = f"http://127.0.0.1:{port}/api/images"
    assert httpx.post(url, content=in_pieces(saved(corners())), headers=headers, timeout=30).status_code == 202
    large = httpx.post(url, content=in_pieces(b"x" * 300_000), headers=headers, timeout=30)
    assert (large.status_code, large.json()["error"]["message"]) == (411, "Send the body with a Content-Length.")
