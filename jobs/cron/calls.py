"""What a schedule calls at its ticks. Whatever is wrong with it raises when the row is read, not when it is due."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.utils.json import loads

from jobs import commits, enqueue
from jobs.cron.rows import Row
from jobs.ids import derived_id, new_id
from jobs.models import LIVE, Job
from jobs.task import JobTask


class BadCall(ValueError):
    """A schedule names no task, or its arguments or headers are not what they must be."""


class Overlaps(Exception):
    """A job has the key of a schedule: it has not ended, or has taken the key for a time."""

    def __init__(self, job_id: str, *, has_ended: bool) -> None:
        end = "which has ended, has its key for a time" if has_ended else "which has its key, has not ended"
        super().__init__(f"job {job_id}, {end}")


@dataclass(frozen=True, slots=True)
class Call:
    """A checked call of a task."""

    app: Celery
    schedule_id: int
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]

    def send_now(self) -> None:
        """Enqueues a job that belongs to no tick. Raises Overlaps as `send` does."""
        self._enqueue(new_id(), self.options)

    def send(self, scheduled_for: datetime) -> UUID:
        """Enqueues the job of a tick in the current transaction, and returns the job's id: made of the tick, so that it
        is the same whoever sends it, and however often. Raises Overlaps where a job with its key has not ended.

        A task that is plain Celery gets its message after the commit; while Redis is away, that tick is lost.
        """
        job_id = derived_id("tick", self.schedule_id, scheduled_for.astimezone(UTC).isoformat())
        headers = {**self.options["headers"], "scheduled_for": scheduled_for.astimezone(UTC).isoformat()}
        self._enqueue(job_id, {**self.options, "headers": headers})
        return job_id

    def _enqueue(self, job_id: UUID, options: dict[str, Any]) -> None:
        task = self.app.tasks[self.task]
        options = {**options, "task_id": str(job_id)}
        if not isinstance(task, JobTask):
            commits.then(partial(task.apply_async, self.args, self.kwargs, **options))
            return
        result = self.app.send_task(self.task, self.args, self.kwargs, **options)
        if result.id != str(job_id):
            raise Overlaps(result.id, has_ended=Job.objects.filter(pk=result.id).exclude(state__in=LIVE).exists())


def of(row: Row, app: Celery) -> Call:
    """The call of a row. Raises BadCall, or whatever enqueueing it would raise."""
    args, kwargs = _loaded(row.args, "arguments", list), _loaded(row.kwargs, "keyword arguments", dict)
    headers = {
        **_loaded(row.headers, "headers", dict),
        # As Celery's beat and django-celery-beat say it.
        "celery_beat_task": True,
        "periodic_task_name": row.name,
    }
    named = ("queue", "exchange", "routing_key", "priority")
    options = {name: value for name in named if (value := getattr(row, name)) not in (None, "")}
    expires = row.expires or row.expire_seconds
    if expires:
        options["expires"] = expires
    options["headers"] = headers
    task = app.tasks.get(row.task)
    if task is None:
        raise BadCall(f"There is no task {row.task!r} in this project.")
    if row.dedup_key and not isinstance(task, JobTask):
        raise BadCall(f"{row.task!r} is no task of the ledger: it cannot have a key.")
    if isinstance(task, JobTask):
        # What enqueueing does first: it refuses whatever is wrong with the call. Nothing is written.
        enqueue.job_of(app, task, tuple(args), kwargs, dict(options))
    if row.dedup_key:
        options["dedup_key"] = row.dedup_key
    return Call(app, row.pk, row.task, args, kwargs, options)


def _loaded(text: str, what: str, kind: type) -> Any:
    try:
        value = loads(text) if text else kind()
    except ValueError as error:
        raise BadCall(f"The {what} are not JSON: {error}.") from error
    if not isinstance(value, kind):
        raise BadCall(f"The {what} must be a JSON {'array' if kind is list else 'object'}.")
    return value
