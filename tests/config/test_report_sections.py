"""What a report tells of pictures and videos."""

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from accounts.models import User
from config.report_sections import pictures, videos
from jobs.models import Job
from media_jobs.models import Picture, Video
from reports.periods import Period

pytestmark = pytest.mark.django_db
WEEK = Period(from_date=date(2026, 3, 1), to_date=date(2026, 3, 7), zone=ZoneInfo("UTC"))
INSIDE = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


@pytest.fixture
def ann() -> User:
    return User.objects.create(email="ann@example.com", name="Ann")


def uploaded(model: Any, owner: User, key: str, **fields: Any) -> Any:
    values = {"created_at": INSIDE, "original": "x", "byte_count": 1, "format": "x", **fields}
    return model.objects.create(owner=owner, key=key, **values)


def test_pictures_of_the_owner_and_the_period_are_listed_with_what_became_of_them(ann: User) -> None:
    bob = User.objects.create(email="bob@example.com", name="Bob")
    measured = {"width_pixels": 640, "height_pixels": 480, "ready_at": INSIDE}
    ready = uploaded(Picture, ann, "a", purpose="avatar", format="JPEG", **measured)
    failed = Job.objects.create(task="x", queue="images", state="failed", finished_at=INSIDE, error="It is cut off.")
    broken = uploaded(Picture, ann, "b", format="PNG", job_id=failed.pk, created_at=INSIDE.replace(hour=10))
    uploaded(Picture, ann, "c", created_at=datetime(2026, 3, 8, tzinfo=UTC))
    uploaded(Picture, bob, "d")
    section = pictures(ann, WEEK)
    assert [(figure.label, figure.value) for figure in section.figures] == [("Pictures", 2), ("Pictures ready", 1)]
    assert section.day_counts == {INSIDE.date(): 2}
    assert [row.cells for row in section.rows] == [
        ("2026-03-02 09:30", f"{ready.pk}, avatar, JPEG", "640 × 480", "ready"),
        ("2026-03-02 10:30", f"{broken.pk}, picture, PNG", "–", "failed"),
    ]
    assert [(row.note, row.is_bad) for row in section.rows] == [("", False), ("It is cut off.", True)]


def test_videos_are_listed_with_their_length(ann: User) -> None:
    measured = {"width_pixels": 64, "height_pixels": 48, "duration_seconds": 61.26, "poster": "p.webp"}
    video = uploaded(Video, ann, "a", format="mp4", ready_at=INSIDE, **measured)
    section = videos(ann, WEEK)
    assert [row.cells for row in section.rows] == [("2026-03-02 09:30", f"{video.pk}, 61.3 s, mp4", "64 × 48", "ready")]
    assert (section.title, section.columns, section.row_count) == ("Videos", ("Time", "Video", "Pixels", "State"), 1)
