"""Webhooks over HTTP: where other systems send their events, and where users say which events they want to hear of."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest
from ninja import Router, Schema, Status
from ninja.errors import HttpError
from pydantic import Field

from webhooks import receiving, selectors, services
from webhooks.event_types import EVENT_TYPES
from webhooks.models import Endpoint

router = Router(tags=["webhooks"])
incoming = Router(tags=["webhooks"])


class EndpointIn(Schema):
    """A new endpoint."""

    url: str = Field(description="Where events are posted to: https://…, or http://…")
    event_types: list[str] = Field(
        description="; ".join(f"`{name}`: {meaning}" for name, meaning in EVENT_TYPES.items()), max_length=20
    )
    hears_everybody: bool = Field(False, description="Events of all users; for staff only")


class EndpointOut(Schema):
    """An endpoint."""

    id: UUID
    url: str
    event_types: list[str]
    hears_everybody: bool
    is_active: bool
    created_at: datetime


class NewEndpointOut(EndpointOut):
    """A new endpoint with its signing secret, shown this once."""

    secret: str


class ReceivedOut(Schema):
    """An event that has been stored, now or by an earlier call."""

    id: UUID


@router.post("", response={201: NewEndpointOut})
def create_endpoint(request: HttpRequest, payload: EndpointIn) -> Status[dict[str, Any]]:
    """Registers an endpoint for your events. Its secret, which signs them, is shown this once.

    Events come as POST, signed as Standard Webhooks says. Any status from 200 to 299 says that an event has arrived;
    redirects are not followed. Otherwise it comes again after 5 s, 5 min, 30 min and 2 h, with the same `webhook-id`.
    """
    endpoint, secret = services.create_endpoint(
        owner=request.auth,  # type: ignore[attr-defined]  # set by ninja
        url=payload.url,
        event_types=payload.event_types,
        hears_everybody=payload.hears_everybody,
    )
    return Status(201, {**EndpointOut.from_orm(endpoint).dict(), "secret": secret})


@router.get("", response=list[EndpointOut])
def list_endpoints(request: HttpRequest) -> Any:
    """Your endpoints, newest first; without their secrets."""
    return selectors.endpoints_of(owner=request.auth)  # type: ignore[attr-defined]  # set by ninja


@router.delete("/{endpoint_id}", response={204: None})
def delete_endpoint(request: HttpRequest, endpoint_id: str) -> Status[None]:
    """Deletes an endpoint of yours, and what was on its way to it. 404 for an id that is unknown or somebody else's."""
    try:
        found = selectors.endpoints_of(owner=request.auth).get(pk=UUID(endpoint_id))  # type: ignore[attr-defined]
    except (ValueError, Endpoint.DoesNotExist):
        raise Http404 from None
    found.delete()
    return Status(204, None)


@incoming.post("/{source}", response={200: ReceivedOut, 202: ReceivedOut})
def receive(request: HttpRequest, source: str) -> Status[dict[str, UUID]]:
    """Takes an event from a source, signed as Standard Webhooks says: 202 for a new one, 200 for one that is here.

    401 for a signature that does not fit the raw body or is more than five minutes old, 404 for an unknown source, 422
    for a body that is signed but no event. What the event asks for is done in the background.
    """
    try:
        received = receiving.receive(source_name=source, headers=request.headers, body=request.body)
    except receiving.UnknownSource:
        raise Http404 from None
    except receiving.BadSignature as error:
        raise HttpError(401, str(error)) from error
    except receiving.NotJson as error:
        raise HttpError(400, str(error)) from error
    except receiving.NotAnEvent as error:
        raise HttpError(422, str(error)) from error
    return Status(202 if received.is_new else 200, {"id": received.event.pk})
