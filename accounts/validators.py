"""What a name and an address may hold, beyond what Django's own field validators ask."""

import unicodedata

from django.core.exceptions import ValidationError


def validate_printable(value: str) -> None:
    """Refuses control characters: PostgreSQL stores no NUL, and a line break in a name would end a mail header."""
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ValidationError("Control characters, such as line breaks, are not allowed.", code="control_character")


def validate_ascii_mailbox(value: str) -> None:
    """Refuses letters outside ASCII before the @: they need SMTPUTF8 (RFC 6531), which many mail servers lack.

    Django's own pattern ignores case, and so lets through the few letters of Unicode whose capital is an ASCII one.
    """
    if not value.rpartition("@")[0].isascii():
        raise ValidationError("Enter a valid email address.", code="invalid")


def validate_no_link(value: str) -> None:
    """Refuses web addresses in a name: the welcome mail greets by name, and would carry a stranger's advertisement to
    whatever address he signs up with."""
    if "://" in value or "www." in value.lower():
        raise ValidationError("A name holds no web address.", code="link")
