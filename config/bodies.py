"""Which bodies an address of the API takes: refused by their headers, before anything of them is read."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

View = Callable[..., HttpResponse]


@dataclass(frozen=True, kw_only=True)
class Body:
    """A kind of body: how it must be declared, in words and as a media type, and how long it may be."""

    name: str
    content_type: str
    max_bytes: int


class BodyRefused(Exception):
    """The headers of a request announce a body that is not taken; `status` says why."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


# The largest body that most calls have a use for.
SMALL_JSON = Body(name="JSON", content_type="application/json", max_bytes=16 * 1024)
# Standard Webhooks recommends at most 20 kB; some senders need more.
WEBHOOK = Body(name="JSON", content_type="application/json", max_bytes=256 * 1024)
# What a form adds to its file: boundaries, headers, the other fields.
FORM_OVERHEAD_BYTES = 16 * 1024


def upload(*, max_bytes: int) -> Body:
    """A form with one file of at most so many bytes."""
    return Body(name="a form", content_type="multipart/form-data", max_bytes=max_bytes + FORM_OVERHEAD_BYTES)


def body_of(path: str) -> Body:
    """What an address takes: small JSON, unless it is named here."""
    match path:
        case "/api/images":
            return upload(max_bytes=settings.PICTURE_MAX_BYTES)
        case "/api/videos":
            return upload(max_bytes=settings.VIDEO_MAX_BYTES)
        case _ if path.startswith("/webhooks/in/"):
            return WEBHOOK
        case _:
            return SMALL_JSON


def check_headers(request: HttpRequest) -> None:
    """Raises BodyRefused for a body that this address does not take.

    A chunked body has got its length from `config.chunked`; where the server does not allow that it is refused, because
    Django reads nothing of it and it would look empty. So is one that was too long to be measured there.
    """
    body = body_of(request.path)
    declared = request.META.get("CONTENT_LENGTH") or ""
    length = int(declared[:12]) if declared.isascii() and declared.isdigit() else 0
    if request.META.get("HTTP_TRANSFER_ENCODING"):
        is_cut = length > settings.DATA_UPLOAD_MAX_MEMORY_SIZE and body.max_bytes >= length
        if not declared or is_cut:
            raise BodyRefused("Send the body with a Content-Length.", status=411)
    if length > body.max_bytes:
        raise BodyRefused(f"The body is too large: at most {body.max_bytes} bytes.", status=413)
    if length and request.content_type != body.content_type:
        raise BodyRefused(f"Send the body as {body.name}, with Content-Type: {body.content_type}.", status=415)


def declared_bodies_only(answer: Callable[[BodyRefused], HttpResponse]) -> Callable[[View], View]:
    """A decorator of views: a body is read only if its headers pass `check_headers`; `answer` turns down the others."""

    def decorator(view: View) -> View:
        @functools.wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            try:
                check_headers(request)
            except BodyRefused as refusal:
                return answer(refusal)
            return view(request, *args, **kwargs)

        return checked

    return decorator
