"""An action on many jobs, a batch at a time: each batch is one transaction, which also says where the next one begins.

Killed at any point, the batch that was under way has not happened, and whoever goes on begins with it: each job is
acted on once. Two that go on at once wait for each other at the action's row.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models.functions import Now

from jobs import audit, fenced, publish, services, settle
from jobs.audit import Actor
from jobs.job_filter import JobFilter
from jobs.models import BulkAction, Job
from jobs.patience import may_pass
from jobs.payloads import in_a_message
from jobs.states import Cause, State, sources
from jobs.transitions import transition

logger = logging.getLogger(__name__)

BATCH = 500
_REFUSALS_KEPT = 100
_PLAIN_COLUMNS = (
    *("id", "task", "queue", "priority", "lane", "state", "run_at", "parent_id", "flow_id", "awaited_flow_id"),
    *("dedup_key", "successor", "follow_ups"),
)
_SERVICES: dict[BulkAction.Kind, Callable[..., None]] = {
    BulkAction.Kind.RETRY: services.retry_job,
    BulkAction.Kind.CANCEL: services.cancel_job,
    BulkAction.Kind.PROMOTE: services.promote_job,
    BulkAction.Kind.EDIT: services.change_job,
}


class _Step(NamedTuple):
    """What is done to a plain job: why it changes its state, to what, and what is recorded."""

    cause: Cause
    changes: dict[str, Any]
    words: str


def do_one(bulk_action_id: int) -> BulkAction:
    """Acts on the next batch of jobs; returns the action as it is then. `finished_at` says that nothing is left.

    In a run, it is fenced: nothing is done by one that has lost its job. A job that was locked, or that is in the way
    of nobody any more, is refused with a sentence, and the others go on. Raises LeaseLost, and what the database
    raises; then the batch has not happened.
    """
    with fenced():
        action = BulkAction.objects.select_for_update().get(pk=bulk_action_id)
        if action.finished_at is not None:
            return action
        ids = _next_ids(action)
        act = partial(_SERVICES[BulkAction.Kind(action.kind)], actor=_actor(action), bulk_action=action)
        plain: set[UUID] = set()
        if action.kind == BulkAction.Kind.EDIT:
            # Each has arguments of its own, which are to be checked.
            act = partial(act, changes=action.changes)
        else:
            plain = _at_once(action, ids)
            action.done_count += len(plain)
        for job_id in ids:
            if job_id in plain:
                continue
            try:
                act(job_id=job_id)
                action.done_count += 1
            except services.ActionRefused as refusal:
                _refuse(action, str(refusal))
            except Exception as error:  # whatever is wrong with one job, the others are acted on
                if may_pass(error):
                    raise
                logger.exception("id=%s: %s", job_id, action.kind)
                _refuse(action, f"Job {job_id}: {type(error).__name__}: {error}")
        # What is left, the fence among it, waits as long as anybody does.
        settle.bound_lock_waits(0)
        if ids:
            action.cursor = ids[-1]
        if len(ids) < BATCH:
            action.finished_at = Now()
        action.save(update_fields=["cursor", "done_count", "refused_count", "refusals", "finished_at"])
    action.refresh_from_db()
    return action


def _refuse(action: BulkAction, words: str) -> None:
    action.refused_count += 1
    if len(action.refusals) < _REFUSALS_KEPT:
        action.refusals.append(in_a_message(words))


def _at_once(action: BulkAction, ids: list[UUID]) -> set[UUID]:
    """As `act_on_plain`; where one of the jobs is in the way of that, each is left to its service."""
    try:
        with settle.atomic():
            return act_on_plain(action, ids)
    except Exception as error:  # whatever is wrong, it comes of one of them, or each says so itself
        if may_pass(error):
            raise
        logger.exception("%s: these jobs are acted on one by one.", action)
        return set()


def act_on_plain(action: BulkAction, ids: list[UUID]) -> set[UUID]:
    """Acts on those of the jobs from which nothing else hangs, by one statement; returns their ids.

    The others, and those that somebody has locked, are left to the service of each. Workers find what waits.
    """
    step = _step(action)
    jobs = Job.objects.filter(pk__in=ids).only(*_PLAIN_COLUMNS).select_for_update(skip_locked=True, of=("self",))
    plain = [job for job in jobs if State(job.state) in sources(step.cause) and _is_plain(job)]
    found = {job.pk for job in plain}
    transition(Job.objects.filter(pk__in=found), step.cause, **step.changes)
    words: dict[Any, str] = {job: step.words.format(job=job) for job in plain}
    if step.cause is not Cause.CANCELLED:
        for ring in {publish.Ring.for_waiting(job.queue, job.priority, job.lane) for job in plain}:
            publish.after_commit(ring)
    audit.record_each(actor=_actor(action), things=words, bulk_action=action)
    return found


def _is_plain(job: Job) -> bool:
    """Whether no run, chain, flow, key or successor is to be looked after."""
    hangs_on = (job.parent_id, job.flow_id, job.awaited_flow_id, job.dedup_key, job.successor, job.follow_ups)
    return job.state != State.ACTIVE and not any(hangs_on)


def _step(action: BulkAction) -> _Step:
    if action.kind == BulkAction.Kind.RETRY:
        return _Step(Cause.RUN_AGAIN, services.BEFORE_THE_FIRST_RUN, services.RUN_AGAIN)
    if action.kind == BulkAction.Kind.PROMOTE:
        return _Step(Cause.PROMOTED, {"run_at": Now()}, services.PROMOTED)
    words = services.cancelled_by(_actor(action))
    return _Step(Cause.CANCELLED, {"finished_at": Now(), "error": words}, services.CANCELLED)


def _next_ids(action: BulkAction) -> list[UUID]:
    found = JobFilter.from_json(action.filter).jobs_of(action)
    if action.cursor is not None:
        found = found.filter(pk__gt=action.cursor)
    return list(found.order_by("pk").values_list("pk", flat=True)[:BATCH])


def _actor(action: BulkAction) -> Actor:
    return action.actor or action.actor_name
