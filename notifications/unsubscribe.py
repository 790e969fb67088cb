"""Links that end the digest for one user, without a login: who holds the link may use it.

The link is signed, not stored, and does not expire: people unsubscribe from mails that are years old. It can do nothing
but this one thing.
"""

from django.conf import settings
from django.core.signing import BadSignature, Signer
from django.urls import reverse

# The separator may not be one that mail clients take for the end of a link.
_signer = Signer(sep=".", salt="notifications.unsubscribe")


class BadUnsubscribeLink(ValueError):
    """The link was changed or cut off on its way."""


def unsubscribe_url(*, user_id: int) -> str:
    """The address of the user's unsubscribe page."""
    path = reverse("notifications:unsubscribe", kwargs={"token": _signer.sign(str(user_id))})
    return f"{settings.SITE_URL}{path}"


def user_id_of(*, token: str) -> int:
    """Whose link this is; raises BadUnsubscribeLink."""
    try:
        return int(_signer.unsign(token))
    except BadSignature:
        raise BadUnsubscribeLink(token) from None
