"""Reads of notifications."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import QuerySet
from django.utils import timezone

from jobs import statistics
from jobs.models import Job
from jobs.rendering import in_words
from notifications import digest_sections
from notifications.digest_sections import MOST_ITEMS, Item, Line
from notifications.models import EmailLog

User = get_user_model()

CHUNK_COUNT = 500


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What one user is told about the day before."""

    user: Any
    yesterday_date: date
    lines: tuple[Line, ...]
    # What the log says about this user's digest of the day; None where there is no entry yet.
    state: str | None


def digest_recipients() -> "QuerySet[Any]":
    """The users who wish the digest and may have it."""
    return User.objects.filter(is_active=True, wants_digest=True)


def digests(*, day: date) -> Iterator[Digest]:
    """The digest of each recipient, ordered by key. Read in chunks by key, two queries each and those of the registered
    lines, so that neither memory nor a cursor is held however many there are, and a user who signs up meanwhile does no
    harm."""
    after = 0
    start_at = datetime.combine(day - timedelta(days=1), time.min, tzinfo=UTC)
    while chunk := list(digest_recipients().filter(pk__gt=after).order_by("pk")[:CHUNK_COUNT]):
        keys = [user.pk for user in chunk]
        lines = digest_sections.lines(user_ids=keys, start_at=start_at, end_at=start_at + timedelta(days=1))
        states = dict(
            EmailLog.objects.filter(kind="digest", period=day.isoformat(), user__in=keys).values_list(
                "user_id", "state"
            )
        )
        for user in chunk:
            yield Digest(
                user=user,
                yesterday_date=day - timedelta(days=1),
                lines=tuple(lines[user.pk]),
                state=states.get(user.pk),
            )
        after = keys[-1]


def emails_to(*, user_id: int, start_at: datetime, end_at: datetime) -> QuerySet[EmailLog]:
    """The e-mails to a user that were first tried in a span of time, its end not included."""
    return EmailLog.objects.filter(user=user_id, created_at__gte=start_at, created_at__lt=end_at)


def day_of_job(*, job_id: UUID | None) -> date:
    """The UTC date on which a job was made, whenever it runs; today without a job."""
    created_at = Job.objects.filter(pk=job_id).values_list("created_at", flat=True).first() if job_id else None
    return (created_at or timezone.now()).astimezone(UTC).date()


def ended_jobs(user_ids: Sequence[int], start_at: datetime, end_at: datetime) -> dict[int, list[Line]]:
    """The digest's lines on jobs that ended in a span of time: how many were done, how many failed and why. One query.

    Of the jobs of one task that failed within a quarter of an hour, the last says why.
    """
    found: dict[int, list[Line]] = {}
    by_owner = attrgetter("owner_id")
    for owner_id, ends in groupby(
        sorted(statistics.of_owners(user_ids, start_at=start_at, end_at=end_at), key=by_owner), key=by_owner
    ):
        counted = list(ends)
        failures = [f"{in_words(one.task)}: {one.error}" for one in counted if one.failed]
        found[owner_id] = [
            Line(label="Jobs done", count=sum(one.completed for one in counted)),
            Line(
                label="Jobs failed",
                count=sum(one.failed for one in counted),
                items=tuple(Item(text=failure) for failure in failures[-MOST_ITEMS:]),
                is_bad=True,
            ),
        ]
    return found
