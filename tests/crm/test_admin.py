"""The operators' page of the CRM."""

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from crm.models import CrmContact
from jobs.models import Job

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root@example.com", "correct horse battery", name="Root"))
    return client


@pytest.fixture
def contact() -> CrmContact:
    ann = User.objects.create(email="ann@example.com", name="Ann")
    return CrmContact.objects.create(user=ann, state="failed", error="The CRM refused the contact: 400 No.")


def sync_again(browser: Client, contact: CrmContact) -> str:
    answer = browser.post(
        reverse("admin:crm_crmcontact_changelist"),
        {"action": "sync_again", "_selected_action": [str(contact.pk)]},
        follow=True,
    )
    return answer.content.decode()


def test_contacts_are_shown_with_what_went_wrong(browser: Client, contact: CrmContact) -> None:
    page = browser.get(reverse("admin:crm_crmcontact_changelist")).content.decode()
    assert "ann@example.com" in page
    assert "400 No." in page
    assert browser.get(reverse("admin:crm_crmcontact_change", args=[contact.pk])).status_code == 200


@pytest.mark.usefixtures("crm_env")
def test_a_contact_is_synced_again(browser: Client, contact: CrmContact) -> None:
    assert "synced again: 1" in sync_again(browser, contact)
    contact.refresh_from_db()
    assert (contact.state, contact.job_id) == ("pending", Job.objects.get(queue="crm").pk)


def test_without_a_crm_that_is_refused(browser: Client, contact: CrmContact) -> None:
    assert "not configured" in sync_again(browser, contact)
    assert not Job.objects.exists()
