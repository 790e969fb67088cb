"""Secrets as they lie in the database: encrypted, because signing needs them back and a copy of the tables should not.

Fernet (AES-128-CBC with HMAC-SHA256) under a key that HKDF (RFC 5869) derives from SECRET_KEY; old keys stay readable
while they are listed in SECRET_KEY_FALLBACKS.
"""

import base64
import secrets

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.utils.encoding import force_bytes

# Standard Webhooks: the secret is 24 to 64 random bytes, in base64, behind this prefix.
PREFIX = "whsec_"
NEW_SECRET_BYTES = 32
SECRET_BYTES_RANGE = range(24, 65)


class Unreadable(Exception):
    """A sealed secret that no key of ours opens: SECRET_KEY is another than when it was sealed."""

    def __init__(self) -> None:
        super().__init__("The signing secret can no longer be read, because SECRET_KEY has changed. Set a new one.")


class NoSecret(ValueError):
    """A text that is no secret of Standard Webhooks."""

    def __init__(self) -> None:
        super().__init__(
            f"Expected {PREFIX} and then {SECRET_BYTES_RANGE[0]} to {SECRET_BYTES_RANGE[-1]} bytes in base64."
        )


def new_secret() -> str:
    """A fresh signing secret, as people pass it on: `whsec_…`."""
    return PREFIX + base64.b64encode(secrets.token_bytes(NEW_SECRET_BYTES)).decode()


def check(secret: str) -> None:
    """Raises NoSecret for a text that is no signing secret."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError as error:
        raise NoSecret from error
    if not secret.startswith(PREFIX) or len(key) not in SECRET_BYTES_RANGE:
        raise NoSecret


def seal(secret: str) -> str:
    """The secret encrypted, as a text for the database. Two calls give two texts."""
    return _fernet().encrypt(secret.encode()).decode()


def unseal(sealed: str) -> str:
    """The secret of a sealed text; raises Unreadable."""
    try:
        return _fernet().decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        raise Unreadable from error


def _fernet() -> MultiFernet:
    return MultiFernet([_under(key) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])


def _under(secret_key: str | bytes) -> Fernet:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"handoff.webhooks.secrets").derive(
        force_bytes(secret_key)
    )
    return Fernet(base64.urlsafe_b64encode(derived))
