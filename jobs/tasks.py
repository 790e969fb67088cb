"""The ledger's own tasks."""

from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import shared_task
from django.db import InterfaceError, OperationalError

from jobs import batches
from jobs.task import JobTask


@shared_task(
    bind=True,
    queue="default",
    autoretry_for=(OperationalError, InterfaceError, SoftTimeLimitExceeded),
    retry_backoff=1,
    max_retries=20,
    soft_time_limit=3000,
    time_limit=3060,
)
def act_on_many(self: JobTask, bulk_action_id: int) -> dict[str, Any]:
    """Carries out what an operator wants for all jobs that match a filter. Run again, it goes on where it was."""
    while True:
        action = batches.do_one(bulk_action_id)
        if action.finished_at is not None:
            break
        looked_at = action.done_count + action.refused_count
        self.progress(looked_at, max(looked_at, action.target_count), f"{looked_at} of {action.target_count} jobs")
    return {"done": action.done_count, "refused": action.refused_count, "refusals": action.refusals}
