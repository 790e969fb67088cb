"""One live job per dedup key (G08), in three modes: until it has ended, also for a time, or the latest call wins.

The partial unique index `job_one_live_per_dedup_key` decides between callers. Every mode inserts first and then looks
who is in the way, because ON CONFLICT DO NOTHING waits for other callers' transactions but returns no id.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Self
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import connections, transaction
from django.db.models import DateTimeField, Q, Value
from django.db.models.constants import OnConflict
from django.db.models.functions import Now
from django.db.models.sql import InsertQuery

from jobs import follow_ups, publish
from jobs.ids import parse_id
from jobs.limits import COLUMNS
from jobs.models import LIVE, DedupWindow, Job
from jobs.options import is_text
from jobs.states import Cause, State
from jobs.transitions import transition

logger = logging.getLogger(__name__)

# Each round is lost only to a job that ends between two statements of this call.
_ROUNDS = 10
_LONGEST_SECONDS = 366 * 24 * 3600
# What a call says about its job: all that a newer call replaces, and what a successor is kept as.
_CALL = (
    "task",
    "queue",
    "priority",
    "args",
    "kwargs",
    "headers",
    "follow_ups",
    "run_at",
    "expires_at",
    "max_attempts",
    "soft_time_limit_seconds",
    "time_limit_seconds",
    "ignore_result",
    "owner_id",
    "parent_id",
    "root_id",
    "group_id",
    "correlation_id",
    *COLUMNS,
    "lane",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedup:
    """How a call wants to be one with others: its key, and the mode."""

    key: str | None = None
    seconds: float | None = None
    latest: bool = False

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Self:
        """Takes the three options out of a call's; raises ValueError where they make no sense, alone or together."""
        key, seconds = options.pop("dedup_key", None), options.pop("dedup_seconds", None)
        latest = options.pop("dedup_latest", None)
        if key is not None and not is_text(key, 255):
            raise ValueError(f"dedup_key={key!r}: expected a text of 1 to 255 characters.")
        if seconds is not None and not _is_a_time(seconds):
            raise ValueError(
                f"dedup_seconds={seconds!r}: expected seconds, more than 0 and at most {_LONGEST_SECONDS}."
            )
        if latest not in (None, True, False):
            raise ValueError(f"dedup_latest={latest!r}: expected True or False.")
        if key is None and (seconds is not None or latest):
            raise ValueError(f"{'dedup_latest' if latest else 'dedup_seconds'}= says nothing without a dedup_key=.")
        if latest and seconds is not None:
            raise ValueError(
                "dedup_seconds= and dedup_latest=: one keeps the first call of a time, the other the last."
            )
        return cls(key=key, seconds=seconds, latest=bool(latest))


class Placed(NamedTuple):
    """Under which id a call's job is found, and whether this call wrote that job's row."""

    job_id: UUID
    is_written: bool


def place(job: Job, dedup: Dedup, using: str) -> Placed:
    """Inserts an unsaved job, or finds or changes the one that is there under its key or id.

    Another caller's uncommitted job with the key is waited for. Rolled back, nothing is left of it.
    """
    if dedup.latest:
        with transaction.atomic(using=using):
            return _latest(job, using)
    if dedup.key is not None and dedup.seconds is not None:
        with transaction.atomic(using=using):
            return _throttled(job, dedup.key, timedelta(seconds=dedup.seconds), using)
    if dedup.key is not None:
        window = open_window(dedup.key, using=using)
        if window is not None:
            return Placed(window.job_id, is_written=False)
    return _first(job, using)


def open_window(key: str, *, using: str | None = None) -> DedupWindow | None:
    """The time for which a throttled job has the key, if it is not over."""
    return DedupWindow.objects.using(using).filter(key=key, until__gt=Now()).first()


def succeed(*job_ids: UUID) -> None:
    """Jobs end in the current transaction: inserts what the newest call with their key left as their successors.

    Their rows must have left the live states before. Called twice, the second call finds nothing left to do.
    """
    ended = Job.objects.filter(pk__in=job_ids, successor__isnull=False)
    for job, now in [(job, job.now) for job in ended.annotate(now=Now())]:
        Job.objects.filter(pk=job.pk).update(successor=None)
        successor = _from_kept(job.successor, job.dedup_key)
        is_due = successor.run_at <= now
        successor.state = str(State.WAITING if is_due else State.DELAYED)
        successor.run_at = max(successor.run_at, now)
        if successor.owner_id and not get_user_model().objects.filter(pk=successor.owner_id).exists():
            # The foreign key would refuse the row, and with it the end of the job before it.
            successor.owner_id = None
        # A job that somebody has made under this id meanwhile stays what it is.
        Job.objects.bulk_create([successor], ignore_conflicts=True)
        if is_due:
            publish.after_commit(publish.Ring.of(successor))


def cancel_successor(job_id: UUID, *, reason: str) -> bool:
    """Cancels a job that is not inserted yet, because the one before it still runs; False where there is none."""
    waiting = Job.objects.filter(state__in=LIVE, dedup_key__isnull=False, successor__id=str(job_id))
    holder = waiting.select_for_update().first()
    if holder is None:
        return False
    Job.objects.filter(pk=holder.pk).update(successor=None)
    cancelled = _older_successor(holder)
    if cancelled is None:
        return True
    cancelled.state, cancelled.finished_at, cancelled.error = "cancelled", Now(), reason
    cancelled.save(force_insert=True)
    follow_ups.after_stop(cancelled)
    return True


def _first(job: Job, using: str) -> Placed:
    """Inserts, or finds the job that is in the way; a holder that just ends in between costs another round."""
    rows = Job.objects.using(using)
    for _ in range(_ROUNDS):
        if insert([job], using):
            return Placed(job.pk, is_written=True)
        found = rows.filter(_in_the_way(job)).values_list("pk", flat=True)
        if found:
            return Placed(job.pk if job.pk in found else found[0], is_written=False)
    raise _unsettled(job)


def insert(jobs: Sequence[Job], using: str) -> set[UUID]:
    """Inserts jobs, but for those whose id or dedup key is taken; returns the ids of the others. Django's own way to
    leave out what is there does not tell."""
    if not jobs:
        return set()
    query = InsertQuery(Job, on_conflict=OnConflict.IGNORE)
    query.insert_values(Job._meta.concrete_fields, list(jobs))
    ((statement, parameters),) = query.get_compiler(using=using).as_sql()
    with connections[using].cursor() as cursor:
        cursor.execute(f"{statement} RETURNING id", parameters)
        return {job_id for (job_id,) in cursor.fetchall()}


def _throttled(job: Job, key: str, length: timedelta, using: str) -> Placed:
    """The first call of a time; who comes meanwhile gets its job, whatever has become of that."""
    windows = DedupWindow.objects.using(using)
    for _ in range(_ROUNDS):
        windows.bulk_create([DedupWindow(key=key, job_id=job.pk, until=Now())], ignore_conflicts=True)
        # The lock makes one caller after the other look.
        window = windows.select_for_update().filter(key=key).annotate(is_open=Q(until__gt=Now())).first()
        if window is None:
            # It was over, and has just been removed.
            continue
        if window.is_open:
            return Placed(window.job_id, is_written=False)
        placed = _first(job, using)
        if placed.is_written:
            windows.filter(pk=key).update(job_id=job.pk, until=Now() + length)
        return placed
    raise _unsettled(job)


def _latest(job: Job, using: str) -> Placed:
    """Takes the place of a job that has never started, or of whatever was to succeed one that has, or is in a flow."""
    rows = Job.objects.using(using)
    for _ in range(_ROUNDS):
        if insert([job], using):
            return Placed(job.pk, is_written=True)
        # The lock waits for a claim, an end or another caller; then the row is read as they left it.
        found = list(
            rows.select_for_update()
            .filter(_in_the_way(job))
            .annotate(call_run_at=_moment(job.run_at), call_expires_at=_moment(job.expires_at))
        )
        if not found:
            continue
        holder = next((row for row in found if row.pk == job.pk), found[0])
        if holder.pk == job.pk:
            return Placed(job.pk, is_written=False)
        if _is_in_flow(job):
            # Its flow would wait for a job that is not its own: the caller refuses it.
            return Placed(holder.pk, is_written=False)
        call = {name: getattr(job, name) for name in _CALL}
        call.update(run_at=holder.call_run_at, expires_at=holder.call_expires_at)
        if holder.started_at is None and not _is_in_flow(holder):
            renew(holder, job, call)
            return Placed(holder.pk, is_written=True)
        return Placed(_keep_as_successor(holder, job, call), is_written=False)
    raise _unsettled(job)


def renew(holder: Job, job: Job, call: dict[str, Any]) -> None:
    """Puts a call in the place of that of a job which the current transaction has locked, and which never started."""
    follow_ups.after_replacement(holder)
    job.pk = holder.pk
    cause = Cause.POSTPONED if job.state == State.DELAYED else Cause.RENEWED
    transition(Job.objects.filter(pk=holder.pk), cause, **call)


def _keep_as_successor(holder: Job, job: Job, call: dict[str, Any]) -> UUID:
    """Keeps a call for the end of a job whose place it cannot take; returns the id that its job will have.

    Every call that waits for the same end gets the same id: that of the first, under which the newest will run.
    """
    job_id = job.pk
    if holder.successor and (older := _older_successor(holder)) is not None:
        follow_ups.after_replacement(older)
        job_id = older.pk
    Job.objects.filter(pk=holder.pk).update(successor={"id": str(job_id), **call})
    return job_id


def _older_successor(holder: Job) -> Job | None:
    """What is kept as a job's successor; None, and a line in the log, where that is no job."""
    try:
        return _from_kept(holder.successor, holder.dedup_key)
    except (AttributeError, KeyError, TypeError, ValueError):
        logger.exception("id=%s has a successor that is no job.", holder.pk)
        return None


def _unsettled(job: Job) -> RuntimeError:
    return RuntimeError(
        f"The job with dedup_key={job.dedup_key!r} changed {_ROUNDS} times while this call looked at it."
    )


def _in_the_way(job: Job) -> Q:
    same = Q(pk=job.pk)
    return same if job.dedup_key is None else same | Q(dedup_key=job.dedup_key, state__in=LIVE)


def _is_in_flow(job: Job) -> bool:
    return job.flow_id is not None or job.awaited_flow_id is not None


def _from_kept(successor: Any, key: str | None) -> Job:
    """The unsaved job that a successor is kept as."""
    return Job(**{**successor, "id": parse_id(successor["id"])}, dedup_key=key)


def _moment(value: Any) -> Any:
    """A time of a call, by the database's clock where the call names a delay."""
    return value if hasattr(value, "resolve_expression") else Value(value, output_field=DateTimeField())


def _is_a_time(seconds: Any) -> bool:
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    return is_number and 0 < seconds <= _LONGEST_SECONDS
