"""The beginning of a run, in the pool process: the job that the worker's main process has claimed."""

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore
from celery.signals import task_postrun
from django.db import close_old_connections, connections

from jobs import correlation, settle
from jobs.claims import Claim
from jobs.settle import Run
from jobs.worker import notes, soft_limits, surroundings

if TYPE_CHECKING:
    from jobs.task import JobTask

logger = logging.getLogger("jobs.run")

# A job that begins within this after its claim was started by the claim.
_AT_ONCE_SECONDS = 0.1


def begin(task: "JobTask", request: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Puts the arguments of a claimed job in the place of its message's.

    Raises Ignore, so that the body does not run, for a message that was not claimed: then it is of another producer,
    and came past the worker's own way of taking it. So it does where the job was claimed some time ago, and is not this
    run's any more: somebody has cancelled it, or it was given back.
    """
    claim = request.get("claimed")
    if not isinstance(claim, Claim):
        logger.info("skipped id=%s task=%s reason=not claimed", request.id, request.task)
        raise Ignore("not claimed")
    ledger: Any = connections[settle.ledger()]
    if not ledger.in_atomic_block:  # as in a test, whose transaction would go with its connection
        close_old_connections()
    run = Run(claim.job_id, claim.token)
    if time.monotonic() - request.get("claimed_at", math.inf) > _AT_ONCE_SECONDS and not settle.begin(run):
        logger.info("skipped id=%s task=%s reason=no longer its run's", request.id, request.task)
        raise Ignore("no longer its run's")
    correlation.assume(claim.correlation_id)
    notes.listen()
    soft_limits.guard()
    surroundings.remember()
    request.update(
        claim=claim,
        run=run,
        run_started=time.monotonic(),
        retries=claim.attempt - 1,
        eta=claim.eta,
        ignore_result=claim.ignore_result,
        correlation_id=claim.correlation_id or None,
        reported_at=0.0,
        is_lost=False,
        asked_at=0.0,
        settled=False,
        has_left_body=False,
        # What `add_to_chord` and the body may want to know: that the job is a member, and of what. An earlier step of a
        # chain holds its place and, as in Celery, is none.
        group=claim.group_id or None,
        chord={"task": "celery.accumulate"} if claim.flow_id and claim.group_id else None,
        retry_signature=None,
    )
    log(logging.INFO, "started", task.name, request)
    by_place: Any = claim.args
    by_name: Any = claim.kwargs
    if not isinstance(by_place, list) or not isinstance(by_name, dict):
        kinds = f"{type(by_place).__name__} and {type(by_name).__name__}"
        raise TypeError(f"The job's arguments are a {kinds}, and not a list and an object: somebody has written them.")
    args[:] = by_place
    kwargs.clear()
    kwargs.update(by_name)


@task_postrun.connect
def forget_whose_run_it_was(task: Any = None, **_: Any) -> None:
    """The thread is free for the next run. One that was only called in place, by `apply()`, has changed nothing."""
    if getattr(task and task.request, "claim", None) is not None:
        correlation.assume("")
        surroundings.set_back()


def log(level: int, event: str, task_name: str, request: Any, detail: str = "") -> None:
    """One line for each start, end, retry and failure of a run."""
    claim = request.claim
    logger.log(
        level,
        "%s id=%s task=%s queue=%s attempt=%d/%s ms=%d%s",
        event,
        claim.job_id,
        task_name,
        claim.queue,
        claim.attempt,
        claim.max_attempts or "∞",
        (time.monotonic() - request.run_started) * 1000,
        f" {detail}" if detail else "",
    )
