"""Reads of notifications."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import Count, Q, QuerySet, Window
from django.db.models.functions import RowNumber
from django.utils import timezone
from django.utils.text import Truncator

from jobs.models import Job
from jobs.rendering import in_words
from jobs.states import State
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
    """The digest's lines on jobs that ended in a span of time: how many were done, how many failed and why. Two
    queries."""
    ended = Job.objects.filter(owner__in=user_ids, finished_at__gte=start_at, finished_at__lt=end_at).order_by()
    counts = ended.values("owner").annotate(
        completed=Count("pk", filter=Q(state=State.COMPLETED)), failed=Count("pk", filter=Q(state=State.FAILED))
    )
    newest = Window(RowNumber(), partition_by="owner", order_by="-finished_at")
    failures: dict[int, list[Item]] = {}
    for owner_id, task, error in (
        ended.filter(state=State.FAILED)
        .annotate(place=newest)
        .filter(place__lte=MOST_ITEMS)
        .order_by("finished_at")
        .values_list("owner", "task", "error")
    ):
        failures.setdefault(owner_id, []).append(Item(text=f"{in_words(task)}: {Truncator(error).chars(200)}"))
    return {
        owner_id: [
            Line(label="Jobs done", count=completed),
            Line(label="Jobs failed", count=failed, items=tuple(failures.get(owner_id, ())), is_bad=True),
        ]
        for owner_id, completed, failed in counts.values_list("owner", "completed", "failed")
    }
