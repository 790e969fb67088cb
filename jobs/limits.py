"""Which limits hold for a job, over all workers together (G11), and which of them keeps it from starting.

A job is bound by those of its queue and by its own: starts per time under a rate key, running jobs under a concurrency
key, and quiet hours. The claim holds to them (`jobs.claims`); `jobs.dispatcher.pacing` grants only jobs that they let
start.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar
from uuid import UUID

from django.db.models import F
from django.db.models.functions import Greatest, Now

from jobs.models import Job, Limit, QueueControl, RateStart
from jobs.queues import PACED_QUEUES, QUEUES, Queue
from jobs.quiet_hours import QuietHours
from jobs.rates import InvalidLimit, Rate

logger = logging.getLogger(__name__)

T = TypeVar("T")

COLUMNS = ("rate_key", "rate_limit", "concurrency_key", "concurrency_limit", "quiet_hours")
_time_stands_still: ContextVar[bool] = ContextVar("jobs_limits_time_stands_still", default=False)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All that holds for the jobs of one queue and lane. Keys are those of `Limit`."""

    queue: str
    lane: str
    # None for a key that has no rate, but may be paused by `RateLimited`.
    rates: Mapping[str, Rate | None]
    # Jobs of the whole queue at once, and of the key.
    queue_concurrency: int | None
    concurrency_key: str | None
    concurrency: int | None
    quiet_hours: tuple[QuietHours, ...]

    @classmethod
    def of(cls, queue: Queue, own: Mapping[str, Any]) -> Self:
        """Those of a queue, as it is in force, and a job's own: its columns `COLUMNS` and `lane`, by name.

        Own ones that mean nothing, as where this machine does not know a zone, are passed over: one row must not stop
        the others.
        """
        rates: dict[str, Rate | None] = {}
        quiet_hours = []
        if not _time_stands_still.get():
            if queue.rate is not None:
                rates[queue_key(queue.name)] = queue.rate
            quiet_hours = [queue.quiet, _own(QuietHours.parse, own["quiet_hours"])]
        if own["rate_key"]:
            rate = None if _time_stands_still.get() else _own(Rate.parse, own["rate_limit"])
            rates[rate_key(own["rate_key"])] = rate
        return cls(
            queue=queue.name,
            lane=own["lane"],
            rates=rates,
            queue_concurrency=queue.concurrency_limit or None,
            concurrency_key=own["concurrency_key"],
            concurrency=own["concurrency_limit"],
            quiet_hours=tuple(hours for hours in quiet_hours if hours is not None),
        )

    @property
    def locks(self) -> list[str]:
        """The keys of which only one claim at a time may decide."""
        keys = [key for key, rate in self.rates.items() if rate is not None]
        if self.queue_concurrency is not None and queue_key(self.queue) not in keys:
            keys.append(queue_key(self.queue))
        if self.concurrency_key is not None:
            keys.append(concurrency_key(self.concurrency_key))
        return keys

    def quiet_until(self, now: datetime) -> datetime | None:
        """When all quiet hours are over in which `now` lies; None where it lies in none."""
        ends = [end for hours in self.quiet_hours if (end := hours.until(now)) is not None]
        return max(ends, default=None)

    def loud_until(self, now: datetime) -> datetime | None:
        """When the next quiet hours begin; None where there are none."""
        return min((hours.next_begin(now) for hours in self.quiet_hours), default=None)


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """What keeps a waiting job from starting, in a sentence; `until` where that is known, and who runs instead."""

    text: str
    until: datetime | None = None
    job_ids: tuple[UUID, ...] = ()


def _own(parse: Callable[[str], T], text: str | None) -> T | None:
    try:
        return parse(text) if text else None
    except InvalidLimit as error:
        logger.error("A job's own limit is passed over. %s", error)
        return None


def queue_key(queue: str) -> str:
    """The key under which the limits of a queue are counted."""
    return f"queue:{queue}"


def rate_key(key: str) -> str:
    """The key under which the starts of jobs with a rate key are counted."""
    return f"rate:{key}"


def concurrency_key(key: str) -> str:
    """The key under which the running jobs with a concurrency key are counted."""
    return f"concurrency:{key}"


def lane_of(own: Mapping[str, Any]) -> str:
    """A job's own limits in one text, the same for all jobs that have the same; empty for a job that has none."""
    values = [own[name] for name in COLUMNS]
    return "" if not any(values) else json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def in_force(name: str, control: QueueControl | None) -> Queue:
    """A queue with an operator's values over it; one without limits where nobody declares it."""
    queue = QUEUES.get(name) or Queue(name=name, purpose="")
    return control.over(queue) if control is not None else queue


def is_granted(name: str, control: QueueControl | None) -> bool:
    """Whether jobs of a queue start by grants alone, and are not claimed from its head: limits are declared for it, or
    an operator has set some, be it to none."""
    return name in PACED_QUEUES or (control is not None and control.has_limits)


def pause(job: Job, *, seconds: float) -> None:
    """Lets nothing of the job's rate key start for so many seconds from now on, or of its queue where it has none.

    A pause that lasts longer stays.
    """
    rows: Any = Limit.objects if job.rate_key is not None else QueueControl.objects
    key = rate_key(job.rate_key) if job.rate_key is not None else job.queue
    # Greatest passes over an empty one.
    until = Greatest(F("rate_limited_until"), Now() + timedelta(seconds=seconds))
    while not rows.filter(pk=key).update(rate_limited_until=until):
        rows.bulk_create([rows.model(pk=key)], ignore_conflicts=True)


@contextmanager
def without_clocks() -> Iterator[None]:
    """Lets starts in this block pass every rate and every quiet hour: for tests, in which no time goes by."""
    token = _time_stands_still.set(True)
    try:
        yield
    finally:
        _time_stands_still.reset(token)


def obstacle(job: Job) -> Obstacle | None:
    """The limit that keeps a waiting job from starting at this moment; None where none does.

    The one that lasts longest, where several do. It says nothing of a queue that an operator has paused.
    """
    control = QueueControl.objects.filter(name=job.queue).first()
    limits = Limits.of(in_force(job.queue, control), {name: getattr(job, name) for name in (*COLUMNS, "lane")})
    rows = Limit.objects.in_bulk(list(limits.rates))
    now: datetime = Job.objects.values_list(Now(), flat=True).get(pk=job.pk)
    pauses = {f"queue {job.queue}": control.rate_limited_until if control is not None else None}
    pauses |= {f"rate key {job.rate_key}": row.rate_limited_until for row in rows.values()}
    found = [
        *(
            Obstacle(text=f"The other side of {name} takes no more calls for now.", until=until)
            for name, until in pauses.items()
            if until is not None and until > now
        ),
        *_too_many_starts(limits, now),
        *_quiet(limits, now),
        *_held(limits),
    ]
    return max(found, key=lambda one: one.until or now, default=None)


def _too_many_starts(limits: Limits, now: datetime) -> Iterator[Obstacle]:
    for key, rate in limits.rates.items():
        starts = RateStart.objects.filter(key=key).order_by("number")
        last = starts.last() if rate is not None else None
        if rate is None or last is None or last.number < rate.count:
            continue
        # Where that before so many others is kept no more, the oldest that is, as the claim has it.
        first = starts.filter(number__gt=last.number - rate.count).first()
        if first is not None and (until := first.started_at + rate.period) > now:
            yield Obstacle(text=f"{_named(key).capitalize()} has had its {rate} starts.", until=until)


def _quiet(limits: Limits, now: datetime) -> Iterator[Obstacle]:
    until = limits.quiet_until(now)
    if until is not None:
        yield Obstacle(text="It is in its quiet hours.", until=until)


def _held(limits: Limits) -> Iterator[Obstacle]:
    running = Job.objects.filter(state="active").order_by("started_at")
    for jobs, most, what in (
        (running.filter(queue=limits.queue), limits.queue_concurrency, f"queue {limits.queue}"),
        (running.filter(concurrency_key=limits.concurrency_key), limits.concurrency, f"key {limits.concurrency_key}"),
    ):
        ids = tuple(jobs.values_list("pk", flat=True)) if most is not None else ()
        if most is not None and len(ids) >= most:
            yield Obstacle(text=f"At most {most} of {what} run at once.", job_ids=ids)


def _named(key: str) -> str:
    kind, _, name = key.partition(":")
    return f"queue {name}" if kind == "queue" else f"rate key {name}"
