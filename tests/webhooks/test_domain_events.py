"""What happens in other apps is told to endpoints."""

import json
from datetime import date
from typing import Any

import pytest

from accounts.models import User
from jobs.ids import new_id
from media_jobs.models import Picture, Video
from media_jobs.signals import media_ready
from reports.models import Report
from reports.signals import report_ready
from webhooks import services
from webhooks.models import OutgoingEvent

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner(user: User) -> User:
    """A user whose endpoint hears of everything."""
    types = ["media.ready", "report.ready"]
    services.create_endpoint(owner=user, url="https://example.com/", event_types=types)
    return user


def told() -> list[tuple[str, str, Any]]:
    events = OutgoingEvent.objects.order_by("created_at", "pk")
    return [(event.type, event.subject, json.loads(event.body)["data"]) for event in events]


def test_a_report_that_is_ready_is_told_once(owner: User) -> None:
    days = {"from_date": date(2026, 3, 1), "to_date": date(2026, 3, 7)}
    report = Report.objects.create(owner=owner, kind="activity", job_id=new_id(), **days)
    for _ in range(2):
        report_ready.send(sender=Report, report=report)
    assert told() == [("report.ready", f"report-{report.pk}", {"id": str(report.pk)})]


def test_a_picture_and_a_video_with_the_same_id_are_two_things(owner: User) -> None:
    fields = {"owner": owner, "key": "k", "original": "x", "byte_count": 1, "format": "x"}
    picture, video = Picture.objects.create(pk=7, **fields), Video.objects.create(pk=7, **fields)
    for media in (picture, video, picture):
        media_ready.send(sender=type(media), media=media)
    assert told() == [
        ("media.ready", "picture-7", {"id": 7, "kind": "picture"}),
        ("media.ready", "video-7", {"id": 7, "kind": "video"}),
    ]
