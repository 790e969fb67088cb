"""One attempt to deliver: noted, sent, noted again. Nothing is sent inside a transaction."""

import http
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from django.db import transaction
from standardwebhooks import Webhook

from jobs import correlation
from jobs.errors import Permanent
from webhooks import sealing
from webhooks.clients import endpoint as client
from webhooks.clients.network import AddressRefused
from webhooks.models import Delivery, DeliveryAttempt

# Standard Webhooks, "Deliverability and reliability": the first steps of its example.
RETRY_SECONDS = (5, 5 * 60, 30 * 60, 2 * 3600)
USER_AGENT = "Handoff-Webhooks/1"


class NotDelivered(Exception):
    """The endpoint could not be reached or did not accept the event; the text says why. Worth trying again."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """The end of a delivery that needs no further attempt; `status` is None where it was no longer wanted."""

    status: int | None


def attempt(*, delivery_id: UUID, job_id: UUID | None) -> Delivered:
    """Sends the event to the endpoint and keeps what was answered.

    Only a status from 200 to 299 is success. Raises NotDelivered (try again later), or Permanent where that is useless:
    the endpoint is switched off, its address is refused, its secret unreadable. Once delivered, a second call sends
    nothing; a process that dies in the middle leaves an attempt without an end, and the next call sends again, under
    the same id.
    """
    delivery = Delivery.objects.select_related("endpoint__owner", "event").filter(pk=delivery_id).first()
    if delivery is None:
        # Deleted together with its endpoint.
        return Delivered(status=None)
    if delivery.state == Delivery.State.DELIVERED:
        return Delivered(status=delivery.attempts.exclude(status=None).values_list("status", flat=True).last())
    if not (delivery.endpoint.is_active and delivery.endpoint.owner.is_active):
        raise Permanent("The endpoint is switched off.")
    noted = _noted(delivery, job_id)
    try:
        answer = client.post(delivery.endpoint.url, body=delivery.event.body.encode(), headers=signed(delivery))
    except client.NoAnswer as error:
        noted.finish(status=None, error=str(error))
        raise NotDelivered(str(error)) from error
    except (AddressRefused, sealing.Unreadable) as error:
        noted.finish(status=None, error=str(error))
        raise Permanent(str(error)) from error
    problem = _problem(answer.status)
    with transaction.atomic():
        noted.finish(status=answer.status, error=problem, response_excerpt=answer.excerpt)
        if not problem:
            delivery.mark(Delivery.State.DELIVERED)
    if problem:
        raise NotDelivered(problem)
    return Delivered(status=answer.status)


def give_up(*, delivery_id: UUID) -> None:
    """Marks a delivery as failed, unless it has arrived."""
    Delivery.objects.filter(pk=delivery_id, state=Delivery.State.PENDING).update(state=Delivery.State.FAILED)


def signed(delivery: Delivery) -> dict[str, str]:
    """The headers of a request, signed now: `webhook-id` is the same at every attempt, the time is not."""
    now = datetime.now(UTC)
    message_id, body = delivery.event.message_id, delivery.event.body
    signature = Webhook(sealing.unseal(delivery.endpoint.sealed_secret)).sign(message_id, now, body)
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
        **({correlation.HEADER: correlation.current()} if correlation.current() else {}),
    }


def _noted(delivery: Delivery, job_id: UUID | None) -> DeliveryAttempt:
    with transaction.atomic():
        # The lock numbers attempts one by one, should two jobs ever send one delivery.
        Delivery.objects.select_for_update().get(pk=delivery.pk)
        return DeliveryAttempt.objects.create(delivery=delivery, number=delivery.attempts.count() + 1, job_id=job_id)


def _problem(status: int) -> str:
    if 200 <= status <= 299:
        return ""
    try:
        words = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        words = str(status)
    if 300 <= status <= 399:
        return f"The endpoint answered {words}: redirects are not followed."
    return f"The endpoint answered {words}."
