"""Which jobs an operator means: by state, queue, task, time and words of the error."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.dateparse import parse_datetime

from jobs.models import ENDED, LIVE, Attempt, BulkAction, Job
from jobs.states import State

_TIMES = ("created_from", "created_until", "ended_from", "ended_until")
# The jobs that each kind of action can be done to.
APPLICABLE = {
    BulkAction.Kind.RETRY: ENDED,
    BulkAction.Kind.CANCEL: LIVE,
    BulkAction.Kind.PROMOTE: [State.DELAYED.value],
    BulkAction.Kind.EDIT: [*ENDED, State.WAITING.value, State.DELAYED.value],
}


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """All that is given must hold; a filter without anything matches every job. Times: from included, until not."""

    state: str | None = None
    queues: tuple[str, ...] | None = None
    task: str | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None
    ended_from: datetime | None = None
    ended_until: datetime | None = None
    # Words that the error holds, in this order, whatever their case.
    error: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given."""
        return all(getattr(self, field.name) is None for field in fields(self))

    def matching(self) -> QuerySet[Job]:
        """The jobs that match."""
        wanted: dict[str, Any] = {
            "state": self.state,
            "queue__in": self.queues,
            "task": self.task,
            "created_at__gte": self.created_from,
            "created_at__lt": self.created_until,
            "finished_at__gte": self.ended_from,
            "finished_at__lt": self.ended_until,
            "error__icontains": self.error,
        }
        return Job.objects.filter(**{name: value for name, value in wanted.items() if value is not None})

    def jobs(self, kind: str) -> QuerySet[Job]:
        """The jobs that match and to which an action of that kind can be done."""
        found = self.matching().filter(state__in=APPLICABLE[BulkAction.Kind(kind)])
        # What waits for a flow is not due at any time, and its arguments are still to come.
        is_free = kind in (BulkAction.Kind.PROMOTE, BulkAction.Kind.EDIT)
        return found.filter(is_held=False) if is_free else found

    def jobs_of(self, action: BulkAction) -> QuerySet[Job]:
        """The jobs that match as they did when the action was requested: what came to match later is left out.

        All that a job carries of what happens to it has its time: its enqueueing, its end, its starts, its runs.
        """
        at = action.requested_at
        found = self.jobs(action.kind).filter(created_at__lte=at).exclude(pk=action.job_id)
        if action.kind == BulkAction.Kind.RETRY:
            return found.filter(finished_at__lte=at)
        state = State.DELAYED if action.kind == BulkAction.Kind.PROMOTE else self.state
        has_run = Q(Exists(Attempt.objects.filter(job=OuterRef("pk"), ended_at__gt=at)))
        if action.kind == BulkAction.Kind.EDIT:
            return found.filter(Q(state__in=ENDED, finished_at__lte=at) | Q(state__in=LIVE) & ~has_run)
        if state == State.ACTIVE:
            return found.exclude(started_at__gt=at)
        if state == State.DELAYED:
            return found.exclude(has_run | Q(started_at__gt=at))
        if state == State.WAITING:
            return found.exclude(has_run | Q(started_at__gt=at) | Q(run_at__gt=at))
        # Whatever its state, it was alive then, as it is now; but its error may be a new one.
        return found.exclude(has_run) if self.error else found

    def in_words(self) -> str:
        """For people: "failed, in queue email, error holds 'timeout'"."""
        times = {name: _in_utc(value) for name in _TIMES if (value := getattr(self, name))}
        parts = [
            self.state or "",
            self.queues is not None and f"in queue {' or '.join(self.queues) or 'none'}",
            self.task and f"of {self.task}",
            *(f"{name.replace('_', ' ')} {at}" for name, at in times.items()),
            self.error and f"error holds {self.error!r}",
        ]
        return ", ".join(part for part in parts if part) or "all jobs"

    def as_json(self) -> dict[str, Any]:
        """What is given, as `from_json` takes it."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Self:
        """The filter that `as_json` was made of."""
        values: dict[str, Any] = {
            name: parse_datetime(value) if name in _TIMES else value for name, value in kept.items()
        }
        if "queues" in values:
            values["queues"] = tuple(values["queues"])
        return cls(**values)


def _in_utc(moment: datetime) -> str:
    try:
        return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except OverflowError:
        # Before the year 1, or after 9999, in UTC.
        return str(moment)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What an action would be done to at this moment: nothing is changed by looking."""

    count: int
    sample: Sequence[Job]


def preview(kind: str, wanted: JobFilter, *, sample_count: int = 10) -> Preview:
    """The dry run: how many jobs match, and the newest of them."""
    found = wanted.jobs(kind)
    newest = found.order_by("-created_at").only("id", "task", "queue", "state", "error", "created_at", "finished_at")
    return Preview(count=found.count(), sample=list(newest[:sample_count]))
