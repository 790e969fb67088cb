"""Fixtures of the report tests."""

from datetime import UTC, date, datetime, time
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from pypdf import PdfReader

from accounts.models import User
from accounts.services import create_token
from reports.making import make_report
from reports.models import Report
from tests.jobs.factories import make_events

FIRST = date(2026, 3, 1)
LAST = date(2026, 3, 7)


@pytest.fixture
def user(db: None) -> User:
    """Somebody who asks for reports."""
    return User.objects.create(email="ann@example.com", name="Ann")


@pytest.fixture
def other(db: None) -> User:
    """Somebody else."""
    return User.objects.create(email="bob@example.com", name="Bob")


@pytest.fixture(autouse=True)
def real_smtp(settings: Any) -> None:
    """Django's test setup puts mails into a list; here they go to a server."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"


@pytest.fixture(autouse=True)
def own_media(settings: Any, tmp_path: Path) -> None:
    """Files of this test alone; a worker process is told the folder by `HANDOFF_HOME`."""
    settings.MEDIA_ROOT = tmp_path / "home" / "media"


def signed_in(user: User) -> Client:
    """A client of the API with the user's token."""
    return Client(headers={"Authorization": f"Bearer {create_token(user=user)}"})


def ask(client: Client, **fields: Any) -> Any:
    """POST /api/reports on the first week of March, unless the fields say otherwise."""
    body = {"kind": "activity", "from": FIRST.isoformat(), "to": LAST.isoformat(), **fields}
    return client.post("/api/reports", body, content_type="application/json")


def ended_job(owner: User, task: str = "notifications.tasks.send_welcome", *, day: date = FIRST, **event: Any) -> None:
    """A job ended at noon of a day; the job itself is kept no longer."""
    make_events(**{"task": task, "owner": owner, "at": datetime.combine(day, time(12), tzinfo=UTC), **event})


def asked(owner: User, *, from_date: date = FIRST, to_date: date = LAST) -> Report:
    """A report that nobody makes unless the test does."""
    return Report.objects.create(owner=owner, kind="activity", from_date=from_date, to_date=to_date, job_id=uuid4())


def made(report: Report) -> PdfReader:
    """Makes the report in this process; returns its file, read back."""
    done = make_report(report_id=report.pk, progress=lambda *_: None)
    with done.file.open("rb") as file:
        return PdfReader(BytesIO(file.read()))


def text_of(document: PdfReader) -> str:
    """All of its text, with blanks for line breaks."""
    return " ".join(" ".join(page.extract_text() for page in document.pages).split())
