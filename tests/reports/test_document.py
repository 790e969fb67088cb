"""The PDF itself, made by WeasyPrint and read back."""

from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from accounts.models import User
from notifications.models import EmailLog
from reports import activity, sections
from reports.typesetting import BundledOnly, NotOurAsset, typeset
from tests.jobs.factories import make_job
from tests.reports.conftest import FIRST, LAST, asked, ended_job, made, text_of


def test_a_report_tells_of_the_owners_jobs_and_mails_of_the_period_and_of_nobody_elses(user: User, other: User) -> None:
    ended_job(user)
    ended_job(user)
    ended_job(user, kind="retried")
    ended_job(user, "media.tasks.failing", kind="failed", error="The picture is broken.")
    ended_job(user, "media.tasks.failing", kind="cancelled", at=datetime(2026, 3, 7, 23, 59, tzinfo=UTC))
    make_job(owner=user, created_at=datetime(2026, 3, 1, tzinfo=UTC))
    ended_job(user, "too.tasks.early", day=date(2026, 2, 28))
    ended_job(user, "too.tasks.late", day=date(2026, 3, 8))
    ended_job(other, "of.tasks.somebody_else")
    at = datetime(2026, 3, 7, 23, 59, 59, tzinfo=UTC)
    EmailLog.objects.create(
        user=user, kind="welcome", recipient=user.email, message_id="<1>", state="sent", created_at=at, sent_at=at
    )
    document = made(asked(user))
    text = text_of(document)
    for told in (
        *("1 March 2026 – 7 March 2026", "Jobs done 2", "Jobs failed 1", "Jobs cancelled 1", "Jobs not finished yet 1"),
        *("2026-03-01 Send welcome 2 – –", "Failing The picture is broken. – 1 –", "2026-03-07 Failing – – 1"),
        "Mails sent 1",
    ):
        assert told in text
    assert "2026-03-07 23:59 Welcome ann@example.com sent" in text
    for untold in ("Early", "Late", "Somebody else", "bob@example.com"):
        assert untold not in text


def test_an_empty_period_is_a_report_too(user: User) -> None:
    text = text_of(made(asked(user)))
    assert text.count("Nothing in this period.") == len(sections.names())


def test_a_long_table_breaks_over_pages_under_its_head_and_every_page_has_its_number(user: User) -> None:
    for number in range(120):
        ended_job(user, f"tasks.number_{number:03}_end")
    document = made(asked(user))
    count = len(document.pages)
    assert count >= 3
    for number, page in enumerate(document.pages, start=1):
        text = " ".join(page.extract_text().split())
        assert f"Page {number} of {count}" in text
        assert "Day Job Done Failed Cancelled" in text or "Nothing in this period." in text
    whole = text_of(document)
    assert all(f"Number {number:03} end" in whole for number in range(120))


def test_a_table_that_is_too_long_shows_the_newest_and_says_how_many_there_are(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "MOST_ROWS", 3)
    for number in range(5):
        ended_job(user, f"tasks.number_{number}", at=datetime(2026, 3, 2, number, tzinfo=UTC))
    text = text_of(made(asked(user)))
    assert "The newest 3 of 5 are listed." in text
    assert "Number 1" not in text
    assert text.index("Number 2") < text.index("Number 3") < text.index("Number 4")
    assert "Jobs done 5" in text


def test_what_looks_like_markup_is_shown_as_it_is(user: User) -> None:
    user.name = "<b>Ann</b> & Sons"
    user.save()
    ended_job(user, "<script>alert(1)</script>", kind="failed", error="<img src='http://127.0.0.1:9/x'> \"quoted\"")
    text = text_of(made(asked(user)))
    assert "For <b>Ann</b> & Sons, ann@example.com" in text
    assert "<script>alert(1)</script>" in text.replace("</ script>", "</script>")
    assert "<img src='http://127.0.0.1:9/x'> \"quoted\"" in text


def test_the_days_are_those_of_the_owners_clock(user: User) -> None:
    user.timezone = "America/New_York"
    user.save()
    user.refresh_from_db()
    ended_job(user, "tasks.still_yesterday", at=datetime(2026, 3, 1, 4, 59, tzinfo=UTC))
    ended_job(user, "tasks.just_today", at=datetime(2026, 3, 1, 5, tzinfo=UTC))
    text = text_of(made(asked(user)))
    assert "2026-03-01 Just today" in text
    assert "Still yesterday" not in text
    assert "All times in America/New_York." in text


def test_the_document_can_be_read_by_machines_for_people_who_cannot_see_it(user: User) -> None:
    ended_job(user)
    document = made(asked(user))
    catalog: Any = document.trailer["/Root"]
    assert document.metadata is not None
    assert document.metadata.title == f"Activity report {FIRST} to {LAST}"
    assert catalog["/Lang"] == "en"
    assert catalog["/MarkInfo"]["/Marked"]
    tags = str(structure(catalog["/StructTreeRoot"]["/K"]))
    for tag in ("/H1", "/H2", "/Table", "/TH", "/TD", "/Figure"):
        assert tag in tags
    assert "Bar chart by day: Jobs 1, Pictures 0, Videos 0, Mails 0; at the most 1 in one day." in tags


def structure(node: object) -> list[object]:
    """The kinds and alternative texts of the elements of a tagged PDF."""
    node = node.get_object() if hasattr(node, "get_object") else node
    if isinstance(node, list):
        return [structure(child) for child in node]
    if isinstance(node, dict):
        return [str(node.get("/S")), str(node.get("/Alt")), structure(node.get("/K"))]
    return []


class Counting(BaseHTTPRequestHandler):
    asked_for: list[str] = []

    def do_GET(self) -> None:
        self.asked_for.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def test_a_document_can_neither_call_a_server_nor_read_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = tmp_path / "secret.css"
    secret.write_text("body::after { content: 'secret' }")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    html = f"""<html lang="en"><head><title>t</title>
        <link rel="stylesheet" href="{base}/style.css"><link rel="stylesheet" href="file://{secret}">
        <link rel="stylesheet" href="asset:../typesetting.py"><style>@import url({base}/more.css);
        @font-face {{ font-family: x; src: url({base}/font.woff2) }} body {{ background: url({base}/back.png) }}</style>
        </head><body style="font-family: x">text <img alt="x" src="{base}/picture.png"><img alt="y" src="relative.png">
        <svg><title>z</title><image href="{base}/inner.png"/></svg><a rel="attachment" href="file://{secret}">a</a>
        <object data="{base}/object.svg">o</object><embed src="data:image/svg+xml,<svg/>"></body></html>"""
    try:
        content, page_count = typeset(html, on_page=lambda _: None)
    finally:
        server.shutdown()
        server.server_close()
    assert page_count == 1
    assert b"secret" not in content
    assert Counting.asked_for == []
    assert "A report may not load" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://example.com/x.css",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "data:text/css,x",
        "asset:../typesetting.py",
        "asset:/etc/passwd",
        "asset:",
        "ASSET:report.css",
        "asset:..",
    ],
)
def test_nothing_is_fetched_but_our_own_assets(url: str) -> None:
    with pytest.raises(NotOurAsset):
        BundledOnly().fetch(url)


def test_our_own_assets_are_fetched() -> None:
    answer = BundledOnly().fetch("asset:report.css")
    assert answer.content_type == "text/css"
    assert b"@page" in answer.read()
