from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, connection, connections, transaction

from accounts.models import User
from jobs.ids import new_id
from jobs.models import Job
from notifications.clients.smtp import MailRefused, TransientMailError
from notifications.models import EmailLog
from notifications.services import BeingSent, notify
from tests.smtp import Mail, SmtpServer
from tests.waiting import wait_until


def welcome(user: User, *, job_id: UUID | None = None) -> EmailLog:
    return notify(kind="welcome", user=user, period="", context={"name": user.name}, job_id=job_id)


def recipients(server: SmtpServer) -> list[str]:
    return [recipient for mail in server.mails for recipient in mail.recipients]


def part(mail: Mail, subtype: str) -> str:
    body = mail.message.get_body(preferencelist=(subtype,))
    assert body is not None
    return str(body.get_content())


class Crash(BaseException):
    """Ends the run where a dying process would."""


def closing_connections(call: Callable[[], EmailLog]) -> Callable[[], EmailLog]:
    def run() -> EmailLog:
        try:
            return call()
        finally:
            connections.close_all()

    return run


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_notifying_twice_sends_once(user: User, smtp_server: SmtpServer) -> None:
    first = welcome(user)
    second = welcome(user)
    assert recipients(smtp_server) == [user.email]
    assert first == second == EmailLog.objects.get()
    assert second.state == EmailLog.State.SENT
    assert second.sent_at is not None


def test_another_period_is_another_mail(user: User, smtp_server: SmtpServer) -> None:
    for period in ("2026-01-01", "2026-01-02"):
        notify(kind="welcome", user=user, period=period, context={"name": "Ann"})
    ids = [mail.message["Message-ID"] for mail in smtp_server.mails]
    assert len(set(ids)) == 2


def test_the_mail_has_text_and_html_that_say_the_same(user: User, smtp_server: SmtpServer) -> None:
    welcome(user)
    (mail,) = smtp_server.mails
    assert mail.message.get_content_type() == "multipart/alternative"
    for text in (part(mail, "plain"), part(mail, "html")):
        assert "Hello Ann," in text
        assert "Your account is ready" in text
        assert "/unsubscribe/" in text


def test_a_name_is_escaped_in_html_and_left_alone_in_text(user: User, smtp_server: SmtpServer) -> None:
    user.name = "Ann <b>O'Neil</b> & Co"
    welcome(user)
    (mail,) = smtp_server.mails
    assert "Ann <b>O'Neil</b> & Co" in part(mail, "plain")
    assert "Ann &lt;b&gt;O&#x27;Neil&lt;/b&gt; &amp; Co" in part(mail, "html")


def test_nothing_in_the_mail_is_loaded_from_elsewhere(user: User, smtp_server: SmtpServer) -> None:
    welcome(user)
    html = part(smtp_server.mails[0], "html")
    assert not any(word in html for word in ("<img", "<link", "<script", "url(", "src="))


def test_the_headers_tell_machines_what_the_mail_is(user: User, smtp_server: SmtpServer) -> None:
    entry = welcome(user)
    message = smtp_server.mails[0].message
    assert message["Message-ID"] == entry.message_id
    assert message["Idempotency-Key"] in entry.message_id
    assert message["List-Unsubscribe"].strip().startswith("<http")
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["Auto-Submitted"] == "auto-generated"


@pytest.mark.django_db(transaction=True)
def test_a_run_that_dies_after_its_claim_is_repeated_with_the_same_message_id(
    smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    with monkeypatch.context() as patch:
        patch.setattr("notifications.services.compose", raising(Crash()))
        with pytest.raises(Crash):
            welcome(user)
    claimed = EmailLog.objects.get()
    assert claimed.state == EmailLog.State.CLAIMED
    assert smtp_server.mails == []

    welcome(user)
    assert [mail.message["Message-ID"] for mail in smtp_server.mails] == [claimed.message_id]
    assert EmailLog.objects.get().state == EmailLog.State.SENT


@pytest.mark.django_db(transaction=True)
def test_a_run_that_dies_before_it_notes_the_acceptance_is_repeated_under_the_same_ids(
    smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    with monkeypatch.context() as patch:
        patch.setattr(EmailLog, "mark_sent", raising(Crash()))
        with pytest.raises(Crash):
            welcome(user)
    assert len(smtp_server.mails) == 1
    assert EmailLog.objects.get().state == EmailLog.State.CLAIMED

    welcome(user)
    first, second = (mail.message for mail in smtp_server.mails)
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Idempotency-Key"] == second["Idempotency-Key"]
    assert EmailLog.objects.get().state == EmailLog.State.SENT


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_the_server_has_the_message(smtp_server: SmtpServer) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    smtp_server.hold()
    with ThreadPoolExecutor(max_workers=1) as pool:
        sending = pool.submit(closing_connections(lambda: welcome(user)))
        try:
            wait_until(lambda: smtp_server.held_count == 1)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT query FROM pg_stat_activity"
                    " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
                )
                assert cursor.fetchall() == []
        finally:
            smtp_server.release()
        assert sending.result(20).state == EmailLog.State.SENT


@pytest.mark.django_db(transaction=True)
def test_notify_inside_a_transaction_is_refused(smtp_server: SmtpServer) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    with transaction.atomic(), pytest.raises(RuntimeError):
        welcome(user)
    assert smtp_server.mails == []


@pytest.mark.django_db(transaction=True)
def test_a_mail_that_another_running_job_is_sending_is_left_to_it(smtp_server: SmtpServer) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    running = Job.objects.create(
        task="notifications.tasks.send_welcome", queue="email", state="active", worker_id=uuid4(), claim_token="run/1"
    )
    smtp_server.hold()
    with ThreadPoolExecutor(max_workers=1) as pool:
        sending = pool.submit(closing_connections(lambda: welcome(user, job_id=running.pk)))
        try:
            wait_until(lambda: smtp_server.held_count == 1)
            with pytest.raises(BeingSent):
                welcome(user, job_id=new_id())
        finally:
            smtp_server.release()
        assert sending.result(20).state == EmailLog.State.SENT
    assert recipients(smtp_server) == [user.email]


def test_the_claim_of_a_job_that_runs_no_more_is_taken_over(user: User, smtp_server: SmtpServer) -> None:
    dead = Job.objects.create(task="x", queue="email", state="waiting")
    EmailLog.objects.create(user=user, kind="welcome", recipient="old@example.com", message_id="<1@x>", job_id=dead.pk)
    mine = new_id()
    entry = welcome(user, job_id=mine)
    assert entry.job_id == mine
    assert recipients(smtp_server) == [user.email]
    assert smtp_server.mails[0].message["Message-ID"] == "<1@x>"


def test_a_refusal_for_now_leaves_the_claim_and_the_next_call_sends(user: User, smtp_server: SmtpServer) -> None:
    smtp_server.answer("451 Try again later")
    with pytest.raises(TransientMailError, match="451 Try again later"):
        welcome(user)
    assert EmailLog.objects.get().state == EmailLog.State.CLAIMED
    assert welcome(user).state == EmailLog.State.SENT


def test_a_refusal_for_good_is_logged_with_the_servers_words(user: User, smtp_server: SmtpServer) -> None:
    smtp_server.refuse(user.email, "550 5.1.1 No such mailbox here")
    with pytest.raises(MailRefused, match=r"550 5\.1\.1 No such mailbox here"):
        welcome(user)
    entry = EmailLog.objects.get()
    assert entry.state == EmailLog.State.FAILED
    assert "550 5.1.1 No such mailbox here" in entry.error


def test_after_a_refusal_for_good_an_operator_may_try_again(user: User, smtp_server: SmtpServer) -> None:
    smtp_server.refuse(user.email, "550 No")
    with pytest.raises(MailRefused):
        welcome(user)
    smtp_server.refuse(user.email, "250 OK")
    entry = welcome(user)
    assert entry.state == EmailLog.State.SENT
    assert entry.error == ""


def test_there_is_never_a_second_entry_for_user_kind_and_period(user: User) -> None:
    EmailLog.objects.create(user=user, kind="welcome", recipient=user.email, message_id="<1@x>")
    with pytest.raises(IntegrityError, match="email_log_one_per_user_kind_period"):
        EmailLog.objects.create(user=user, kind="welcome", recipient=user.email, message_id="<2@x>")


def test_an_entry_is_sent_exactly_if_it_says_when(user: User) -> None:
    entry = EmailLog(user=user, kind="welcome", recipient=user.email, message_id="<1@x>", state=EmailLog.State.SENT)
    with pytest.raises(IntegrityError, match="email_log_sent_at_iff_sent"):
        entry.save()


def test_an_entry_has_a_known_state(user: User) -> None:
    entry = EmailLog(user=user, kind="welcome", recipient=user.email, message_id="<1@x>", state="lost")
    with pytest.raises(IntegrityError, match="email_log_state_is_known"):
        entry.save()
