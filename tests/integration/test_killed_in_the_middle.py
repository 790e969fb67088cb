"""Workers killed in the middle of tasks whose apps have no such test of their own: the result is there once."""

import os
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone

from accounts.models import User
from jobs.models import Job
from media_jobs.tasks import remove_orphans
from notifications.models import EmailLog
from reports.models import Report
from reports.tasks import send_report_ready
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
FOLDER_COUNT = 3000


def completed(result: Any) -> bool:
    return Job.objects.get(pk=result.id).state == "completed"


def test_a_worker_killed_while_it_tells_of_a_report_tells_of_it_once(
    processes: Processes, smtp_server: SmtpServer
) -> None:
    ann = User.objects.create(email="ann@example.com", name="Ann")
    today = timezone.now().date()
    report = Report.objects.create(
        owner=ann,
        job_id=uuid4(),
        kind="activity",
        from_date=today,
        to_date=today,
        ready_at=timezone.now(),
        file="reports/x.pdf",
        page_count=1,
        size_bytes=1,
    )
    victim = processes.worker("email")
    smtp_server.hold()
    result = send_report_ready.delay(str(report.pk))
    wait_until(lambda: smtp_server.held_count == 1)
    victim.kill()
    # Before the server knows that the client is gone, it would take the mail.
    wait_until(lambda: smtp_server.held_count == 0)
    smtp_server.release()
    processes.worker("email")
    wait_until(lambda: completed(result), timeout=30)
    assert len(smtp_server.mails_to(ann.email)) == 1
    assert EmailLog.objects.get().state == "sent"
    assert_ledger_consistent()


def test_a_worker_killed_while_it_removes_orphans_leaves_the_rest_to_the_next(processes: Processes) -> None:
    long_ago = (timezone.now() - timedelta(days=2)).timestamp()
    for number in range(FOLDER_COUNT):
        name = default_storage.save(f"pictures/orphan-{number}/original", ContentFile(b"x"))
        os.utime(default_storage.path(name), (long_ago, long_ago))

    def left() -> int:
        return len([name for name in default_storage.listdir("pictures")[0] if name.startswith("orphan-")])

    victim = processes.worker("default", "images")
    result = remove_orphans.delay()
    wait_until(lambda: left() < FOLDER_COUNT)
    victim.kill()
    assert 0 < left() < FOLDER_COUNT
    processes.worker("default", "images")
    wait_until(lambda: completed(result), timeout=30)
    assert left() == 0
    assert_ledger_consistent()
