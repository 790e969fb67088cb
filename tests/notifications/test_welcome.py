from typing import Any

import pytest

from accounts import services
from accounts.models import User
from jobs.models import Job
from notifications.models import EmailLog
from notifications.tasks import send_welcome
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until


def sign_up() -> User:
    return services.sign_up(email="ann@example.com", name="Ann", password="correct horse battery")


def test_the_result_says_that_it_was_sent_and_to_whom(user: User, smtp_server: SmtpServer) -> None:
    assert send_welcome(user_id=user.pk) == {"sent": True, "recipient": user.email}
    assert [mail.subject for mail in smtp_server.mails_to(user.email)] == ["Welcome to Handoff"]


def test_the_second_run_has_the_same_result_and_sends_nothing(user: User, smtp_server: SmtpServer) -> None:
    assert send_welcome(user_id=user.pk) == send_welcome(user_id=user.pk)
    assert len(smtp_server.mails) == 1


def test_a_user_who_is_gone_is_no_failure(user: User, smtp_server: SmtpServer) -> None:
    user_id = user.pk
    user.delete()
    assert send_welcome(user_id=user_id) == {"sent": False, "recipient": None}
    assert smtp_server.mails == []


def test_a_user_who_was_locked_out_gets_no_mail(user: User, smtp_server: SmtpServer) -> None:
    User.objects.update(is_active=False)
    assert send_welcome(user_id=user.pk) == {"sent": False, "recipient": None}
    assert smtp_server.mails == []


def ended() -> Any:
    return Job.objects.filter(state__in=["completed", "failed"]).first()


@pytest.mark.django_db(transaction=True)
def test_a_sign_up_is_welcomed_by_a_worker_and_the_job_tells(processes: Processes, smtp_server: SmtpServer) -> None:
    processes.worker("email", pool="threads")
    user = sign_up()
    job = wait_until(ended, timeout=30)
    assert job.state == "completed"
    assert job.result == {"sent": True, "recipient": user.email}
    assert job.progress_percent == 100
    assert len(smtp_server.mails_to(user.email)) == 1
    entry = EmailLog.objects.get()
    assert entry.job_id == job.pk
    assert entry.message_id == smtp_server.mails[0].message["Message-ID"]


@pytest.mark.django_db(transaction=True)
def test_a_refusal_for_now_is_tried_again_and_a_person_gets_one_mail(
    processes: Processes, smtp_server: SmtpServer
) -> None:
    smtp_server.answer("451 4.3.0 Try again", "421 4.3.2 Shutting down")
    processes.worker("email", pool="threads")
    user = sign_up()
    job = wait_until(ended, timeout=30)
    assert job.state == "completed"
    assert job.attempt == 3
    assert smtp_server.arrived_count == 3
    assert len(smtp_server.mails_to(user.email)) == 1


@pytest.mark.django_db(transaction=True)
def test_three_refusals_for_now_fail_the_job_with_the_servers_words(
    processes: Processes, smtp_server: SmtpServer
) -> None:
    smtp_server.answer(*["451 4.3.0 Try again"] * 4)
    processes.worker("email", pool="threads")
    sign_up()
    job = wait_until(ended, timeout=30)
    assert job.state == "failed"
    assert smtp_server.arrived_count == 3
    assert "451 4.3.0 Try again" in job.error


@pytest.mark.django_db(transaction=True)
def test_a_refusal_for_good_fails_the_job_at_once_with_the_servers_words(
    processes: Processes, smtp_server: SmtpServer
) -> None:
    smtp_server.answer("550 5.1.1 No such user")
    processes.worker("email", pool="threads")
    sign_up()
    job = wait_until(ended, timeout=30)
    assert job.state == "failed"
    assert job.attempt == 1
    assert smtp_server.arrived_count == 1
    assert "550 5.1.1 No such user" in job.error
    assert EmailLog.objects.get().state == EmailLog.State.FAILED
