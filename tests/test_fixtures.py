"""What the fixtures of the tests promise."""

import smtplib
import subprocess

import pytest
import redis
from celery import current_app
from django.conf import settings
from django.db import connection

from devstack.throwaway import Server
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.waiting import NeverHappened, wait_until


def send(server: SmtpServer) -> None:
    with smtplib.SMTP(server.host, server.port, timeout=10) as client:
        client.sendmail("a@example.com", ["b@example.com"], "Subject: hello\r\n\r\nworld\r\n")


def test_the_smtp_server_keeps_the_mails_it_accepted(smtp_server: SmtpServer) -> None:
    smtp_server.answer("451 4.3.0 Try again later", "550 5.1.1 No such user")
    with pytest.raises(smtplib.SMTPDataError, match="Try again"):
        send(smtp_server)
    with pytest.raises(smtplib.SMTPDataError, match="No such user"):
        send(smtp_server)
    send(smtp_server)
    assert [mail.subject for mail in smtp_server.mails_to("b@example.com")] == ["hello"]
    assert smtp_server.arrived_count == 3


def test_a_held_mail_whose_client_has_gone_is_not_accepted(smtp_server: SmtpServer) -> None:
    smtp_server.hold()
    code = (
        "import smtplib, sys; c = smtplib.SMTP('127.0.0.1', int(sys.argv[1]));"
        "c.sendmail('a@example.com', ['b@example.com'], 'Subject: lost\\r\\n\\r\\n')"
    )
    client = subprocess.Popen(["python3", "-c", code, str(smtp_server.port)])
    wait_until(lambda: smtp_server.held_count == 1)
    client.kill()
    client.wait()
    wait_until(lambda: smtp_server.held_count == 0)
    smtp_server.release()
    send(smtp_server)
    assert [mail.subject for mail in smtp_server.mails] == ["hello"]


def test_a_frozen_redis_answers_nothing_until_it_is_thawed(redis_server: Server) -> None:
    redis_server.freeze()
    assert not redis_server.engine.answers()
    redis_server.thaw()
    assert redis_server.engine.answers()


def test_a_stopped_redis_comes_back_on_its_port(redis_server: Server) -> None:
    redis_server.stop()
    with pytest.raises(redis.ConnectionError), redis.Redis.from_url(settings.REDIS_URL) as client:
        client.ping()
    redis_server.start()
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        assert client.ping()


@pytest.mark.django_db(transaction=True)
def test_a_restarted_postgres_has_its_data(postgres_server: Server) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (id int)")
    connection.close()
    postgres_server.restart()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE kept")


@pytest.mark.django_db(transaction=True)
def test_a_worker_runs_in_its_own_group_and_can_be_killed(processes: Processes) -> None:
    worker = processes.worker("email")
    assert worker.status is None
    assert len(worker.children()) == 1
    worker.kill()
    assert worker.status == -9


def test_waiting_gives_up_with_the_reason() -> None:
    def never() -> bool:
        raise AssertionError("the moon is blue")

    with pytest.raises(NeverHappened, match="a blue moon") as caught:
        wait_until(never, timeout=0.1, reason="a blue moon")
    assert "the moon is blue" in str(caught.value.__cause__)


def test_a_command_to_workers_goes_over_a_connection_that_works(
    redis_server: Server, request: pytest.FixtureRequest
) -> None:
    current_app.control.ping(timeout=0.1)
    redis_server.restart()
    request.getfixturevalue("empty_redis")
    assert current_app.control.ping(timeout=0.1) == []
