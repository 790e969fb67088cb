"""Writes of incoming webhooks: an event is checked, and stored together with the job that will handle it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from standardwebhooks import Webhook, WebhookVerificationError

from jobs.ids import new_id
from webhooks import sealing
from webhooks.models import IncomingEvent, Source
from webhooks.tasks import handle

NAME_MAX_CHARACTERS = 255


class UnknownSource(Exception):
    """Nobody of that name sends events here."""


class BadSignature(Exception):
    """The signature is missing, wrong, or of another time."""

    def __init__(self) -> None:
        super().__init__("The signature is missing, wrong, or more than five minutes old.")


class NotAnEvent(ValueError):
    """The body is signed, but it is no event."""


class NotJson(NotAnEvent):
    """The body is signed, but it is no JSON."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """The answer to a source: the event, and whether this delivery of it was the first."""

    event: IncomingEvent
    is_new: bool


def receive(*, source_name: str, headers: Mapping[str, str], body: bytes) -> Received:
    """Stores an event and its job in one transaction, once for each (source, event id).

    The signature is that of Standard Webhooks over the raw body, compared in constant time, and its time may differ
    from ours by 300 s. A repetition gives back the event that is there, and makes no second job. Types that nobody
    handles are kept as well. A process that dies leaves event and job, or neither, and the source will send again.

    Raises UnknownSource, BadSignature, NotAnEvent, and webhooks.sealing.Unreadable.
    """
    source = Source.objects.filter(name=source_name, is_active=True).first()
    if source is None:
        raise UnknownSource
    _check_signature(source, headers, body)
    text = body.decode()
    event = IncomingEvent(
        source=source,
        event_id=_printable(headers["webhook-id"], "The header webhook-id"),
        type=_printable(_object(text).get("type"), "The body's type"),
        body=text,
        # Chosen here, so that the event can be stored before the job whose id it holds.
        job_id=new_id(),
    )
    with transaction.atomic():
        # Waits for another transaction that is just storing the same event, and then finds it.
        IncomingEvent.objects.bulk_create([event], ignore_conflicts=True)
        stored = IncomingEvent.objects.get(source=source, event_id=event.event_id)
        is_new = stored.pk == event.pk
        if is_new:
            handle.apply_async(kwargs={"event_id": str(event.pk)}, task_id=str(event.job_id))
    return Received(event=stored, is_new=is_new)


def set_secret(*, source: Source, secret: str) -> None:
    """Keeps the secret that the source signs with, encrypted; raises webhooks.sealing.NoSecret. Does not save."""
    sealing.check(secret)
    source.sealed_secret = sealing.seal(secret)


def _check_signature(source: Source, headers: Mapping[str, str], body: bytes) -> None:
    webhook = Webhook(sealing.unseal(source.sealed_secret))
    try:
        webhook.verify(body, dict(headers), json_parse=False)
    # The library lets the errors of malformed base64, UTF-8 and lists of signatures through.
    except (WebhookVerificationError, ValueError) as error:
        raise BadSignature from error


def _object(text: str) -> dict[str, Any]:
    try:
        event: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotJson("The body is not valid JSON.") from error
    if not isinstance(event, dict):
        raise NotAnEvent("The body must be a JSON object.")
    return event


def _printable(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= NAME_MAX_CHARACTERS:
        raise NotAnEvent(f"{what} must be a text of 1 to {NAME_MAX_CHARACTERS} printable characters.")
    return value
