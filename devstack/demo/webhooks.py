"""A chapter of the demo: events go out to an endpoint, signed and retried, and come in from a source."""

import base64
import hashlib
import hmac
import json
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from devstack.demo.report import Report, patiently
from devstack.demo.site import Site, form_token
from devstack.demo.watching import watched
from devstack.ports import LOOPBACK

# Until the picture that the event is about is ready.
ARRIVES_SECONDS = 60
ENDPOINTS = "/api/webhook-endpoints"


@dataclass(frozen=True)
class Arrival:
    """A request that the demo's receiver has got."""

    headers: dict[str, str]
    body: bytes


def show(site: Site, report: Report, *, address: str) -> None:
    """Both ways, for the user with this address."""
    _out(site, report, site.token(address))
    browser = site.admin()
    if browser is None:
        report.step("no admin password in the data folder: no source of events is made")
        return
    with closing(browser):
        _in(site, report, browser, address)


# -- Out ---------------------------------------------------------------------------------------------------------------
def _out(site: Site, report: Report, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    wish = {"url": "http://169.254.169.254/latest/meta-data", "event_types": ["media.ready"]}
    refused = site.client.post(ENDPOINTS, json=wish, headers=headers)
    report.check("an endpoint in a private network is refused", refused.status_code == 422, refused.status_code)
    with _receiver(failures=1) as (url, arrivals):
        made = site.client.post(ENDPOINTS, json={**wish, "url": url}, headers=headers)
        report.step(f"POST {ENDPOINTS}: {made.status_code}, {url} hears of media.ready")
        report.check("an endpoint is registered", made.status_code == httpx.codes.CREATED, made.status_code)
        if made.status_code != httpx.codes.CREATED:
            return
        form = {"file": ("square.png", _square(), "image/png")}
        uploaded = site.client.post("/api/images", files=form, data={"purpose": "picture"}, headers=headers)
        report.step(f"POST /api/images: {uploaded.status_code}; the receiver answers 503 at first")
        sending = "SELECT job_id::text FROM webhooks_delivery WHERE endpoint_id = %s"
        job_id = patiently(lambda: site.value(sending, made.json()["id"]), seconds=ARRIVES_SECONDS)
        job = watched(report, lambda: site.job_of_api(job_id, token), what="the delivery")
        report.check("the delivery's job is completed", job["state"] == "completed", job["error"] or job["result"])
        report.step(f"the receiver was asked {len(arrivals)} times")
        _check_arrivals(report, arrivals, made.json()["secret"])
        deleted = site.client.delete(f"{ENDPOINTS}/{made.json()['id']}", headers=headers)
        report.check("the endpoint is deleted", deleted.status_code == httpx.codes.NO_CONTENT, deleted.status_code)


def _check_arrivals(report: Report, arrivals: list[Arrival], secret: str) -> None:
    ids = {arrival.headers["webhook-id"] for arrival in arrivals}
    report.check(
        "an event that is not accepted comes again, under the same id", (len(arrivals), len(ids)) == (2, 1), ids
    )
    valid = sum(arrival.headers["webhook-signature"] == _signature(secret, arrival) for arrival in arrivals)
    report.check("each is signed with the endpoint's secret", valid == len(arrivals) > 0, f"{valid} signatures")
    types = {json.loads(arrival.body)["type"] for arrival in arrivals}
    report.check("it tells that the picture is ready", types == {"media.ready"}, ", ".join(types))


@contextmanager
def _receiver(*, failures: int) -> Iterator[tuple[str, list[Arrival]]]:
    """An endpoint on this machine, which does not accept the first few events."""
    arrivals: list[Arrival] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            arrivals.append(Arrival({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(503 if len(arrivals) <= failures else 204)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{LOOPBACK}:{server.server_address[1]}/hook", arrivals
        finally:
            server.shutdown()


def _signature(secret: str, arrival: Arrival) -> str:
    message_id, timestamp = arrival.headers["webhook-id"], arrival.headers["webhook-timestamp"]
    return _signed(secret, message_id, timestamp, arrival.body)


def _signed(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Standard Webhooks, by hand: base64 of HMAC-SHA256 over id, time and raw body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def _square(side: int = 64) -> bytes:
    """A red square as PNG (RFC 2083): the stack itself needs no library for pictures."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xcc\x22\x22" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# -- In ----------------------------------------------------------------------------------------------------------------
def _in(site: Site, report: Report, browser: httpx.Client, address: str) -> None:
    name, secret = f"demo-{time.time_ns()}", "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    _make_source(browser, name, secret)
    path = f"/webhooks/in/{name}"
    event = {"type": "contact.updated", "timestamp": "now", "data": {"email": address, "name": "Renamed Elsewhere"}}
    body = json.dumps(event).encode()
    headers = _headers(secret, body)
    first = site.client.post(path, content=body, headers=headers)
    report.step(f"POST {path}: {first.status_code} {first.text}")
    report.check("a signed event is taken (202)", first.status_code == httpx.codes.ACCEPTED, first.status_code)
    again = site.client.post(path, content=body, headers=headers)
    report.check("its repetition is known (200)", again.status_code == httpx.codes.OK, again.status_code)
    forged = site.client.post(path, content=body.replace(b"Renamed", b"Forged!"), headers=headers)
    report.check("a changed body is refused (401)", forged.status_code == httpx.codes.UNAUTHORIZED, forged.status_code)
    nobody = site.client.post("/webhooks/in/nobody", content=body, headers=headers)
    report.check(
        "an unknown source is not there (404)", nobody.status_code == httpx.codes.NOT_FOUND, nobody.status_code
    )
    if first.status_code == httpx.codes.ACCEPTED:
        job_id = site.value("SELECT job_id::text FROM webhooks_incomingevent WHERE id = %s", first.json()["id"])
        watched(report, lambda: site.job_of_ledger(job_id), what="the event")
    seen = site.value("SELECT name FROM accounts_user WHERE email = %s", address)
    report.check("the event has renamed the user", seen == "Renamed Elsewhere", seen)


def _make_source(browser: httpx.Client, name: str, secret: str) -> None:
    """As an operator does, in the admin."""
    url = "/admin/webhooks/source/add/"
    fields = {"name": name, "secret": secret, "is_active": "on", "csrfmiddlewaretoken": form_token(browser, url)}
    browser.post(url, data=fields, headers={"Referer": str(browser.base_url.join(url))})


def _headers(secret: str, body: bytes) -> dict[str, str]:
    message_id, timestamp = f"msg_{time.time_ns()}", str(int(time.time()))
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": _signed(secret, message_id, timestamp, body),
    }
