"""Writes of outgoing webhooks: endpoints, events, and what an operator does to deliveries."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from jobs.models import LIVE, Job
from webhooks import sealing, selectors
from webhooks.models import Delivery, Endpoint, OutgoingEvent
from webhooks.tasks import deliver

ENDPOINTS_PER_USER_COUNT = 20


class StillOnItsWay(Exception):
    """A delivery that is to be sent again while its job has not ended."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(f"{delivery} is still on its way: its job has not ended.")


def create_endpoint(
    *, owner: Any, url: str, event_types: list[str], hears_everybody: bool = False
) -> tuple[Endpoint, str]:
    """An endpoint and its secret. The returned secret is the only readable copy: the database keeps it encrypted.

    Raises ValidationError with a list of messages per field. A second call makes a second endpoint.
    """
    secret = sealing.new_secret()
    endpoint = Endpoint(
        owner=owner,
        url=url.strip(),
        event_types=event_types,
        hears_everybody=hears_everybody,
        sealed_secret=sealing.seal(secret),
    )
    endpoint.full_clean()
    if hears_everybody and not owner.is_staff:
        raise ValidationError({"hears_everybody": "Only staff may hear of everybody's events."})
    if Endpoint.objects.filter(owner=owner).count() >= ENDPOINTS_PER_USER_COUNT:
        raise ValidationError(f"You have {ENDPOINTS_PER_USER_COUNT} endpoints already: delete one first.")
    endpoint.save(force_insert=True)
    return endpoint, secret


def renew_secret(*, endpoint: Endpoint) -> str:
    """Gives the endpoint a new secret and returns it; from now on only that signs."""
    secret = sealing.new_secret()
    endpoint.sealed_secret = sealing.seal(secret)
    endpoint.save(update_fields=["sealed_secret"])
    return secret


def publish(*, event_type: str, user: Any, subject: str, data: Mapping[str, Any]) -> None:
    """Tells every endpoint that wants to know that something happened to a user.

    Called inside the transaction in which it happens: event, deliveries and their jobs commit with it or not at all.
    `subject` says what it happened to: called again with the same type and subject, it does nothing, so whatever causes
    an event may run twice. An event that no endpoint wants is not kept.
    """
    endpoints = list(selectors.endpoints_for(event_type=event_type, user=user))
    if not endpoints:
        return
    body = {"type": event_type, "timestamp": timezone.now().isoformat(), "data": data}
    event = OutgoingEvent(type=event_type, subject=subject, body=json.dumps(body, ensure_ascii=False))
    with transaction.atomic():
        OutgoingEvent.objects.bulk_create([event], ignore_conflicts=True)
        if not OutgoingEvent.objects.filter(pk=event.pk).exists():
            return
        for endpoint in endpoints:
            _send(Delivery(endpoint=endpoint, event=event))


def resend(*, delivery_id: UUID) -> None:
    """Sends an event again to its endpoint, under the same id, whatever became of it before.

    A new job with all its attempts. Raises StillOnItsWay while the last job has not ended. Of two people who press the
    button at once one is refused.
    """
    with transaction.atomic():
        delivery = (
            Delivery.objects.select_for_update(of=["self"]).select_related("endpoint", "event").get(pk=delivery_id)
        )
        if delivery.job_id and Job.objects.filter(pk=delivery.job_id, state__in=LIVE).exists():
            raise StillOnItsWay(delivery)
        delivery.mark(Delivery.State.PENDING)
        _send(delivery)


def _send(delivery: Delivery) -> None:
    job = deliver.apply_async(
        kwargs={"delivery_id": str(delivery.pk)},
        dedup_key=f"webhook-{delivery.endpoint_id}-{delivery.event_id}",
        owner_id=delivery.endpoint.owner_id,
    )
    delivery.job_id = UUID(job.id)
    delivery.save()
