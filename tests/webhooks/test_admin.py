"""The operators' pages of webhooks."""

import json
import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from jobs.ids import new_id
from jobs.models import Job
from webhooks import receiving, sealing, services
from webhooks.models import Delivery, DeliveryAttempt, Endpoint, IncomingEvent, OutgoingEvent, Source

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin() -> User:
    return User.objects.create_superuser("root@example.com", "correct horse battery", name="Root")


@pytest.fixture
def browser(admin: User) -> Client:
    client = Client()
    client.force_login(admin)
    return client


@pytest.fixture
def delivery(user: User) -> Delivery:
    services.create_endpoint(owner=user, url="https://example.com/hook", event_types=["media.ready"])
    services.publish(event_type="media.ready", user=user, subject="picture-7", data={"id": 7})
    delivery = Delivery.objects.get()
    attempt = DeliveryAttempt.objects.create(delivery=delivery, number=1, job_id=delivery.job_id)
    attempt.finish(status=500, error="The endpoint answered 500.", response_excerpt="<b>broken</b>")
    return delivery


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer
    found: str = answer.content.decode()
    return found


def test_a_new_source_takes_events_signed_with_the_secret_that_was_typed_in(browser: Client) -> None:
    secret = sealing.new_secret()
    add = reverse("admin:webhooks_source_add")
    refused = text(browser.post(add, {"name": "shop", "is_active": "on", "secret": "whsec_short"}))
    assert "24 to 64 bytes" in refused
    assert "needs its secret" in text(browser.post(add, {"name": "shop", "is_active": "on"}))
    assert browser.post(add, {"name": "shop", "is_active": "on", "secret": secret}).status_code == 302
    source = Source.objects.get()
    assert sealing.unseal(source.sealed_secret) == secret
    page = reverse("admin:webhooks_source_change", args=[source.pk])
    shown = text(browser.get(page))
    assert "/webhooks/in/shop" in shown
    assert secret[6:] not in shown
    # Saved without a secret, it keeps the one it has.
    assert browser.post(page, {"name": "shop", "secret": ""}).status_code == 302
    source.refresh_from_db()
    assert (source.is_active, sealing.unseal(source.sealed_secret)) == (False, secret)


def test_received_events_are_shown_and_never_edited(browser: Client) -> None:
    source = Source(name="shop")
    receiving.set_secret(source=source, secret=sealing.new_secret())
    source.save()
    event = IncomingEvent.objects.create(
        source=source, event_id="msg_1", type="a.b", body='{"x": "<script>"}', job_id=new_id()
    )  # fmt: skip
    assert "msg_1" in text(browser.get(reverse("admin:webhooks_incomingevent_changelist")))
    page = text(browser.get(reverse("admin:webhooks_incomingevent_change", args=[event.pk])))
    assert "&lt;script&gt;" in page
    assert browser.get(reverse("admin:webhooks_incomingevent_add")).status_code == 403


def test_a_new_endpoint_shows_its_secret_once(browser: Client, admin: User) -> None:
    fields = {
        "owner": admin.pk, "url": "https://example.com/", "event_types": ["user.created", "media.ready"],
        "hears_everybody": "on", "is_active": "on",
    }  # fmt: skip
    page = text(browser.post(reverse("admin:webhooks_endpoint_add"), fields, follow=True))
    endpoint = Endpoint.objects.get()
    assert endpoint.event_types == ["user.created", "media.ready"]
    secret = sealing.unseal(endpoint.sealed_secret)
    assert secret in page.replace("&#x2F;", "/").replace("&#x3D;", "=")
    assert secret not in text(browser.get(reverse("admin:webhooks_endpoint_change", args=[endpoint.pk])))


def test_another_secret_replaces_the_first(browser: Client, delivery: Delivery) -> None:
    before = delivery.endpoint.sealed_secret
    answer = browser.post(
        reverse("admin:webhooks_endpoint_changelist"),
        {"action": "renew_secret", "_selected_action": [str(delivery.endpoint_id)]},
        follow=True,
    )
    assert re.search("shown this once: whsec_", text(answer))
    delivery.endpoint.refresh_from_db()
    assert sealing.unseal(delivery.endpoint.sealed_secret) != sealing.unseal(before)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"url": "http://10.0.0.1/"}, "private or reserved"), ({"event_types": []}, "required"), ({}, "Only an endpoint")],
)
def test_a_wrong_endpoint_is_refused_in_words(browser: Client, user: User, fields: dict[str, Any], words: str) -> None:
    right = {"owner": user.pk, "url": "https://example.com/", "event_types": ["media.ready"], "hears_everybody": "on"}
    assert words in text(browser.post(reverse("admin:webhooks_endpoint_add"), {**right, **fields}))
    assert not Endpoint.objects.exists()


def test_a_delivery_is_shown_with_its_attempts_as_text(browser: Client, delivery: Delivery) -> None:
    assert "https://example.com/hook" in text(browser.get(reverse("admin:webhooks_delivery_changelist")))
    page = text(browser.get(reverse("admin:webhooks_delivery_change", args=[delivery.pk])))
    assert "The endpoint answered 500." in page
    assert "&lt;b&gt;broken" in page
    assert OutgoingEvent.objects.get().message_id in page


def test_a_delivery_is_sent_again_by_its_button_unless_it_is_on_its_way(browser: Client, delivery: Delivery) -> None:
    url = reverse("admin:webhooks_delivery_resend", args=[delivery.pk])
    assert browser.get(url).status_code == 405
    assert "still on its way" in text(browser.post(url, follow=True))
    assert Job.objects.count() == 1
    Job.objects.update(state="failed", error="x", finished_at="2026-01-01T00:00:00Z")
    assert "1 delivery is sent again" in text(browser.post(url, follow=True))
    delivery.refresh_from_db()
    assert (delivery.state, delivery.job_id) == ("pending", Job.objects.get(state="waiting").pk)


def test_sending_again_needs_the_permission_to_change_deliveries(delivery: Delivery) -> None:
    client = Client()
    client.force_login(User.objects.create(email="staff@example.com", name="Staff", is_staff=True))
    assert client.post(reverse("admin:webhooks_delivery_resend", args=[delivery.pk])).status_code == 403


def test_bodies_hold_no_secret_of_ours(delivery: Delivery) -> None:
    assert "secret" not in json.dumps(Job.objects.get().kwargs)
