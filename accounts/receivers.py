"""What events from other systems cause here."""

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError

from accounts import services
from jobs.errors import Permanent


def contact_updated(data: Mapping[str, Any]) -> str:
    """Takes over the name of a contact that was changed elsewhere: `{"email": …, "name": …}`. Says what it has done.

    Runs inside the caller's transaction. Raises Permanent for data without an address or with a name that no user may
    have. An address that nobody has here is no failure: the other system may know more people.
    """
    email, name = data.get("email"), data.get("name")
    if not isinstance(email, str) or not isinstance(name, str):
        raise Permanent("The event's data must hold email and name, both as texts.")
    if "\0" in email or not _is_text(email + name):
        raise Permanent("The event's data holds characters that no text holds.")
    try:
        renamed = services.rename(email=email, name=name)
    except ValidationError as error:
        raise Permanent(f"The name cannot be taken over: {' '.join(error.messages)}") from error
    return "The user's name is taken over." if renamed else "Nobody here has this address."


def _is_text(value: str) -> bool:
    """Whether it can be written down: half a surrogate pair, which JSON can spell, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
