"""An action on many jobs, a batch at a time: each batch is one transaction, which also says where the next one begins.

Killed at any point, the batch that was under way has not happened, and whoever goes on begins with it: each job is
acted on once. Two that go on at once wait for each other at the action's row.
"""

import logging
from functools import partial
from uuid import UUID

from django.db.models.functions import Now

from jobs import fenced, services, settle
from jobs.audit import Actor
from jobs.job_filter import JobFilter
from jobs.models import BulkAction

logger = logging.getLogger(__name__)

BATCH = 100
_REFUSALS_KEPT = 100
_SERVICES = {
    BulkAction.Kind.RETRY: services.retry_job,
    BulkAction.Kind.CANCEL: services.cancel_job,
    BulkAction.Kind.PROMOTE: services.promote_job,
}


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
        for job_id in ids:
            try:
                act(job_id=job_id)
                action.done_count += 1
            except services.ActionRefused as refusal:
                action.refused_count += 1
                if len(action.refusals) < _REFUSALS_KEPT:
                    action.refusals.append(str(refusal))
        # What is left, the fence among it, waits as long as anybody does.
        settle.bound_lock_waits(0)
        if ids:
            action.cursor = ids[-1]
        if len(ids) < BATCH:
            action.finished_at = Now()
        action.save(update_fields=["cursor", "done_count", "refused_count", "refusals", "finished_at"])
    action.refresh_from_db()
    return action


def _next_ids(action: BulkAction) -> list[UUID]:
    found = JobFilter.from_json(action.filter).jobs_of(action)
    if action.cursor is not None:
        found = found.filter(pk__gt=action.cursor)
    return list(found.order_by("pk").values_list("pk", flat=True)[:BATCH])


def _actor(action: BulkAction) -> Actor:
    return action.actor or action.actor_name
