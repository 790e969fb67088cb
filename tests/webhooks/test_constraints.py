"""What the database refuses, whoever writes it."""

from typing import Any

import pytest
from django.db import IntegrityError, models, transaction
from django.utils import timezone

from accounts.models import User
from jobs.ids import new_id
from webhooks.models import Delivery, DeliveryAttempt, Endpoint, IncomingEvent, OutgoingEvent, Source

pytestmark = pytest.mark.django_db
NOW = timezone.now()


@pytest.fixture
def rows(user: User) -> dict[str, Any]:
    """One row of each kind, in order."""
    source = Source.objects.create(name="shop", sealed_secret="-")
    endpoint = Endpoint.objects.create(owner=user, url="https://x.example/", event_types=["a"], sealed_secret="-")
    event = OutgoingEvent.objects.create(type="a", subject="b", body="{}")
    delivery = Delivery.objects.create(endpoint=endpoint, event=event)
    return {
        "source": source,
        "incoming": IncomingEvent.objects.create(source=source, event_id="1", type="a", body="{}", job_id=new_id()),
        "endpoint": endpoint,
        "event": event,
        "delivery": delivery,
        "attempt": DeliveryAttempt.objects.create(delivery=delivery, number=1),
    }


def copy_of(row: models.Model) -> None:
    """Inserts the same row under another key."""
    row.pk = new_id() if isinstance(row._meta.pk, models.UUIDField) else None
    row._state.adding = True
    row.save(force_insert=True)


@pytest.mark.parametrize(
    ("kind", "constraint"),
    [
        ("source", "source_name_is_unique"),
        ("incoming", "incoming_event_is_unique_per_source"),
        ("event", "outgoing_event_happens_once_per_subject"),
        ("delivery", "delivery_is_unique_per_endpoint_and_event"),
        ("attempt", "delivery_attempt_number_is_unique"),
    ],
)
def test_nothing_is_there_twice(rows: dict[str, Any], kind: str, constraint: str) -> None:
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        copy_of(rows[kind])


@pytest.mark.parametrize(
    ("kind", "fields", "constraint"),
    [
        ("incoming", {"outcome": "handled"}, "incoming_event_handled_at_iff_handled"),
        ("incoming", {"handled_at": NOW}, "incoming_event_handled_at_iff_handled"),
        ("endpoint", {"event_types": []}, "endpoint_has_event_types"),
        ("delivery", {"state": "delivered"}, "delivery_delivered_at_iff_delivered"),
        ("delivery", {"state": "failed", "delivered_at": NOW}, "delivery_delivered_at_iff_delivered"),
        ("attempt", {"status": 200}, "delivery_attempt_outcome_only_when_finished"),
        ("attempt", {"error": "no"}, "delivery_attempt_outcome_only_when_finished"),
    ],
)
def test_rows_do_not_contradict_themselves(
    rows: dict[str, Any], kind: str, fields: dict[str, Any], constraint: str
) -> None:
    row = rows[kind]
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        type(row).objects.filter(pk=row.pk).update(**fields)


def test_a_source_that_has_sent_something_cannot_be_deleted(rows: dict[str, Any]) -> None:
    with pytest.raises(models.ProtectedError):
        rows["source"].delete()
