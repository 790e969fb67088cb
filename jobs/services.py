"""What an operator may do to one job or queue. Each action is one transaction, a compare-and-set, and is recorded.

For all jobs that match a filter: `jobs.bulk_actions`. An actor is a user, or the name of somebody at a terminal.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any
from uuid import UUID

from celery import current_app
from django.db import IntegrityError, OperationalError
from django.db.models import Q
from django.db.models.functions import Now
from psycopg.errors import DeadlockDetected, LockNotAvailable, UniqueViolation

from jobs import audit, dedup, enqueue, flows, follow_ups, own_limits, payloads, publish, settle
from jobs.audit import Actor
from jobs.ends import end
from jobs.models import LIVE, Attempt, BulkAction, Job, QueueControl
from jobs.queues import queue_named
from jobs.redaction import redact, restored
from jobs.states import END_STATES, Cause, State
from jobs.task import JobTask
from jobs.transitions import transition
from jobs.why import why

__all__ = [
    "ActionRefused",
    "NoSuchJob",
    "cancel_job",
    "cancel_locked",
    "change_job",
    "edit_job",
    "pause_queue",
    "promote_job",
    "resume_queue",
    "retry_job",
    "revoke_job",
    "run_again_locked",
    "why",
]

# Many are acted on in one transaction, which must not be open for long.
_BULK_LOCK_WAIT_MS = 100
# An end of the job, or another operator, holds its row for milliseconds. A run that has locked it may do so for long.
_LOCK_WAIT_MS = 2000

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# What is recorded of a job, in `str.format`.
RUN_AGAIN = "Run again (was {job.state})."
CANCELLED = "Cancelled (was {job.state})."
PROMOTED = "Promoted (was due {job.run_at:%Y-%m-%d %H:%M:%S} UTC)."
# What a run leaves in a job's row, and what the job looks like before its first run; an operator wants it now.
BEFORE_THE_FIRST_RUN: dict[str, Any] = {
    "attempt": 1,
    "stalled_count": 0,
    "redelivered": False,
    "worker_id": None,
    "started_at": None,
    "finished_at": None,
    "progress_percent": None,
    "progress_message": "",
    "custom_state": "",
    "custom_meta": None,
    "result": None,
    "error": "",
    "exception": None,
    "traceback": "",
    "run_at": Now(),
    "expires_at": None,
}


class ActionRefused(Exception):
    """An operator's action that cannot be done; the message is a sentence for that operator."""


class NoSuchJob(ActionRefused):
    """The job is unknown: it never was, or retention has removed it."""


def retry_job(*, job_id: UUID, actor: Actor, bulk_action: BulkAction | None = None) -> None:
    """Runs an ended job again, from its first attempt, with the arguments that its row holds.

    What the last run left is cleared; failed runs stay readable as Attempt rows. An expiry of the job is lifted: the
    operator wants it now. The later steps of a chain, cancelled when this one failed, follow once more. A job that was
    held for a flow and never got its results runs the members that did not complete again, and is held for them. Raises
    ActionRefused when the job is gone, has not ended, is such a later step itself, or when another job holds its dedup
    key, by being live or for a time. Of two operators who press the button at once one wins and the other is refused. A
    process that dies in the middle leaves the job as it was; one that dies after the commit leaves a waiting job.
    """
    with _locked(job_id, bulk_action) as job:
        run_again_locked(job)
        audit.record(actor=actor, thing=job, what=RUN_AGAIN.format(job=job), bulk_action=bulk_action)


def cancel_job(*, job_id: UUID, actor: Actor, bulk_action: BulkAction | None = None) -> None:
    """Cancels a job that has not ended.

    A waiting or delayed job never starts. An active job is cancelled at once: whatever its run still reports (progress,
    result, failure, retry) is refused by the fence, and what it has written in an open atomic or fenced transaction is
    rolled back. The run hears of it at its next `progress()` or `check_cancelled()`; one that goes on for
    `JOBS_CANCEL_GRACE_SECONDS` is ended together with its pool process, by the worker that runs it. Raises
    ActionRefused when the job is gone or has ended.
    """
    with _locked(job_id, bulk_action) as job:
        cancel_locked(job, cancelled_by(actor))
        audit.record(actor=actor, thing=job, what=CANCELLED.format(job=job), bulk_action=bulk_action)


def cancelled_by(actor: Actor) -> str:
    """What a cancelled job tells as its error."""
    return f"Cancelled by {actor}."


def promote_job(*, job_id: UUID, actor: Actor, bulk_action: BulkAction | None = None) -> None:
    """Makes a delayed job due now, be it the delay that its caller asked for or the wait before a retry.

    Its attempts stay as they are. Raises ActionRefused when the job is gone or not delayed, for example because
    somebody else was faster.
    """
    with _locked(job_id, bulk_action) as job:
        _refuse_held(job)
        if not transition(Job.objects.filter(pk=job_id), Cause.PROMOTED, run_at=Now()):
            raise ActionRefused(f"Job {job_id} is {job.state}: only a delayed job can be promoted.")
        _ring_after_commit(job)
        audit.record(
            actor=actor,
            thing=job,
            what=PROMOTED.format(job=job),
            bulk_action=bulk_action,
        )


def edit_job(*, job_id: UUID, args: Any, kwargs: Any, actor: Actor) -> None:
    """Gives a job other arguments: one that has ended runs again with them, one that waits will run with them.

    They are checked as at enqueueing. Values that were hidden from the operator (`•••`) stay what they were. The
    arguments before and after are kept with the action, secrets hidden. Raises ActionRefused, with nothing written,
    where they do not fit the task, are no JSON or too large, where the job is active, and as `retry_job` does.
    """
    with _locked(job_id) as job:
        _refuse_held(job)
        edited = {"args": args, "kwargs": kwargs}
        try:
            # Before anything walks over them.
            payloads.as_json(edited, wrapped=2)
            after = restored(edited, {"args": job.args, "kwargs": job.kwargs})
        except (ValueError, payloads.NotKept) as error:
            raise ActionRefused(f"Job {job_id} was not changed: {error}") from error
        _edit_locked(job, **after, actor=actor)


def change_job(
    *, job_id: UUID, changes: Mapping[str, Any], actor: Actor, bulk_action: BulkAction | None = None
) -> None:
    """Sets some arguments of a job by their names, and leaves the others, as `edit_job` does.

    An argument that was given by its place is changed there.
    """
    with _locked(job_id, bulk_action) as job:
        _refuse_held(job)
        parameters = inspect.signature(_task_of(job).run).parameters.values()
        places = [one.name for one in parameters if one.kind in _BY_PLACE][: len(job.args)]
        # What fills a *args has no name of its own.
        args = [changes.get(name, value) for name, value in zip_longest(places, job.args)]
        kwargs = {**job.kwargs, **{name: value for name, value in changes.items() if name not in places}}
        _edit_locked(job, args=args, kwargs=kwargs, actor=actor, bulk_action=bulk_action)


def _edit_locked(job: Job, *, args: Any, kwargs: Any, actor: Actor, bulk_action: BulkAction | None = None) -> None:
    before, after = {"args": job.args, "kwargs": job.kwargs}, {"args": args, "kwargs": kwargs}
    try:
        task = _task_of(job)
        enqueue.check_arguments(task, args, kwargs, job)
        limits = own_limits.moved(task, job, args, kwargs)
    except (TypeError, ValueError) as error:
        raise ActionRefused(f"Job {job.pk} was not changed: {error}") from error
    if job.state in END_STATES:
        run_again_locked(job, **after, **limits)
        what = f"Edited and run again (was {job.state})."
    elif Job.objects.filter(pk=job.pk, state__in=["waiting", "delayed"]).update(**after, **limits):
        what = f"Edited (while {job.state})."
    else:
        raise ActionRefused(f"Job {job.pk} is {job.state}: cancel it first, or wait until it has ended.")
    details = {"before": redact(before), "after": redact(after)}
    audit.record(actor=actor, thing=job, what=what, details=details, bulk_action=bulk_action)


def revoke_job(*, job_id: UUID) -> bool:
    """Cancels a job that has not ended, on the wish of code (`AsyncResult.revoke()`); False where there is no such job.

    An active job is cancelled as by `cancel_job`. Twice is as good as once. A job that is to come when the one before
    it with its dedup key ends is cancelled as well.
    """
    with settle.atomic():
        job = Job.objects.select_for_update().filter(pk=job_id).first()
        if job is not None and job.state in LIVE:
            cancel_locked(job, "Revoked.")
        return job is not None or dedup.cancel_successor(job_id, reason="Revoked.")


def revoke_late(*, job_id: UUID) -> bool:
    """Cancels a job that was revoked before it was committed; False where it is not there yet, or locked.

    Every worker that was told asks for itself, and whichever comes first cancels it, once: where anybody has acted on
    the job, as that worker or an operator who has run it again, it is left alone.
    """
    with settle.atomic():
        job = Job.objects.select_for_update(skip_locked=True).filter(pk=job_id).first()
        if job is not None and job.state in LIVE and not audit.is_noted(job):
            what = CANCELLED.format(job=job)
            cancel_locked(job, "Revoked.")
            audit.record(actor="revoke", thing=job, what=what)
    return job is not None


def pause_queue(*, queue: str, actor: Actor) -> bool:
    """Pauses a declared queue: no job of it starts until it is resumed; running jobs end as usual.

    In force with the commit, because every claim asks. Jobs may be enqueued meanwhile. Returns False when it was paused
    already. Raises UnknownQueue. Outlives restarts of everything.
    """
    return _set_paused(queue, actor, pause=True)


def resume_queue(*, queue: str, actor: Actor) -> bool:
    """Lets a paused queue run again, also where a job was told to wait (`RateLimited`); False when it was not paused.

    Raises UnknownQueue.
    """
    return _set_paused(queue, actor, pause=False)


def _set_paused(queue: str, actor: Actor, *, pause: bool) -> bool:
    with settle.atomic():
        control, _ = QueueControl.objects.get_or_create(name=queue_named(queue).name)
        rows = QueueControl.objects.filter(pk=control.pk)
        if pause:
            changed = rows.filter(paused_at__isnull=True).update(paused_at=Now())
        else:
            halted = Q(paused_at__isnull=False) | Q(rate_limited_until__gt=Now())
            changed = rows.filter(halted).update(paused_at=None, rate_limited_until=None)
        if changed:
            audit.record(actor=actor, thing=control, what=audit.PAUSED if pause else audit.RESUMED)
            if not pause:
                ring = publish.Ring.for_waiting(queue, current_app.conf.task_default_priority, lane="")
                publish.after_commit(ring)
    return bool(changed)


@contextmanager
def _locked(job_id: UUID, bulk_action: BulkAction | None = None) -> Iterator[Job]:
    """A transaction with the job locked until its end, so that what is recorded about it is what was changed."""
    try:
        with settle.atomic():
            settle.bound_lock_waits(_LOCK_WAIT_MS if bulk_action is None else _BULK_LOCK_WAIT_MS)
            job = Job.objects.select_for_update().filter(pk=job_id).first()
            if job is None:
                raise NoSuchJob(f"There is no job {job_id} any more.")
            yield job
    except OperationalError as error:
        # Two operators may meet at the jobs of a flow, from either end.
        if not isinstance(error.__cause__, LockNotAvailable | DeadlockDetected):
            raise
        raise ActionRefused(
            f"Job {job_id} is locked at the moment, by its own run or by somebody else: try again shortly."
        ) from error
    except IntegrityError as error:
        if not isinstance(error.__cause__, UniqueViolation):
            raise
        holder = _holder_of_key(job_id)
        if holder is None:
            raise ActionRefused(
                f"Job {job_id} was not run again: another job held its dedup key until this moment. Try again."
            ) from error
        raise ActionRefused(
            f"Job {job_id} was not run again: job {holder.pk}, which is {holder.state}, holds the same dedup key "
            f"{holder.dedup_key!r}."
        ) from error


def run_again_locked(job: Job, **changes: Any) -> None:
    """Moves a locked, ended job to waiting, as if it had never run."""
    if follow_ups.is_later_step(job):
        raise ActionRefused(
            f"Job {job.pk} is a later step of a chain and has no arguments yet: run job {job.parent_id}, the "
            "step that did not complete, again."
        )
    window = dedup.open_window(job.dedup_key) if job.dedup_key is not None else None
    if window is not None and window.job_id != job.pk:
        raise ActionRefused(
            f"Job {job.pk} was not run again: job {window.job_id} has taken its dedup key {job.dedup_key!r} "
            f"until {window.until:%Y-%m-%d %H:%M:%S} UTC."
        )
    if job.is_held and job.state in END_STATES:
        flows.run_members_again(job, fresh=BEFORE_THE_FIRST_RUN)
        return
    if not transition(Job.objects.filter(pk=job.pk), Cause.RUN_AGAIN, **BEFORE_THE_FIRST_RUN, **changes):
        raise ActionRefused(f"Job {job.pk} is {job.state}: only a completed, failed or cancelled job can be run again.")
    follow_ups.reopen(job)
    flows.reopen(job)
    _ring_after_commit(job)


def cancel_locked(job: Job, words: str) -> None:
    """Cancels a locked job. The kept attempt of an active one names the run that is to end."""
    outcome = Attempt.Outcome.CANCELLED if job.state == State.ACTIVE else None
    if job.state not in LIVE or not end(job, Cause.CANCELLED, error=words, outcome=outcome):
        raise ActionRefused(f"Job {job.pk} is {job.state}: only a delayed, waiting or active job can be cancelled.")


def _refuse_held(job: Job) -> None:
    if job.is_held:
        raise ActionRefused(f"Job {job.pk} waits for the jobs of its flow, whose results are to be its arguments.")


def _ring_after_commit(job: Job) -> None:
    # robust: the row is there, and workers find it without a ring as well.
    publish.after_commit(publish.Ring.of(job))


def _task_of(job: Job) -> JobTask:
    # A web process may have enqueued nothing yet.
    current_app.loader.import_default_modules()
    task = current_app.tasks.get(job.task)
    if not isinstance(task, JobTask):
        raise ActionRefused(f"Job {job.pk} was not changed: its task {job.task} is not known here.")
    return task


def _holder_of_key(job_id: UUID) -> Job | None:
    keys = Job.objects.filter(pk=job_id, dedup_key__isnull=False).values("dedup_key")
    return Job.objects.filter(dedup_key__in=keys, state__in=LIVE).exclude(pk=job_id).first()
