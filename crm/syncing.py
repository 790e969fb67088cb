"""Bringing a contact to the CRM, and noting what came of it."""

from typing import Any

from django.conf import settings
from django.db import transaction

from crm.clients import contacts
from crm.models import CrmContact
from jobs.errors import Permanent


def is_configured() -> bool:
    """Whether there is a CRM: without an address and a token nothing is sent, or planned to be sent."""
    return bool(settings.CRM_BASE_URL and settings.CRM_TOKEN)


def sync(*, contact_id: int) -> CrmContact | None:
    """Brings the user's address and name to the CRM, as they are now.

    Creates the contact or updates it; a second call leaves the same contact. None where the user is gone by now. The
    CRM is called outside of any transaction: a process that dies after its answer leaves a contact that the next call
    finds. Raises CrmUnavailable (also RateLimited) to be tried again, Permanent otherwise.
    """
    contact = CrmContact.objects.select_related("user").filter(pk=contact_id).first()
    if contact is None:
        return None
    if not is_configured():
        raise Permanent("The CRM is not configured: set CRM_BASE_URL and CRM_TOKEN.")
    remote_id = contacts.upsert(email=contact.user.email, properties=properties_of(contact.user))
    contact.mark_synced(remote_id=remote_id)
    return contact


def note_failure(*, contact_id: int, error: str, is_final: bool) -> None:
    """Notes why the contact is not synced, for operators."""
    with transaction.atomic():
        contact = CrmContact.objects.select_for_update().filter(pk=contact_id).first()
        if contact is not None:
            contact.mark_unsynced(error=error, is_final=is_final)


def properties_of(user: Any) -> dict[str, str]:
    """A user as properties of a contact: the CRM wants first and last name apart."""
    first, _, last = user.name.partition(" ")
    return {"firstname": first, "lastname": last.strip()}
