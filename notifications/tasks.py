"""Jobs that send notifications."""

from typing import Any
from uuid import UUID

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.contrib.auth import get_user_model

from jobs.task import JobTask
from notifications import services
from notifications.clients.smtp import TransientMailError

User = get_user_model()


@shared_task(  # type: ignore[arg-type]  # celery-types does not know the ledger's task class
    bind=True,
    queue="email",
    autoretry_for=(TransientMailError, SoftTimeLimitExceeded),
    retry_backoff=1,
    max_retries=2,
    soft_time_limit=30,
    time_limit=45,
)
def send_welcome(self: JobTask, user_id: int) -> dict[str, Any]:
    """Welcomes a new user. A user who is gone by now, or was locked out, gets no mail, and that is no failure."""
    user = User.objects.filter(pk=user_id, is_active=True).first()
    if user is None:
        self.progress(1, 1, "The user is gone")
        return {"sent": False, "recipient": None}
    entry = services.notify(kind="welcome", user=user, period="", context={"name": user.name}, job_id=_job_id(self))
    self.progress(1, 1, "Sent")
    return {"sent": True, "recipient": entry.recipient}


def _job_id(task: JobTask) -> UUID | None:
    return UUID(task.request.id) if task.request.id else None
