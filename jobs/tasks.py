"""The ledger's own tasks."""

from typing import Any
from uuid import UUID

from billiard.exceptions import SoftTimeLimitExceeded
from celery import shared_task
from django.db import InterfaceError, OperationalError
from django.dispatch import receiver

from jobs import batches
from jobs.signals import job_failed
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


# What follows is for Django's task API. Its module is imported by those alone who use that: before Django 6.0 it wants
# the package django-tasks.
def _tell_success(self: Any, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
    from jobs import django_tasks

    django_tasks.tell_completed(self.request.run)


@shared_task(
    bind=True,
    queue="default",
    autoretry_for=(),
    retry_backoff=False,
    max_retries=0,
    # Each call brings the limits of its queue.
    soft_time_limit=60,
    time_limit=75,
    on_success=_tell_success,
)
def run_django_task(self: Any, *, function: str, args: list[Any], kwargs: dict[str, Any], **using: Any) -> Any:
    """Runs the function at a path like `shop.tasks.greet`, with JSON arguments; `using` is what its caller chose."""
    from jobs import django_tasks

    return django_tasks.run(self.request.run)


@receiver(job_failed)
def tell_failure(*, job_id: UUID, task: str, **_: Any) -> None:
    """Also of jobs that were lost with their workers."""
    if task == run_django_task.name:
        from jobs import django_tasks

        django_tasks.tell_finished(job_id)
