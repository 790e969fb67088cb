"""What an operator may do to jobs and queues. Each action is one transaction, a compare-and-set, and is recorded."""

from functools import partial
from typing import Any
from uuid import UUID

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from jobs import audit, dedup, flows, follow_ups, publish, settle
from jobs.models import ENDED, LIVE, Attempt, Job, QueueControl
from jobs.queues import queue_named
from jobs.states import Cause, State
from jobs.transitions import transition

# What a run leaves in a job's row, and what the job looks like before its first run.
_BEFORE_THE_FIRST_RUN: dict[str, Any] = {
    "attempt": 1,
    "stalled_count": 0,
    "refused_count": 0,
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
}


class ActionRefused(Exception):
    """An operator's action that cannot be done; the message is a sentence for that operator."""


def retry_job(*, job_id: UUID, actor: AbstractBaseUser) -> None:
    """Runs an ended job again, from its first attempt, with the arguments that its row holds.

    What the last run left is cleared; failed runs stay readable as Attempt rows. An expiry of the job is lifted: the
    operator wants it now. The later steps of a chain, cancelled when this one failed, follow once more. A job that was
    held for a flow and never got its results runs the members that did not complete again, and is held for them. Raises
    ActionRefused when the job is gone, has not ended, is such a later step itself, or when another job holds its dedup
    key, by being live or for a time. Of two operators who press the button at once one wins and the other is refused. A
    process that dies in the middle leaves the job as it was; one that dies after the commit leaves a waiting job, which
    the dispatcher hints.
    """
    try:
        with settle.atomic():
            job = _locked(job_id)
            if follow_ups.is_later_step(job):
                raise ActionRefused(
                    f"Job {job_id} is a later step of a chain and has no arguments yet: run job {job.parent_id}, the "
                    "step that did not complete, again."
                )
            window = dedup.open_window(job.dedup_key) if job.dedup_key is not None else None
            if window is not None and window.job_id != job_id:
                raise ActionRefused(
                    f"Job {job_id} was not run again: job {window.job_id} has taken its dedup key {job.dedup_key!r} "
                    f"until {window.until:%Y-%m-%d %H:%M:%S} UTC."
                )
            changes = {**_BEFORE_THE_FIRST_RUN, "run_at": Now(), "expires_at": None}
            if job.is_held and job.state in ENDED:
                flows.run_members_again(job, fresh=changes)
            elif not transition(Job.objects.filter(pk=job_id), Cause.RUN_AGAIN, **changes):
                raise ActionRefused(
                    f"Job {job_id} is {job.state}: only a completed, failed or cancelled job can be run again."
                )
            else:
                follow_ups.reopen(job)
                flows.reopen(job)
                # robust: the row is there, so a hint that cannot be sent is the dispatcher's to send.
                transaction.on_commit(partial(publish.soon, publish.Hint.of(job)), using=settle.ledger(), robust=True)
            audit.record(actor=actor, thing=job, what=f"Run again (was {job.state}).")
    except IntegrityError as error:
        holder = _holder_of_key(job_id)
        if holder is None:
            raise
        raise ActionRefused(
            f"Job {job_id} was not run again: job {holder.pk}, which is {holder.state}, holds the same dedup key "
            f"{holder.dedup_key!r}."
        ) from error


def cancel_job(*, job_id: UUID, actor: AbstractBaseUser) -> None:
    """Cancels a job that has not ended.

    A waiting or delayed job never starts. The process of an active job is not stopped: the job is cancelled at once,
    and whatever its run still reports (progress, result, failure, retry) is refused by the fence. Side effects that it
    has outside of fenced transactions go on until it ends. Raises ActionRefused when the job is gone or has ended.
    """
    with settle.atomic():
        job = _locked(job_id)
        words = f"Cancelled by {actor}."
        if not transition(Job.objects.filter(pk=job_id), Cause.CANCELLED, finished_at=Now(), error=words):
            raise ActionRefused(f"Job {job_id} is {job.state}: only a delayed, waiting or active job can be cancelled.")
        if job.state == State.ACTIVE:
            Attempt.objects.create(
                job=job,
                number=job.attempt,
                outcome=Attempt.Outcome.CANCELLED,
                worker_id=job.worker_id,
                started_at=job.started_at,
                error=words,
            )
        dedup.succeed(job_id)
        follow_ups.after_stop(job)
        audit.record(actor=actor, thing=job, what=f"Cancelled (was {job.state}).")


def revoke_job(*, job_id: UUID) -> bool:
    """Cancels a job that has not ended, on the wish of code (`AsyncResult.revoke()`); False where there is no such job.

    As with `cancel_job`, the process of an active job is not stopped. Twice is as good as once. A job that is to come
    when the one before it with its dedup key ends is cancelled as well.
    """
    with settle.atomic():
        job = Job.objects.select_for_update().filter(pk=job_id).first()
        if job is not None and transition(
            Job.objects.filter(pk=job_id), Cause.CANCELLED, finished_at=Now(), error="Revoked."
        ):
            dedup.succeed(job_id)
            follow_ups.after_stop(job)
        return job is not None or dedup.cancel_successor(job_id, reason="Revoked.")


def pause_queue(*, queue: str, actor: AbstractBaseUser) -> bool:
    """Pauses a declared queue: no job of it starts until it is resumed; running jobs end as usual.

    Returns False when it was paused already. Raises UnknownQueue. Outlives restarts of everything.
    """
    return _set_paused(queue, actor, pause=True)


def resume_queue(*, queue: str, actor: AbstractBaseUser) -> bool:
    """Lets a paused queue run again; False when it was not paused. Raises UnknownQueue."""
    return _set_paused(queue, actor, pause=False)


def _set_paused(queue: str, actor: AbstractBaseUser, *, pause: bool) -> bool:
    with settle.atomic():
        control, _ = QueueControl.objects.get_or_create(name=queue_named(queue).name)
        changed = QueueControl.objects.filter(pk=control.pk, paused_at__isnull=pause).update(
            paused_at=Now() if pause else None
        )
        if changed:
            audit.record(actor=actor, thing=control, what="Paused." if pause else "Resumed.")
    return bool(changed)


def _locked(job_id: UUID) -> Job:
    """The job, locked until the end of the transaction, so that what is recorded about it is what was changed."""
    job = Job.objects.select_for_update().filter(pk=job_id).first()
    if job is None:
        raise ActionRefused(f"There is no job {job_id} any more.")
    return job


def _holder_of_key(job_id: UUID) -> Job | None:
    keys = Job.objects.filter(pk=job_id, dedup_key__isnull=False).values("dedup_key")
    return Job.objects.filter(dedup_key__in=keys, state__in=LIVE).exclude(pk=job_id).first()
