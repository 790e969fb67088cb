"""`docs/changing_tasks.md`: its example does what it says, and its commands are there."""

import re
from typing import Any

import pytest
from celery import current_app, shared_task
from django.core.management import call_command

from devstack.home import BASE_DIR
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests.jobs.factories import make_job

PAGE = (BASE_DIR / "docs" / "changing_tasks.md").read_text()

pytestmark = pytest.mark.django_db


def test_a_job_of_the_old_name_runs_with_the_new_code() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "shop.tasks", "shared_task": shared_task}
    exec(example, names)
    job = make_job(task="shop.tasks.print_invoice", queue="reports", args=[7])
    run_due_jobs()
    job.refresh_from_db()
    assert (job.state, job.result) == ("completed", "invoice of 7")
    for name in ("make_invoice", "print_invoice"):
        del current_app.tasks[f"shop.tasks.{name}"]


def test_its_commands_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(task="shop.tasks.print_invoice", state="waiting")
    call_command("jobs", "list", "--task", "shop.tasks.print_invoice")
    assert str(job.pk) in capsys.readouterr().out
    call_command("jobs", "why", str(job.pk))
    call_command("jobs", "stats")
    assert Job.objects.filter(pk=job.pk, state="waiting").exists()
