"""Every task of ours, run twice with the same arguments, leaves the world as one run leaves it."""

from collections.abc import Callable
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import current_app
from django.apps import apps
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.utils import timezone

from accounts.models import User
from devstack.home import BASE_DIR
from jobs.models import Job
from reports.models import Report
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until

# How to prepare the world for a task, and the arguments for it. A new task needs a line here.
ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "notifications.tasks.send_welcome": lambda: {"user_id": somebody().pk},
    "notifications.tasks.send_digest": lambda: (somebody(), {})[1],
    "reports.tasks.render_report": lambda: {"report_id": str(a_report().pk)},
    "reports.tasks.send_report_ready": lambda: {"report_id": str(a_report(**READY).pk)},
}
READY: dict[str, Any] = {"ready_at": timezone.now(), "file": "reports/x.pdf", "page_count": 1, "size_bytes": 1}
# The ledger counts runs; that is its work.
LEDGER = {"jobs"}


def somebody() -> User:
    return User.objects.create(email="ann@example.com", name="Ann")


def a_report(**fields: Any) -> Report:
    days = {"from_date": date(2026, 3, 1), "to_date": date(2026, 3, 7)}
    return Report.objects.create(owner=somebody(), kind="activity", job_id=uuid4(), **days, **fields)


def our_tasks() -> set[str]:
    current_app.loader.import_default_modules()
    ours = {app.name for app in apps.get_app_configs() if Path(app.path).parent == BASE_DIR}
    return {name for name in current_app.tasks if name.partition(".")[0] in ours}


def world(smtp_server: SmtpServer) -> dict[str, Any]:
    """All rows of all tables but the ledger's, all mails, and all files."""
    rows = {
        model._meta.label: sorted(map(repr, model._default_manager.values_list()))
        for model in apps.get_models()
        if model._meta.app_label not in LEDGER and model is not ContentType
    }
    mails = [(mail.recipients, mail.message["Message-ID"]) for mail in smtp_server.mails]
    root = Path(settings.MEDIA_ROOT)
    files = {str(path): sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}
    return {**rows, "mails": mails, "files": files}


def test_every_task_is_run_twice_here() -> None:
    assert our_tasks() == set(ARGUMENTS)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_second_run_changes_nothing(name: str, processes: Processes, smtp_server: SmtpServer) -> None:
    kwargs = ARGUMENTS[name]()
    untouched = world(smtp_server)
    processes.worker(pool="threads", concurrency=2)
    worlds = []
    for _ in range(2):
        current_app.send_task(name, kwargs=kwargs)
        # What it has enqueued is part of what it does.
        wait_until(lambda: not Job.objects.exclude(state="completed").exists(), timeout=60)
        worlds.append(world(smtp_server))
    assert untouched != worlds[0]
    assert worlds[0] == worlds[1]
    first, second = Job.objects.filter(task=name).order_by("created_at").values_list("result", flat=True)
    assert first == second
