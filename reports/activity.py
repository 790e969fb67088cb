"""The sections of an activity report that come from the layers below: jobs and mails."""

from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import Any, TypeVar

from django.db.models import Count, Model, QuerySet
from django.db.models.functions import TruncDate

from jobs import rendering, statistics
from jobs import selectors as job_selectors
from notifications import selectors as notification_selectors
from notifications.models import EmailLog
from reports.periods import Period
from reports.sections import MOST_ROWS, Figure, Row, Section

M = TypeVar("M", bound=Model)


def jobs(owner: Any, period: Period) -> Section:
    """The owner's jobs that ended in the period, by day and kind: as they are counted, whether they are kept or not."""
    span: Any = {"start_at": period.start_at, "end_at": period.end_at}
    ended = Counter[str]()
    days: dict[tuple[date, str], Counter[str]] = {}
    errors: dict[tuple[date, str], str] = {}
    for one in statistics.of_owners([owner.pk], **span):
        key = (one.quarter.astimezone(period.zone).date(), one.task)
        counts = {"completed": one.completed, "failed": one.failed, "cancelled": one.cancelled}
        days.setdefault(key, Counter()).update(counts)
        ended.update(counts)
        errors[key] = one.error or errors.get(key, "")
    day_counts = Counter[date]()
    for (day, _), counts in days.items():
        day_counts[day] += counts.total()
    unfinished_count = job_selectors.unfinished_jobs_of(owner_id=owner.pk, **span).count()
    return Section(
        title="Jobs",
        figures=(
            Figure(label="Jobs done", value=ended["completed"]),
            Figure(label="Jobs failed", value=ended["failed"], is_bad=True),
            Figure(label="Jobs cancelled", value=ended["cancelled"]),
            Figure(label="Jobs not finished yet", value=unfinished_count),
        ),
        day_counts=day_counts,
        columns=("Day", "Job", "Done", "Failed", "Cancelled"),
        rows=tuple(_job_row(*key, counts, errors[key]) for key, counts in sorted(days.items())[-MOST_ROWS:]),
        row_count=len(days),
    )


def mails(owner: Any, period: Period) -> Section:
    """The mails to the owner in the period."""
    found = notification_selectors.emails_to(user_id=owner.pk, start_at=period.start_at, end_at=period.end_at)
    by_state = Counter(_state_counts(found))
    rows, day_counts, count = listed(found, period=period, row=lambda email: _mail_row(email, period))
    return Section(
        title="Mails",
        figures=(
            Figure(label="Mails sent", value=by_state[EmailLog.State.SENT]),
            Figure(label="Mails refused", value=by_state[EmailLog.State.FAILED], is_bad=True),
        ),
        day_counts=day_counts,
        columns=("Time", "Mail", "To", "State"),
        rows=rows,
        row_count=count,
    )


def listed(
    found: QuerySet[M], *, period: Period, row: Callable[[M], Row]
) -> tuple[tuple[Row, ...], dict[date, int], int]:
    """The newest rows (at the most `MOST_ROWS`, oldest first), how many there are on each day, and altogether."""
    by_day = found.order_by().values(day=TruncDate("created_at", tzinfo=period.zone)).annotate(count=Count("pk"))
    day_counts: dict[date, int] = dict(by_day.values_list("day", "count"))
    newest = list(found.order_by("-created_at", "-pk")[:MOST_ROWS])
    return tuple(row(one) for one in reversed(newest)), day_counts, sum(day_counts.values())


def _state_counts(found: QuerySet[Any]) -> dict[str, int]:
    return dict(found.order_by().values("state").annotate(count=Count("pk")).values_list("state", "count"))


def _job_row(day: date, task: str, counts: Counter[str], error: str) -> Row:
    return Row(
        cells=(
            day.isoformat(),
            rendering.in_words(task),
            *(str(counts[end] or "–") for end in ("completed", "failed", "cancelled")),
        ),
        note=error,
        is_bad=counts["failed"] > 0,
    )


def _mail_row(email: EmailLog, period: Period) -> Row:
    is_failed = email.state == EmailLog.State.FAILED
    kind = (
        f"{rendering.in_words(email.kind)} {email.period}"
        if _is_readable(email.period)
        else rendering.in_words(email.kind)
    )
    return Row(
        cells=(period.local(email.created_at), kind, email.recipient, email.state),
        note=email.error if is_failed else "",
        is_bad=is_failed,
    )


def _is_readable(period: str) -> bool:
    """Whether the period of a mail says something to a person: a date does, an id does not."""
    return 0 < len(period) <= len("2026-01-31")
