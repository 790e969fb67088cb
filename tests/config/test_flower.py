"""Flower behind the admin's login: a real Flower, and a recorder that shows what would have reached it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import User
from devstack.ports import free_port
from tests.processes import Processes
from tests.waiting import wait_until

PAGE = {"Accept": "text/html,application/xhtml+xml"}


class Recorder(ThreadingHTTPServer):
    """An HTTP server in Flower's place that keeps what it is asked, and answers with more headers than are wanted."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), RecordingHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class RecordingHandler(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, self.path, headers, body))
        self.send_response(302 if "moved" in self.path else 200)
        self.send_header("Content-Type", "text/html; charset=UTF-8")
        self.send_header("Set-Cookie", "_xsrf=abc; Path=/")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Server", "Recorder")
        if "moved" in self.path:
            self.send_header("Location", f"{self.server.url}/admin/flower/workers")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def recorder(settings: Settings) -> Iterator[Recorder]:
    with Recorder() as server:
        settings.FLOWER_URL = server.url
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_flower(settings: Settings) -> None:
    settings.FLOWER_URL = f"http://127.0.0.1:{free_port()}"


def test_flower_serves_its_pages_assets_and_calls_under_the_admin(
    processes: Processes, settings: Settings, admin_client: Client
) -> None:
    settings.FLOWER_URL = url = f"http://127.0.0.1:{free_port()}"
    flower = processes.start("celery", "-A", "config", "flower", env={"FLOWER_URL": url})

    def runs() -> bool:
        assert flower.status is None, flower.output
        try:
            return httpx.get(f"{url}/admin/flower/healthcheck", trust_env=False).text == "OK"
        except httpx.TransportError:
            return False

    wait_until(runs, timeout=60, reason="Flower answers")
    workers = admin_client.get("/admin/flower/", headers=PAGE)
    assert workers.status_code == 200
    text = workers.content.decode()
    assert "<title>Workers" in text
    assert 'src="/admin/flower/static/js/flower.js' in text
    assert 'href="/admin/flower/tasks"' in text
    script = admin_client.get("/admin/flower/static/js/flower.js")
    assert script.status_code == 200
    assert "javascript" in script["Content-Type"]
    assert script["Cache-Control"] == "private, no-cache"
    assert (
        admin_client.get("/admin/flower/static/js/flower.js", headers={"If-None-Match": script["ETag"]}).status_code
        == 304
    )
    assert admin_client.get("/admin/flower/workers?json=1").json()["data"] == []
    table = admin_client.post(
        "/admin/flower/tasks/datatable",
        "draw=1&start=0&length=10&search%5Bvalue%5D=&order%5B0%5D%5Bcolumn%5D=0&order%5B0%5D%5Bdir%5D=asc"
        "&columns%5B0%5D%5Bdata%5D=name",
        content_type="application/x-www-form-urlencoded",
        headers={"Sec-Fetch-Site": "same-origin"},
    )
    assert table.json()["recordsTotal"] == 0
    # Read-only: what would act on workers and tasks past the ledger is refused by Flower itself.
    for call in ("worker/shutdown/celery@here", "task/send-task/notifications.tasks.send_welcome"):
        answer = admin_client.post(f"/admin/flower/api/{call}", headers={"Sec-Fetch-Site": "same-origin"})
        assert answer.status_code in (401, 403)
    admin_client.logout()
    assert admin_client.get("/admin/flower/", headers=PAGE).status_code == 302


@pytest.mark.django_db
@pytest.mark.parametrize("who", ["nobody", "user", "inactive staff"])
def test_without_staff_login_nothing_reaches_flower(recorder: Recorder, client: Client, who: str) -> None:
    if who != "nobody":
        user = User.objects.create_user("a@example.com", name="A", is_staff=who == "inactive staff")
        client.force_login(user)
        User.objects.filter(pk=user.pk).update(is_active=who == "user")
    answer = client.get("/admin/flower/tasks?limit=3", headers=PAGE)
    assert answer.status_code == 302
    assert answer["Location"] == "/admin/login/?next=/admin/flower/tasks%3Flimit%3D3"
    for path in ("metrics", "healthcheck", "api/workers", "static/js/flower.js"):
        assert client.get(f"/admin/flower/{path}").status_code == 403
    assert client.post("/admin/flower/tasks/datatable", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 403
    assert recorder.requests == []


def test_only_the_needed_headers_pass_in_both_directions(recorder: Recorder, admin_client: Client) -> None:
    # Flower sets a cookie in each answer: no later request may bring it back.
    admin_client.get("/admin/flower/workers", headers=PAGE)
    recorder.requests.clear()
    answer = admin_client.get(
        "/admin/flower/worker/celery@web%201?x=%2F",
        headers={**PAGE, "Authorization": "Basic c2VjcmV0", "X-Forwarded-For": "1.2.3.4", "Accept-Language": "de"},
    )
    [(method, path, headers, _)] = recorder.requests
    assert (method, path) == ("GET", "/admin/flower/worker/celery@web%201?x=%2F")
    assert headers["accept-language"] == "de"
    assert headers.keys() <= {"host", "accept", "accept-encoding", "accept-language", "connection", "user-agent"}
    assert answer.content == b"ok"
    assert not answer.cookies
    assert "Access-Control-Allow-Origin" not in answer
    assert "Server" not in answer
    assert answer["Cache-Control"] == "private, no-store"
    assert answer["X-Frame-Options"] == "DENY"


def test_a_post_reaches_flower_from_our_own_pages_only(recorder: Recorder, admin_client: Client) -> None:
    url = "/admin/flower/tasks/datatable"
    for refused in (
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://testserver"},
        {"Referer": "http://testserver.evil.example/"},
    ):
        assert admin_client.post(url, {"draw": 1}, headers=refused).status_code == 403, refused
    assert recorder.requests == []
    for taken in (
        {"Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://testserver"},
        {"Referer": "http://testserver/admin/flower/tasks"},
    ):
        assert admin_client.post(url, "draw=1", content_type="text/plain", headers=taken).status_code == 200, taken
    assert [body for _, _, _, body in recorder.requests] == [b"draw=1"] * 3
    assert admin_client.delete(url, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 405


def test_a_redirect_to_flowers_own_port_becomes_one_to_ours(recorder: Recorder, admin_client: Client) -> None:
    answer = admin_client.get("/admin/flower/moved")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/flower/workers")


@pytest.mark.usefixtures("no_flower")
def test_without_flower_the_page_says_how_to_start_it(admin_client: Client) -> None:
    answer = admin_client.get("/admin/flower/", headers=PAGE)
    assert answer.status_code == 503
    assert "celery -A config flower" in answer.content.decode()
    call = admin_client.get("/admin/flower/api/workers")
    assert (call.status_code, call.content) == (503, b"Flower does not run.\n")
