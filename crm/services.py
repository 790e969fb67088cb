"""Writes of the CRM: which contacts are to be brought there."""

from typing import Any
from uuid import UUID

from django.db import transaction

from crm.models import CrmContact
from crm.tasks import sync_contact


def sync_user(*, user: Any) -> CrmContact:
    """Plans that the user's contact at the CRM becomes like the user: a row, and a job in the same transaction.

    Called again while that job has not ended, it plans nothing more; later, it plans another sync.
    """
    with transaction.atomic():
        CrmContact.objects.bulk_create([CrmContact(user=user)], ignore_conflicts=True)
        contact = CrmContact.objects.select_for_update().get(user=user)
        job = sync_contact.apply_async(
            kwargs={"contact_id": contact.pk}, dedup_key=f"crm-contact-{contact.pk}", owner_id=user.pk
        )
        contact.state, contact.job_id = CrmContact.State.PENDING, UUID(job.id)
        contact.save(update_fields=["state", "job_id"])
    return contact
