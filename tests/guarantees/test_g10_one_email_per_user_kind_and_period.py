"""G10: one e-mail per user, kind and period; the only window is the instant between acceptance and our commit."""

from collections import Counter

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from accounts import services
from accounts.models import User
from jobs.models import Job
from notifications.models import EmailLog
from notifications.tasks import send_digest, send_welcome
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.connections import somebody_waits_for_a_lock
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.variants import POOLS
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def all_completed() -> bool:
    return not Job.objects.exclude(state="completed").exists()


def end_whoever_waits_for_a_lock() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    wait_until(lambda: not somebody_waits_for_a_lock())


@POOLS
def test_a_worker_killed_between_acceptance_and_commit_sends_again_under_the_same_ids(
    processes: Processes, smtp_server: SmtpServer, pool: str
) -> None:
    smtp_server.hold()
    victim = processes.worker("email", pool=pool)
    user = services.sign_up(email="ann@example.com", name="Ann", password="correct horse battery")
    wait_until(lambda: smtp_server.held_count == 1)
    with transaction.atomic():
        # The worker cannot note the acceptance while this row is locked.
        EmailLog.objects.select_for_update().get(user=user)
        smtp_server.release()
        wait_until(lambda: smtp_server.mails)
        wait_until(somebody_waits_for_a_lock)
        victim.kill()
        # PostgreSQL would finish the statement of the dead worker; here it is lost together with the worker.
        end_whoever_waits_for_a_lock()
    processes.worker("email", pool=pool)
    wait_until(all_completed, timeout=30)

    first, second = (mail.message for mail in smtp_server.mails)
    assert first["Message-ID"] == second["Message-ID"] == EmailLog.objects.get().message_id
    assert first["Idempotency-Key"] == second["Idempotency-Key"]
    assert EmailLog.objects.get().state == EmailLog.State.SENT
    assert_ledger_consistent()


def test_two_jobs_for_one_email_send_it_once(processes: Processes, smtp_server: SmtpServer) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    smtp_server.hold()
    for _ in range(2):
        send_welcome.apply_async(kwargs={"user_id": user.pk})
    processes.worker("email", pool="threads", concurrency=5)
    # One has the message at the server; the other finds the claim of a running job, and comes back later.
    wait_until(lambda: smtp_server.held_count == 1)
    wait_until(lambda: Job.objects.filter(attempt=2).exists())
    smtp_server.release()
    wait_until(all_completed, timeout=30)
    assert [mail.recipients for mail in smtp_server.mails] == [["ann@example.com"]]
    assert_ledger_consistent()


def test_a_digest_whose_worker_is_killed_halfway_reaches_everybody_once(
    processes: Processes, smtp_server: SmtpServer
) -> None:
    users = [User.objects.create(email=f"user{number}@example.com", name="U") for number in range(6)]
    victim = processes.worker("default")
    obstacle = connections["default"].copy()
    obstacle.set_autocommit(False)
    # An uncommitted row in the way of the fourth claim: the run stops there until it is gone.
    with obstacle.cursor() as cursor:
        cursor.execute(
            "INSERT INTO notifications_emaillog (user_id, kind, period, recipient, message_id, state, error)"
            " VALUES (%s, 'digest', %s, 'x@example.com', '<x@x>', 'claimed', '')",
            [users[3].pk, timezone.now().date().isoformat()],
        )
    send_digest.apply_async()
    wait_until(lambda: len(smtp_server.mails) == 3)
    wait_until(somebody_waits_for_a_lock)
    victim.kill()
    obstacle.rollback()
    obstacle.close()
    processes.worker("default")
    wait_until(all_completed, timeout=30)

    got = Counter(recipient for mail in smtp_server.mails for recipient in mail.recipients)
    assert got == {user.email: 1 for user in users}
    assert Job.objects.get().result == {"sent": 6, "total": 6}
    assert_ledger_consistent()
