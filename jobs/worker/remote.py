"""Celery's remote commands, from a terminal or Flower: `revoke` and `terminate` act on the ledger's jobs, and those
that would change the limits of a task in one worker alone are refused.

Celery's own revocations remember the id in each worker's memory for hours, and would discard every later run of the
job. Only of what is no job of the ledger they do so: a message of another producer, or a job that is not committed yet.
Once that is there, it is cancelled, and its id forgotten; so is a job that somebody has locked, once it is free.
"""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker import state as celery_state
from django.db import connections

from jobs import services, settle
from jobs.claims import Claim
from jobs.ids import id_of_message
from jobs.models import Job
from jobs.patience import DATABASE_AWAY, LOCKED, code_of, what_happened
from jobs.settle import Run
from jobs.task import JobTask
from jobs.worker.requests import started

logger = logging.getLogger(__name__)

_of_celery = control.revoke
_IDS_AT_ONCE = 200
_LOCK_MILLISECONDS = 100


def revoke(state: Any, task_id: Any, terminate: bool = False, signal: str | None = None, **options: Any) -> Any:
    """Cancels jobs that have not ended; with `terminate`, ends their runs in this worker at once.

    What is no job of the ledger is left to Celery. Called in the worker's main thread, by every worker that hears it:
    the second time nothing is left to do. Nor does that thread wait for whoever has a job locked: its id is remembered.
    """
    cancelled: list[Any] = []
    locked: list[Any] = []
    foreign: list[Any] = []
    for name in maybe_list(task_id) or []:
        try:
            known = _cancel(id_of_message(name))
        except DATABASE_AWAY as error:
            if code_of(error) != LOCKED:
                return {"error": f"Nothing was revoked: {what_happened(error)}."}
            locked.append(name)
            continue
        finally:
            # The main thread forks pool processes: it keeps no connection that they would inherit.
            connections.close_all()
        (cancelled if known else foreign).append(name)
    celery_state.revoked.update(locked)
    if foreign:
        _of_celery(state, foreign, terminate=terminate, signal=signal, **options)
    ended = [name for name in cancelled if terminate and _end(state.consumer.pool, name)]
    words = f"cancelled: {', '.join(cancelled) or 'none'}"
    if locked:
        words += f"; locked, so later: {', '.join(locked)}"
    return {"ok": f"{words}; ended here: {', '.join(ended) or 'none'}" if terminate else words}


def _cancel(job_id: UUID) -> bool:
    with settle.atomic():
        settle.bound_lock_waits(_LOCK_MILLISECONDS)
        return services.revoke_job(job_id=job_id)


def _end(pool: Any, task_id: str) -> bool:
    for request in started().values():
        if request.id == str(id_of_message(task_id)):
            try:
                # Pool processes ignore SIGTERM, which is for the worker.
                request.terminate(pool, signal="KILL")
            except NotImplementedError:
                logger.warning("id=%s was cancelled and goes on: a thread cannot be ended.", task_id)
                return False
            return True
    return False


def terminate(state: Any, signal: str, task_id: Any, **options: Any) -> Any:
    """Cancels jobs, and ends their runs in this worker."""
    return revoke(state, task_id, terminate=True, signal=signal, **options)


def _refused_for_jobs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's command, for tasks whose runs are no jobs. Of others, it would change those jobs that this process
    enqueues, and no more."""

    @wraps(command)
    def refuse(state: Any, task_name: Any = None, **options: Any) -> Any:
        if not isinstance(state.app.tasks.get(task_name), JobTask):
            return command(state, task_name=task_name, **options)
        return {"error": f"{task_name}: limits hold over all workers. Declare them, or give them with a call."}

    return refuse


rate_limit = _refused_for_jobs(control.rate_limit)
time_limit = _refused_for_jobs(control.time_limit)


class LateRevocations:
    """Cancels jobs that are there by now and were revoked before, whoever runs them, and forgets their ids."""

    def __init__(self) -> None:
        self._place = 0

    def run_once(self) -> None:
        """One look, at some of the ids that this worker remembers."""
        try:
            remembered = list(celery_state.revoked)
        except RuntimeError:
            # The main thread has changed them meanwhile.
            return
        some = remembered[self._place : self._place + _IDS_AT_ONCE]
        self._place = self._place + _IDS_AT_ONCE if self._place + _IDS_AT_ONCE < len(remembered) else 0
        names = {id_of_message(name): name for name in some}
        for job_id in Job.objects.filter(pk__in=names).values_list("pk", flat=True) if names else ():
            _cancel_late(job_id, names[job_id])


def _cancel_late(job_id: UUID, name: str) -> bool:
    is_there = services.revoke_late(job_id=job_id)
    if is_there:
        celery_state.revoked.discard(name)
    return is_there


def may_start(claim: Claim) -> bool:
    """Whether a claimed job still is to start: it may have been revoked before it was there. In the main thread.

    Where PostgreSQL is away, Celery discards it by what it remembers.
    """
    name = str(claim.job_id)
    if name not in celery_state.revoked:
        return True
    try:
        return not _cancel_late(claim.job_id, name) or Run(claim.job_id, claim.token).owns()
    except DATABASE_AWAY as error:
        logger.warning("id=%s: %s.", name, what_happened(error))
        return True
    finally:
        # The main thread forks pool processes: it keeps no connection that they would inherit.
        connections.close_all()


def install() -> None:
    """Takes the place of Celery's commands in this worker."""
    control.Panel.data.update(revoke=revoke, terminate=terminate, rate_limit=rate_limit, time_limit=time_limit)
