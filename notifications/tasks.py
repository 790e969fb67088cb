"""Jobs that send notifications."""

from typing import Any
from uuid import UUID

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.contrib.auth import get_user_model

from jobs.task import JobTask
from notifications import selectors, services
from notifications.clients.smtp import TransientMailError
from notifications.digest import send_digests

User = get_user_model()


@shared_task(
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


@shared_task(
    bind=True,
    queue="default",
    autoretry_for=(TransientMailError, SoftTimeLimitExceeded),
    # A server that defers unknown senders (greylisting) wants some minutes: waits 1, 2, 4 and 8 of them.
    retry_backoff=60,
    max_retries=4,
    soft_time_limit=1800,
    time_limit=1860,
)
def send_digest(self: JobTask) -> dict[str, Any]:
    """Mails each user who wishes it the digest of the day for which it was scheduled, however late it runs.

    Without a schedule: of the day on which the job was made, even if it runs after midnight.
    """
    job_id = _job_id(self)
    day = self.scheduled_for.date() if self.scheduled_for else selectors.day_of_job(job_id=job_id)
    outcome = send_digests(day=day, job_id=job_id, report=self.progress)
    return {"sent": outcome.sent, "total": outcome.total}


def _job_id(task: JobTask) -> UUID | None:
    return UUID(task.request.id) if task.request.id else None
