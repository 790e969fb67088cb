"""Jobs of the CRM."""

from typing import Any

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

from crm import syncing
from crm.clients.contacts import CrmUnavailable
from jobs.errors import Permanent, RateLimited
from jobs.task import JobTask

MAX_RETRIES = 6


@shared_task(
    bind=True,
    queue="crm",
    autoretry_for=(CrmUnavailable, SoftTimeLimitExceeded),
    # Waits 10 s, 20 s, 40 s … and 5 min in the end. A 429 is no attempt: it holds the whole queue, as long as it says.
    retry_backoff=10,
    max_retries=MAX_RETRIES,
    soft_time_limit=60,
    time_limit=75,
)
def sync_contact(self: JobTask, contact_id: int) -> dict[str, Any]:
    """Creates or updates the contact of a user at the CRM."""
    self.progress(0, 1, "Waiting for the CRM's answer")
    try:
        contact = syncing.sync(contact_id=contact_id)
    except Permanent as error:
        syncing.note_failure(contact_id=contact_id, error=str(error), is_final=True)
        raise
    except CrmUnavailable as error:
        is_last = self.request.retries >= MAX_RETRIES
        syncing.note_failure(contact_id=contact_id, error=str(error), is_final=is_last)
        if is_last:
            raise Permanent(f"Given up after the last attempt. {error}") from error
        raise
    except RateLimited as error:
        syncing.note_failure(contact_id=contact_id, error=str(error), is_final=False)
        raise
    self.progress(1, 1, "Synced" if contact else "The user is gone")
    return {"synced": contact is not None, "remote_id": contact.remote_id if contact else None}
