"""Jobs of webhooks."""

from typing import Any
from uuid import UUID

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.db import InterfaceError, OperationalError

from jobs.errors import Permanent
from jobs.task import JobTask
from webhooks import delivery, handling


@shared_task(
    bind=True,
    queue="webhooks",
    autoretry_for=(OperationalError, InterfaceError, SoftTimeLimitExceeded),
    retry_backoff=5,
    max_retries=len(delivery.RETRY_SECONDS),
    soft_time_limit=30,
    time_limit=45,
)
def deliver(self: JobTask, delivery_id: str) -> dict[str, Any]:
    """Sends one event to one endpoint. What is not accepted comes again after 5 s, 5 min, 30 min and 2 h."""
    self.progress(0, 1, "Waiting for the endpoint's answer")
    try:
        done = delivery.attempt(
            delivery_id=UUID(delivery_id), job_id=UUID(self.request.id) if self.request.id else None
        )
    except Permanent:
        delivery.give_up(delivery_id=UUID(delivery_id))
        raise
    except delivery.NotDelivered as error:
        if self.request.retries >= len(delivery.RETRY_SECONDS):
            delivery.give_up(delivery_id=UUID(delivery_id))
            raise Permanent(f"Given up after the last attempt. {error}") from error
        raise self.retry(exc=error, countdown=delivery.RETRY_SECONDS[self.request.retries]) from error
    self.progress(1, 1, "Delivered" if done.status is not None else "The endpoint is gone")
    return {"delivered": done.status is not None, "status": done.status}


@shared_task(
    bind=True,
    queue="webhooks",
    autoretry_for=(OperationalError, InterfaceError, SoftTimeLimitExceeded),
    retry_backoff=5,
    max_retries=4,
    soft_time_limit=30,
    time_limit=45,
)
def handle(self: JobTask, event_id: str) -> dict[str, Any]:
    """Does what an incoming event asks for."""
    event = handling.handle_event(event_id=UUID(event_id))
    self.progress(1, 1, event.note)
    return {"outcome": event.outcome, "note": event.note}
