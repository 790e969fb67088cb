"""What becomes of a stored event: its handler is called, once."""

import json
from uuid import UUID

from django.db import transaction

from jobs.errors import Permanent
from webhooks.handlers import handler_of
from webhooks.models import IncomingEvent


def handle_event(*, event_id: UUID) -> IncomingEvent:
    """Hands an event to its handler; what that writes and the note that it was handled are one transaction.

    An event that nobody handles is noted as ignored. Once handled, a second call changes nothing. Raises Permanent
    where the handler cannot use the data, or the event is gone.
    """
    with transaction.atomic():
        event = IncomingEvent.objects.select_for_update().filter(pk=event_id).first()
        if event is None:
            raise Permanent("The event is no longer there.")
        if event.handled_at is not None:
            return event
        handler = handler_of(event.type)
        if handler is None:
            event.mark_handled(outcome=IncomingEvent.Outcome.IGNORED, note="Nobody handles this type.")
        else:
            data = json.loads(event.body).get("data")
            note = handler(data if isinstance(data, dict) else {})
            event.mark_handled(outcome=IncomingEvent.Outcome.HANDLED, note=note)
    return event
