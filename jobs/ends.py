"""The one way in which a job comes to its end: its history, its state, its successor, what follows it, and the signal.

All of that is one transaction, in which the job's row is locked. What stands in the way of that which follows never
stands in the way of the end itself: it is rolled back alone, logged, and said in the job's error.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from django.db import router, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat, Now

from jobs import dedup, follow_ups, signals
from jobs.models import Attempt, Job
from jobs.patience import may_pass
from jobs.payloads import in_a_message
from jobs.states import Cause, State, target
from jobs.transitions import transition

logger = logging.getLogger(__name__)


def end(
    job: Job,
    because: Cause,
    *,
    error: str = "",
    exception: Any = None,
    traceback: str = "",
    raised: BaseException | None = None,
    follow: Callable[[], None] | None = None,
    outcome: Attempt.Outcome | None = None,
    **changes: Any,
) -> bool:
    """Ends a job that the current transaction has locked; returns whether it was in a state to which the cause applies.

    `outcome` is that of its run, where there was one that did not simply succeed. `exception` is the error as Celery
    stores it, `raised` the error itself, where it is at hand. `follow` inserts what a completion leads to. `changes`
    are further columns.
    """
    error = in_a_message(error)
    if outcome is not None:
        keep_attempt(job, outcome, error, traceback)
    ended = {"finished_at": Now(), "error": error, **changes}
    state = target(because)
    if state is not State.CANCELLED:
        # Of an earlier attempt, there may be some.
        ended |= {"exception": exception, "traceback": traceback}
    if not transition(Job.objects.filter(pk=job.pk), because, **ended):
        return False
    if state is State.FAILED:
        failure = {"error": error, "traceback": traceback, "exception": exception, "cause": raised}
        follow = partial(follow_ups.after_failure, job, **failure)
    lead_on(job, follow)
    if state is State.FAILED:
        signals.announce(signals.job_failed, job, error=error, traceback=traceback)
    elif state is State.COMPLETED:
        signals.announce(signals.job_completed, job)
    return True


def lead_on(job: Job, follow: Callable[[], None] | None = None) -> None:
    """What follows a job that the current transaction has ended: the job that waited for its dedup key, and its links
    or errbacks; without `follow`, the end of its chain."""
    if job.successor is not None:
        _apart(job.pk, "the job that came with its key meanwhile could not be made", partial(dedup.succeed, job.pk))
    _apart(job.pk, "what was to follow it could not be made", follow or partial(follow_ups.after_stop, job))


def keep_attempt(job: Job, outcome: Attempt.Outcome, error: str, traceback: str = "") -> None:
    """Keeps the history of the run of a job that the current transaction has locked while it was active."""
    Attempt.objects.create(
        job=job,
        number=job.attempt,
        outcome=outcome,
        worker_id=job.worker_id,
        claim_token=job.claim_token,
        started_at=job.started_at,
        error=error,
        traceback=traceback,
    )


def _apart(job_id: UUID, words: str, act: Callable[[], None]) -> None:
    """Acts in a savepoint. What goes wrong there is the job's own affair, but for what concerns PostgreSQL itself."""
    try:
        with transaction.atomic(using=router.db_for_write(Job)):
            act()
    except Exception as error:  # whatever hangs from a job, it can be ended
        if may_pass(error):
            # Then the end is not written either, and is tried again as a whole.
            raise
        logger.exception("id=%s ended, but %s", job_id, words)
        told = in_a_message(f" It ended, but {words}: {type(error).__name__}: {error}")
        Job.objects.filter(pk=job_id).update(error=Concat(F("error"), Value(told)))
