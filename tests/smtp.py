"""A real SMTP server inside the tests, which can be slow, hold a mail, and refuse one."""

import asyncio
import email
import email.policy
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass(frozen=True)
class Mail:
    """A mail that the server has accepted: it answered 250, and the client was still there to hear it."""

    sender: str
    recipients: list[str]
    message: EmailMessage

    @property
    def subject(self) -> str:
        """Its subject."""
        return str(self.message["Subject"])


class SmtpServer:
    """Takes mails on the port that the settings name (EMAIL_PORT)."""

    def __init__(self, *, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.mails: list[Mail] = []
        self.delay_seconds = 0.0
        self.arrived_count = 0
        self.held_count = 0
        self._replies: deque[str] = deque()
        self._refused: dict[str, str] = {}
        self._holds = False
        self._controller = Controller(self, hostname=host, port=port)

    def answer(self, *replies: str) -> None:
        """The next mails are answered so, one each, like "451 4.3.0 Try again" or "550 5.1.1 No such user"; 250 after
        that."""
        self._replies.extend(replies)

    def refuse(self, recipient: str, reply: str) -> None:
        """From now on RCPT TO this address is answered so; with a 250 it is accepted again."""
        self._refused[recipient] = reply

    def hold(self) -> None:
        """Mails that come now wait for their answer until `release`; `held_count` of them wait."""
        self._holds = True

    def release(self) -> None:
        """Answers the held mails whose clients are still there."""
        self._holds = False

    def mails_to(self, recipient: str) -> list[Mail]:
        """The accepted mails to one address."""
        return [mail for mail in self.mails if recipient in mail.recipients]

    def start(self) -> None:
        """Listens."""
        self._controller.start()

    def stop(self) -> None:
        """Listens no more; held clients lose their connection."""
        self._controller.stop(no_assert=True)

    async def handle_RCPT(  # noqa: N802  # its name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Called by aiosmtpd for each recipient."""
        reply = self._refused.get(address, "250 OK")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # its name
        """Called by aiosmtpd; cancelled by it when the client has gone."""
        self.arrived_count += 1
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        self.held_count += 1
        try:
            while self._holds:
                await asyncio.sleep(0.02)
        finally:
            self.held_count -= 1
        if self._replies and not (reply := self._replies.popleft()).startswith("250"):
            return reply
        message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
        self.mails.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), message))
        return "250 2.0.0 OK"


@pytest.fixture
def smtp_server() -> Iterator[SmtpServer]:
    """An SMTP server for one test, where the settings of this process and of worker processes look for it."""
    server = SmtpServer(host=os.environ["EMAIL_HOST"], port=int(os.environ["EMAIL_PORT"]))
    server.start()
    yield server
    server.release()
    server.stop()
