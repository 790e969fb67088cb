import smtplib
import socket
from typing import Any

import pytest
from django.core.mail import EmailMessage

from notifications.clients import smtp
from notifications.clients.smtp import MailRefused, TransientMailError, delivered
from tests.smtp import SmtpServer


def message(*recipients: str) -> EmailMessage:
    return EmailMessage(subject="Hello", body="Hello", to=list(recipients or ["ann@example.com"]))


def send(mail: EmailMessage) -> None:
    with delivered(mail):
        pass


def test_the_block_runs_once_the_server_has_accepted(smtp_server: SmtpServer) -> None:
    ran = []
    with delivered(message()):
        ran.append(len(smtp_server.mails))
    assert ran == [1]


def refuse(server: SmtpServer, step: str, reply: str) -> None:
    if step == "RCPT":
        server.refuse("ann@example.com", reply)
    else:
        server.answer(reply)


@pytest.mark.parametrize("reply", ["421 Closing", "450 Mailbox busy", "451 Local error", "452 Disk full"])
@pytest.mark.parametrize("step", ["RCPT", "DATA"])
def test_a_4xx_reply_is_transient_and_keeps_the_servers_words(smtp_server: SmtpServer, step: str, reply: str) -> None:
    refuse(smtp_server, step, reply)
    with pytest.raises(TransientMailError, match=reply):
        send(message())


@pytest.mark.parametrize("reply", ["550 No such user", "552 Too big", "553 Bad name", "554 Spam"])
@pytest.mark.parametrize("step", ["RCPT", "DATA"])
def test_a_5xx_reply_is_permanent_and_keeps_the_servers_words(smtp_server: SmtpServer, step: str, reply: str) -> None:
    refuse(smtp_server, step, reply)
    with pytest.raises(MailRefused, match=reply):
        send(message())


def test_recipients_refused_for_different_reasons_are_transient_if_one_reason_may_pass(smtp_server: SmtpServer) -> None:
    smtp_server.refuse("ann@example.com", "550 Gone")
    smtp_server.refuse("bob@example.com", "450 Busy")
    with pytest.raises(TransientMailError, match="550 Gone; 450 Busy"):
        send(message("ann@example.com", "bob@example.com"))


def test_a_server_that_is_not_there_is_transient(settings: Any) -> None:
    # Without the fixture, nobody listens on the port of the settings.
    with pytest.raises(TransientMailError, match="refused"):
        send(message())


def test_a_server_that_never_answers_is_transient(settings: Any) -> None:
    settings.EMAIL_HOST = "127.0.0.1"
    settings.EMAIL_TIMEOUT = 0.3
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.EMAIL_PORT = silent.getsockname()[1]
        with pytest.raises(TransientMailError, match="timed out"):
            send(message())


def test_an_address_that_cannot_be_written_down_is_permanent(smtp_server: SmtpServer) -> None:
    with pytest.raises(MailRefused, match="cannot be sent"):
        send(message("ann@example.com\nBcc: bob@example.com"))
    assert smtp_server.mails == []


def test_a_failure_to_say_goodbye_does_not_undo_an_accepted_mail(
    smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(client: smtplib.SMTP) -> None:
        client.close()
        raise TimeoutError

    monkeypatch.setattr(smtplib.SMTP, "quit", hang)
    send(message())
    assert len(smtp_server.mails) == 1


def test_the_connection_is_closed_whatever_happens(smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    quit_ = smtplib.SMTP.quit
    monkeypatch.setattr(smtplib.SMTP, "quit", lambda client: closed.append(quit_(client)))
    smtp_server.answer("554 Spam")
    with pytest.raises(MailRefused):
        send(message())
    send(message())
    assert len(closed) == 2


def test_an_error_of_the_block_is_not_taken_for_one_of_the_server(smtp_server: SmtpServer) -> None:
    def block() -> None:
        with delivered(message()):
            raise ConnectionError("the database is gone")

    with pytest.raises(ConnectionError, match="the database is gone"):
        block()


def test_a_reply_of_several_lines_becomes_one_line() -> None:
    assert smtp._reply(550, b"5.1.1 no such\r\nuser  here") == "550 5.1.1 no such user here"
