"""Hands one message to the SMTP server, and says in two words what became of it: sent, or why not.

RFC 5321, section 4.2.1: a reply 4yz means "not now, try again", 5yz means "not like this, never".
"""

import contextlib
import smtplib
from collections.abc import Iterator

from django.core.mail import EmailMessage, get_connection
from django.core.mail.backends.base import BaseEmailBackend

from jobs.errors import Permanent


class TransientMailError(Exception):
    """The server could not take the message now: a 4xx reply, no connection, or no answer in time. Try again later."""


class MailRefused(Permanent):
    """The server refused the message for good, with a 5xx reply. The text holds the server's words."""


@contextlib.contextmanager
def delivered(message: EmailMessage) -> Iterator[None]:
    """Sends the message; the block runs as soon as the server has accepted it, before the connection is closed.

    So whoever notes the success does it at the earliest moment, and a server that is slow to say goodbye cannot turn an
    accepted message into a failed one. Raises TransientMailError or MailRefused, in which case the block does not run.
    Every step has the time-out of `EMAIL_TIMEOUT_SECONDS`.
    """
    connection = get_connection()
    try:
        _send(connection, message)
        yield
    finally:
        with contextlib.suppress(OSError, smtplib.SMTPException):
            connection.close()


def _send(connection: BaseEmailBackend, message: EmailMessage) -> None:
    try:
        connection.open()
        connection.send_messages([message])
    except smtplib.SMTPRecipientsRefused as error:
        replies = [_reply(code, words) for code, words in error.recipients.values()]
        if all(_is_permanent(code) for code, _ in error.recipients.values()):
            raise MailRefused(f"The mail server refused the recipient: {'; '.join(replies)}") from error
        raise TransientMailError(f"The mail server does not take the recipient now: {'; '.join(replies)}") from error
    except smtplib.SMTPResponseException as error:
        reply = _reply(error.smtp_code, error.smtp_error)
        if _is_permanent(error.smtp_code):
            raise MailRefused(f"The mail server refused the message: {reply}") from error
        raise TransientMailError(f"The mail server does not take the message now: {reply}") from error
    except smtplib.SMTPNotSupportedError as error:
        raise MailRefused(f"The mail server cannot do what is needed: {error}") from error
    except ValueError as error:
        # An address or header that cannot be written down as SMTP wants it.
        raise MailRefused(f"The message cannot be sent: {error}") from error
    except (OSError, smtplib.SMTPException) as error:
        # smtplib's own errors are OSErrors; what is left here are lost, refused and timed-out connections.
        raise TransientMailError(f"The mail server cannot be reached: {error or type(error).__name__}") from error


def _is_permanent(code: int) -> bool:
    return 500 <= code <= 599


def _reply(code: int, words: bytes | str) -> str:
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    return f"{code} {' '.join(text.split())}".strip()
