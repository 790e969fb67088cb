"""What an endpoint's URL and its list of events may be. What is wrong is said when it is registered, not at night."""

from collections.abc import Sequence

import httpx
from django.conf import settings
from django.core.exceptions import ValidationError

from webhooks.addresses import literal, may_be_dialled
from webhooks.event_types import EVENT_TYPES

WEB_PORTS = (80, 443)
# Below are the ports of mail, shells and databases' elders, whose servers could take an HTTP request for commands.
FIRST_FREE_PORT = 1024
# Names that never lead to the public internet (RFC 6761, RFC 6762, and the reservation of .internal by ICANN).
_PRIVATE_NAMES = ("localhost", "local", "internal")


def validate_url(value: str) -> None:
    """Refuses a URL that could not be delivered to: not HTTP, with a password in it, with a port that is none of the
    web's, or to an address that is known to be private. A name's addresses are looked at each time it is dialled."""
    try:
        url = httpx.URL(value)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise ValidationError("This is not a URL.", code="invalid") from error
    if url.scheme not in ("http", "https"):
        raise ValidationError("The URL must begin with https:// or http://.", code="scheme")
    if not host or any(character.isspace() for character in value):
        raise ValidationError("This is not a URL.", code="invalid")
    if url.userinfo:
        raise ValidationError("The URL must not hold a user name or password.", code="credentials")
    if url.fragment:
        raise ValidationError("The URL must not hold a fragment (#…): it is never sent.", code="fragment")
    port = url.port if url.port is not None else 443 if url.scheme == "https" else 80
    if port not in WEB_PORTS and not FIRST_FREE_PORT <= port <= 65535:
        raise ValidationError("The port must be 80, 443, or one from 1024 on.", code="port")
    if _is_private(host):
        raise ValidationError(
            "The host is in a private or reserved network: webhooks are not sent there.", code="private"
        )


def validate_event_types(value: Sequence[str]) -> None:
    """Refuses an empty list, unknown types, and the same type twice."""
    known = ", ".join(EVENT_TYPES)
    if not value:
        raise ValidationError(f"Name at least one event: {known}.", code="empty")
    for event_type in value:
        if event_type not in EVENT_TYPES:
            raise ValidationError(f"There is no such event. Known are: {known}.", code="unknown")
    if len(set(value)) < len(value):
        raise ValidationError("Name each event once.", code="twice")


def _is_private(host: str) -> bool:
    name = host.strip("[]").rstrip(".").lower()
    address = literal("127.0.0.1" if name == "localhost" else name)
    if address is not None:
        return not may_be_dialled(address, allowed=settings.WEBHOOK_ALLOWED_NETWORKS)
    # Where private networks are allowed, such a name may lead into one of them: that is seen when it is dialled.
    return name.rpartition(".")[2] in _PRIVATE_NAMES and not settings.WEBHOOK_ALLOWED_NETWORKS
