"""Writes an e-mail: subject, text and HTML from the templates of its kind, and the headers that machines read."""

from collections.abc import Mapping
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.template.loader import render_to_string
from django.utils.crypto import salted_hmac

from jobs import correlation
from notifications.unsubscribe import unsubscribe_url


def message_id(*, kind: str, user_id: int, period: str) -> str:
    """The Message-ID (RFC 5322, section 3.6.4) of one e-mail to one user: the same at every attempt.

    Keyed with the secret key, so that two installations that send under one domain do not share ids.
    """
    digest = salted_hmac("notifications.message_id", f"{kind}/{user_id}/{period}", algorithm="sha256").hexdigest()
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"
    return f"<{digest[:32]}@{domain}>"


def compose(
    *, kind: str, user_id: int, recipient: str, message_id: str, context: Mapping[str, Any]
) -> EmailMultiAlternatives:
    """The message of a kind, from `notifications/<kind>.subject.txt`, `.txt` and `.html`.

    The templates see the context, and `site_url` and `unsubscribe_url`. Every header is the same at each attempt.
    """
    unsubscribe = unsubscribe_url(user_id=user_id)
    values = {**context, "site_url": settings.SITE_URL, "unsubscribe_url": unsubscribe}
    subject = " ".join(render_to_string(f"notifications/{kind}.subject.txt", values).split())
    message = EmailMultiAlternatives(
        subject=subject,
        body=render_to_string(f"notifications/{kind}.txt", values),
        to=[recipient],
        headers={
            "Message-ID": message_id,
            # Not a header of any standard for mail: providers that take one by SMTP pass it on to their own check.
            "Idempotency-Key": message_id.strip("<>").partition("@")[0],
            # RFC 2369 and RFC 8058: mail programs show a button, and their server presses it by a POST.
            "List-Unsubscribe": f"<{unsubscribe}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            # RFC 3834: no out-of-office reply, please.
            "Auto-Submitted": "auto-generated",
            **({correlation.HEADER: correlation.current()} if correlation.current() else {}),
        },
    )
    message.attach_alternative(render_to_string(f"notifications/{kind}.html", values), "text/html")
    return message
