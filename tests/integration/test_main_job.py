"""The main job from end to end: sign-up over HTTP, a real worker, a real SMTP server."""

from uuid import UUID

import httpx
import pytest
from pytest_django.live_server_helper import LiveServer

from devstack.throwaway import Server
from jobs import publish
from jobs.models import Job
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.variants import POOLS
from tests.waiting import wait_until

EMAIL = "ada@example.org"


@pytest.fixture(autouse=True)
def _own_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test meets Redis as a fresh web process does."""
    monkeypatch.setattr(publish, "_publisher", None)


def sign_up(live_server: LiveServer) -> int:
    body = {"email": EMAIL, "name": "Ada", "password": "correct horse battery"}
    response = httpx.post(f"{live_server.url}/signup", json=body, timeout=30)
    assert response.status_code == 201, response.text
    return int(response.json()["id"])


def welcome() -> Job:
    return Job.objects.get(task="notifications.tasks.send_welcome")


@pytest.mark.django_db(transaction=True)
def test_a_new_user_is_welcomed_by_one_mail(
    live_server: LiveServer, processes: Processes, smtp_server: SmtpServer
) -> None:
    processes.worker("email", concurrency=5, pool="threads")
    user_id = sign_up(live_server)
    planned = welcome()
    assert (planned.state, planned.priority, planned.dedup_key) == ("delayed", 1, f"welcome-{user_id}")
    assert 1.5 < (planned.run_at - planned.created_at).total_seconds() < 2.5
    wait_until(lambda: smtp_server.mails_to(EMAIL))
    wait_until(lambda: welcome().state == "completed")
    job = welcome()
    assert job.started_at is not None
    assert job.started_at >= job.run_at
    assert (job.result, job.progress_percent) == ({"sent": True, "recipient": EMAIL}, 100)
    assert len(smtp_server.mails) == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@POOLS
def test_a_worker_killed_while_the_server_holds_the_mail_costs_no_mail_and_doubles_none(
    live_server: LiveServer, processes: Processes, smtp_server: SmtpServer, pool: str
) -> None:
    victim = processes.worker("email", pool=pool)
    smtp_server.hold()
    sign_up(live_server)
    wait_until(lambda: smtp_server.held_count == 1)
    victim.kill()
    # Before the server knows that the client is gone, it would take the mail.
    wait_until(lambda: smtp_server.held_count == 0)
    smtp_server.release()
    processes.worker("email", pool=pool)
    wait_until(lambda: welcome().state == "completed", timeout=30)
    (mail,) = smtp_server.mails
    assert mail.recipients == [EMAIL]
    assert welcome().stalled_count == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_sign_up_while_redis_is_stopped_is_welcomed_when_it_is_back(
    live_server: LiveServer, processes: Processes, smtp_server: SmtpServer, redis_server: Server
) -> None:
    redis_server.stop()
    user_id = sign_up(live_server)
    assert UUID(str(welcome().pk))
    redis_server.start()
    processes.worker("email")
    wait_until(lambda: smtp_server.mails_to(EMAIL), timeout=30)
    wait_until(lambda: welcome().state == "completed")
    assert welcome().owner_id == user_id
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_hung_redis_changes_nothing_in_the_answer(live_server: LiveServer, redis_server: Server) -> None:
    redis_server.freeze()
    user_id = sign_up(live_server)
    assert welcome().dedup_key == f"welcome-{user_id}"
