"""The beginning of a run, in the pool process: a hint becomes a claim, or nothing happens at all."""

import logging
import time
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore
from celery.signals import task_postrun
from django.db import close_old_connections, connections

from jobs import claims, correlation, settle
from jobs.ids import id_of_message, parse_id
from jobs.models import Job
from jobs.patience import DATABASE_AWAY, patiently
from jobs.settle import Run
from jobs.worker import identity, notes

if TYPE_CHECKING:
    from jobs.task import JobTask

logger = logging.getLogger("jobs.run")

# Longer than a restart of PostgreSQL takes; then the hint is dropped and the top-up sends another.
_CLAIM_PATIENCE_SECONDS = 20


def begin(task: "JobTask", request: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Claims the job of a delivered message and puts the row's arguments in place of the message's.

    Raises Ignore, so that the body does not run, where the job is not to be had: it runs or ran already, was cancelled,
    is paused or expired, or the database is away. Nothing is counted then.
    """
    if (request.delivery_info or {}).get("redelivered") and getattr(request, "hint_id", None):
        # The ledger hints again by itself; a hint from an earlier life could only start a second run. A message of
        # another producer is all there is of its job: it may come as often as it likes.
        raise _skipped(request, "a redelivered hint")
    token = identity.token_of(request)
    if token is None:
        raise _skipped(request, "a message without a hint id")
    ledger: Any = connections[settle.ledger()]
    if not ledger.in_atomic_block:  # as in a test, whose transaction would go with its connection
        close_old_connections()
    # The claim itself, which is sent again over a new connection where this one is broken, is the best health check.
    ledger.health_check_done = True
    job_id = _adopted(task, request, args, kwargs) if not getattr(request, "hint_id", None) else parse_id(request.id)

    def take(repeated: bool) -> list[claims.Claim]:
        return claims.claim({job_id: token}, worker_id=identity.incarnation(), task=task.name, repeated=repeated)

    try:
        claimed = patiently(take, seconds=_CLAIM_PATIENCE_SECONDS)
    except DATABASE_AWAY:
        logger.error("id=%s task=%s not started: PostgreSQL is away; it stays waiting", job_id, task.name)
        raise Ignore("PostgreSQL is away") from None
    if not claimed:
        raise _skipped(request, "nothing to claim")
    claim = claimed[0]
    correlation.assume(claim.correlation_id)
    notes.listen()
    args[:] = claim.args
    kwargs.clear()
    kwargs.update(claim.kwargs)
    request.update(
        claim=claim,
        run=Run(job_id, token),
        run_started=time.monotonic(),
        retries=claim.attempt - 1,
        ignore_result=claim.ignore_result,
        correlation_id=claim.correlation_id or None,
        reported_at=0.0,
        is_lost=False,
        asked_at=0.0,
        settled=False,
        # What `add_to_chord` and the body may want to know: that the job is a member, and of what.
        group=claim.group_id or None,
        chord={"task": "celery.accumulate"} if claim.flow_id else None,
        retry_signature=None,
    )
    log(logging.INFO, "started", task.name, request)


@task_postrun.connect
def forget_whose_run_it_was(task: Any = None, **_: Any) -> None:
    """The thread is free for the next run. One that was only called in place, by `apply()`, has changed nothing."""
    if getattr(task and task.request, "claim", None) is not None:
        correlation.assume("")


def _skipped(request: Any, reason: str) -> Ignore:
    logger.info("skipped id=%s task=%s reason=%s", request.id, request.task, reason)
    return Ignore(reason)


def _adopted(task: "JobTask", request: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A message that no hint of ours is (`celery call`, another producer) becomes a row first, under its own id."""
    job_id = id_of_message(request.id)
    if not patiently(lambda _: Job.objects.filter(pk=job_id).exists(), seconds=_CLAIM_PATIENCE_SECONDS):
        logger.info("id=%s task=%s came from another producer; it is in the ledger now", job_id, task.name)
        task.app.send_task(
            task.name, args, kwargs, task_id=str(job_id), priority=(request.delivery_info or {}).get("priority")
        )
    return job_id


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
