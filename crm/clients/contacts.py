"""Contacts at the CRM, over the HTTP API of HubSpot as its reference documents it (CRM, Objects, Contacts, version 3).

Creating what is there answers 409; a contact may be named by its address (`idProperty=email`); an exhausted limit
answers 429. Any system that speaks this much of the API will do.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
from django.conf import settings

from jobs.errors import Permanent, RateLimited

CONTACTS = "/crm/v3/objects/contacts"
CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0
# HubSpot's limits are per ten seconds: what to wait where a 429 does not say how long, and the longest to believe.
PAUSE_SECONDS = 10
LONGEST_PAUSE_SECONDS = 3600
WORDS_CHARACTERS = 300


class CrmUnavailable(Exception):
    """The CRM cannot be reached, or has a fault of its own. Try again later."""


class CrmRefused(Permanent):
    """The CRM refused the call for good. The text holds its words."""


def upsert(*, email: str, properties: Mapping[str, str]) -> str:
    """Makes the contact with this address have these properties, and returns its id at the CRM.

    Created, or where it exists, updated: a second call leaves the same contact. Raises RateLimited, which pauses the
    queue of the job that lets it pass, CrmUnavailable, or CrmRefused. 5 s to connect, 15 s for each answer.
    """
    with httpx.Client(
        base_url=settings.CRM_BASE_URL,
        headers={"Authorization": f"Bearer {settings.CRM_TOKEN}"},
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
    ) as client:
        body = {"properties": {**properties, "email": email}}
        answer = _sent(client, "POST", CONTACTS, body)
        if answer.status_code == httpx.codes.CONFLICT:
            answer = _sent(client, "PATCH", f"{CONTACTS}/{quote(email, safe='')}?idProperty=email", body)
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise CrmUnavailable("The contact was there and is gone again: somebody deletes it just now.")
    return _id(answer)


def _sent(client: httpx.Client, method: str, path: str, body: Any) -> httpx.Response:
    try:
        answer = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise CrmUnavailable(f"The CRM cannot be reached: {error or type(error).__name__}.") from error
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        seconds = _pause_seconds(answer.headers.get("Retry-After", ""))
        raise RateLimited(f"The CRM takes no more calls for {seconds} s.", retry_after_seconds=seconds)
    if answer.is_server_error:
        raise CrmUnavailable(f"The CRM has a fault: {_words(answer)}.")
    return answer


def _id(answer: httpx.Response) -> str:
    if not answer.is_success:
        raise CrmRefused(f"The CRM refused the contact: {_words(answer)}.")
    try:
        return str(answer.json()["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise CrmUnavailable(f"The CRM's answer names no contact: {_words(answer)}.") from error


def _words(answer: httpx.Response) -> str:
    """The status and what the CRM says about it, in one line."""
    try:
        said = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.text
    words = " ".join(f"{answer.status_code} {said}".replace("\0", " ").split())
    return words[:WORDS_CHARACTERS].rstrip(".")


def _pause_seconds(retry_after: str) -> int:
    """The header Retry-After, in seconds or as a date (RFC 9110, section 10.2.3), within bounds."""
    if retry_after.isascii() and retry_after.strip().isdigit():
        seconds = int(retry_after.strip()[:9])
    else:
        try:
            seconds = int((parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            seconds = PAUSE_SECONDS
    return max(1, min(seconds, LONGEST_PAUSE_SECONDS))
