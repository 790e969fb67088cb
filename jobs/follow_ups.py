"""Celery's `link` and `chain`: the transaction that ends a job inserts what comes after it.

Ids are derived from the job's, so that neither a crash nor a run that lost its job loses or doubles a follow-up.
"""

import logging
from typing import Any
from uuid import UUID

from celery import Celery
from celery.canvas import maybe_signature
from django.db import transaction
from django.db.models.functions import Now

from jobs.claims import Claim
from jobs.ids import derived_id, parse_id
from jobs.models import Job
from jobs.patience import DATABASE_AWAY

logger = logging.getLogger(__name__)


def insert(app: Celery, job_id: UUID, claim: Claim, result: Any) -> None:
    """Enqueues the links and the next step of the chain of a job that completes in the current transaction.

    A follow-up that cannot be enqueued never stops the end of its job: it is rolled back alone, logged and noted.
    """
    steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (link, {"task_id": str(derived_id(job_id, "link", number))})
        for number, link in enumerate(claim.follow_ups.get("link", []))
    ]
    chain = claim.follow_ups.get("chain", [])
    if chain:
        steps.append((chain[-1], {"chain": chain[:-1]}))
    root_id = str(claim.root_id or job_id)
    for step, options in steps:
        try:
            with transaction.atomic():
                signature = maybe_signature(step, app=app)
                if "chain" in options and not signature.options.get("task_id"):
                    options["task_id"] = str(derived_id(job_id, "chain"))
                signature.apply_async((result,), parent_id=str(job_id), root_id=root_id, **options)
        except DATABASE_AWAY:
            # Then the job's end is not written either, and is tried again as a whole.
            raise
        except Exception as error:  # whatever a signature raises, the job's own end stands
            logger.exception("id=%s completed, but what should follow it could not be enqueued", job_id)
            Job.objects.filter(pk=job_id).update(error=f"Completed, but a follow-up could not be enqueued: {error}")


def abandon(job_id: UUID) -> None:
    """The rest of a failed job's chain is stored as cancelled under its ids, so that nobody waits for it for ever."""
    job = Job.objects.filter(pk=job_id).values("follow_ups", "queue", "root_id").first()
    if job is None:
        return
    for step in job["follow_ups"].get("chain", []):
        task_id = step.get("options", {}).get("task_id")
        if not task_id:
            continue
        Job.objects.bulk_create(
            [
                Job(
                    id=parse_id(task_id),
                    task=step["task"],
                    queue=job["queue"],
                    state="cancelled",
                    args=list(step.get("args") or ()),
                    kwargs=dict(step.get("kwargs") or {}),
                    finished_at=Now(),
                    error=f"An earlier step of its chain failed: job {job_id}.",
                    parent_id=job_id,
                    root_id=job["root_id"] or job_id,
                )
            ],
            ignore_conflicts=True,
        )
