"""Reads of notifications."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import Count, Q, QuerySet
from django.utils import timezone

from jobs.models import Job
from jobs.states import State
from notifications.models import EmailLog

User = get_user_model()

CHUNK_COUNT = 500


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What one user is told about the day before."""

    user: Any
    yesterday_date: date
    completed_count: int
    failed_count: int
    # What the log says about this user's digest of the day; None where there is no entry yet.
    state: str | None


def digest_recipients() -> "QuerySet[Any]":
    """The users who wish the digest and may have it."""
    return User.objects.filter(is_active=True, wants_digest=True)


def digests(*, day: date) -> Iterator[Digest]:
    """The digest of each recipient, ordered by key. Read in chunks by key, three queries each, so that neither memory
    nor a cursor is held however many there are, and a user who signs up meanwhile does no harm."""
    after = 0
    while chunk := list(digest_recipients().filter(pk__gt=after).order_by("pk")[:CHUNK_COUNT]):
        keys = [user.pk for user in chunk]
        counts = _ended_counts(owner_ids=keys, day=day - timedelta(days=1))
        states = dict(
            EmailLog.objects.filter(kind="digest", period=day.isoformat(), user__in=keys).values_list(
                "user_id", "state"
            )
        )
        for user in chunk:
            completed_count, failed_count = counts.get(user.pk, (0, 0))
            yield Digest(
                user=user,
                yesterday_date=day - timedelta(days=1),
                completed_count=completed_count,
                failed_count=failed_count,
                state=states.get(user.pk),
            )
        after = keys[-1]


def day_of_job(*, job_id: UUID | None) -> date:
    """The UTC date on which a job was made, whenever it runs; today without a job."""
    created_at = Job.objects.filter(pk=job_id).values_list("created_at", flat=True).first() if job_id else None
    return (created_at or timezone.now()).astimezone(UTC).date()


def _ended_counts(*, owner_ids: list[Any], day: date) -> dict[Any, tuple[int, int]]:
    """Completed and failed jobs per owner that ended on a UTC date."""
    start_at = datetime.combine(day, time.min, tzinfo=UTC)
    ended = Job.objects.filter(
        owner__in=owner_ids, finished_at__gte=start_at, finished_at__lt=start_at + timedelta(days=1)
    )
    rows = (
        ended.order_by()
        .values("owner")
        .annotate(
            completed=Count("pk", filter=Q(state=State.COMPLETED)), failed=Count("pk", filter=Q(state=State.FAILED))
        )
        .values_list("owner", "completed", "failed")
    )
    return {owner: (completed, failed) for owner, completed, failed in rows}
