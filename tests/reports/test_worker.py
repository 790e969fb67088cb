"""Reports in real worker processes."""

import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from pypdf import PdfReader

from accounts.models import User
from jobs.models import Job
from notifications.models import EmailLog
from reports.models import Report
from reports.pdf import APT_PACKAGES
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.reports.conftest import ask, ended_job, signed_in
from tests.sample_tasks import add
from tests.smtp import SmtpServer
from tests.variants import variant
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

# Takes the place of a machine without Pango: the dynamic loader finds none of its libraries.
WITHOUT_PANGO = """
import cffi
_dlopen = cffi.FFI.dlopen
def dlopen(self, name, *rest):
    if name and "pango" in str(name):
        raise OSError(f"cannot load library '{name}': no such file")
    return _dlopen(self, name, *rest)
cffi.FFI.dlopen = dlopen
"""


@pytest.fixture
def ann() -> User:
    return User.objects.create(email="ann@example.com", name="Ann")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The variables by which a worker finds the files of this test."""
    return {"HANDOFF_HOME": str(tmp_path / "home")}


def job_of(client: Client, job_id: str) -> dict[str, Any]:
    told: dict[str, Any] = client.get(f"/api/jobs/{job_id}").json()
    return told


def test_a_report_is_made_mailed_and_downloaded(
    ann: User, processes: Processes, smtp_server: SmtpServer, home: dict[str, str], tmp_path: Path
) -> None:
    for number in range(60):
        ended_job(ann, f"tasks.number_{number}")
    processes.worker("reports", "email", env=home)
    client = signed_in(ann)
    asked_for = ask(client).json()
    wait_until(lambda: client.get(f"/api/reports/{asked_for['id']}").json()["state"] == "ready", timeout=60)
    wait_until(lambda: job_of(client, asked_for["job"])["state"] == "completed")
    job = job_of(client, asked_for["job"])
    report = Report.objects.get()
    assert job["result"] == {"report": asked_for["id"], "pages": report.page_count, "size_bytes": report.size_bytes}
    assert job["progress"] == {"percent": 100, "message": f"Ready: {report.page_count} pages"}

    answer: Any = client.get(f"/api/reports/{asked_for['id']}/download")
    copy = tmp_path / answer.headers["Content-Disposition"].split('"')[1]
    copy.write_bytes(b"".join(answer.streaming_content))
    assert len(PdfReader(copy).pages) == report.page_count > 1

    wait_until(lambda: smtp_server.mails_to(ann.email))
    (mail,) = smtp_server.mails
    assert f"/api/reports/{report.pk}/download" in mail.message.get_body(["plain"]).get_content()
    wait_until(lambda: not Job.objects.exclude(state="completed").exists())
    assert EmailLog.objects.get().period == str(report.pk)
    assert_ledger_consistent()


@pytest.mark.parametrize(("pool", "fate"), [("prefork", "killed"), variant("threads", "killed"), ("prefork", "frozen")])
def test_a_worker_killed_or_frozen_while_it_makes_a_report_leaves_one_report_and_one_mail(
    ann: User, processes: Processes, smtp_server: SmtpServer, home: dict[str, str], tmp_path: Path, pool: str, fate: str
) -> None:
    victim = processes.worker("reports", env=home, pool=pool)
    client = signed_in(ann)
    obstacle = connections["default"].copy()
    obstacle.set_autocommit(False)
    # Whoever reads the mails waits here: the run stops in the middle.
    with obstacle.cursor() as cursor:
        cursor.execute("LOCK TABLE notifications_emaillog IN ACCESS EXCLUSIVE MODE")
    asked_for = ask(client).json()
    wait_until(lambda: Job.objects.filter(state="active", progress_percent__isnull=False).exists(), timeout=30)
    assert ask(client).json() == asked_for
    if fate == "killed":
        victim.kill()
    else:
        victim.freeze()
        wait_until_given_up(processes, home)
    obstacle.rollback()
    obstacle.close()
    processes.worker("reports", "email", env=home, pool=pool)
    wait_until(lambda: client.get(f"/api/reports/{asked_for['id']}").json()["state"] == "ready", timeout=60)
    wait_until(lambda: smtp_server.mails)
    wait_until(lambda: not Job.objects.exclude(state="completed").exists())
    if fate == "frozen":
        victim.thaw()
        victim.wait()

    job = Job.objects.get(task="reports.tasks.render_report")
    assert (job.stalled_count, job.attempt, job.max_attempts) == (1, 1, 1)
    assert [mail.recipients for mail in smtp_server.mails] == [[ann.email]]
    stored = [path for path in (tmp_path / "home" / "media").rglob("*") if path.is_file()]
    assert [path.name for path in stored] == [f"{Report.objects.get().pk}.pdf"]
    assert_ledger_consistent()


def wait_until_given_up(processes: Processes, home: dict[str, str]) -> None:
    """Another worker carries the dispatcher that gives the frozen one up; it does not take the job."""
    processes.worker("default", env=home)
    wait_until(lambda: Job.objects.filter(stalled_count=1).exists(), timeout=30)


def test_without_pango_reports_fail_at_once_and_say_what_to_install_and_all_else_works(
    ann: User, processes: Processes, home: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PANGO)
    paths = [str(tmp_path), *filter(None, [sys.path[0]])]
    processes.worker("reports", "default", env={**home, "PYTHONPATH": ":".join(paths)})
    client = signed_in(ann)
    asked_for = ask(client).json()
    wait_until(lambda: job_of(client, asked_for["job"])["state"] == "failed", timeout=30)
    told = client.get(f"/api/reports/{asked_for['id']}").json()
    assert told["state"] == "failed"
    assert f"apt-get install {APT_PACKAGES}" in told["error"]
    assert "cannot load library" in told["error"]
    assert Job.objects.get().attempt == 1

    done = add.apply_async(args=[1, 2])
    wait_until(lambda: Job.objects.get(pk=done.id).state == "completed", timeout=30)
    assert_ledger_consistent()
