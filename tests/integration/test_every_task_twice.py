"""Every task of ours, run twice with the same arguments, leaves the world as one run leaves it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.apps import apps
from django.contrib.contenttypes.models import ContentType

from accounts.models import User
from devstack.home import BASE_DIR
from jobs.models import Job
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until

# How to prepare the world for a task, and the arguments for it. A new task needs a line here.
ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "notifications.tasks.send_welcome": lambda: {"user_id": somebody().pk},
    "notifications.tasks.send_digest": lambda: (somebody(), {})[1],
}
# The ledger counts runs; that is its work.
LEDGER = {"jobs"}


def somebody() -> User:
    return User.objects.create(email="ann@example.com", name="Ann")


def our_tasks() -> set[str]:
    current_app.loader.import_default_modules()
    ours = {app.name for app in apps.get_app_configs() if Path(app.path).parent == BASE_DIR}
    return {name for name in current_app.tasks if name.partition(".")[0] in ours}


def world(smtp_server: SmtpServer) -> dict[str, Any]:
    """All rows of all tables but the ledger's, and all mails."""
    rows = {
        model._meta.label: sorted(map(repr, model._default_manager.values_list()))
        for model in apps.get_models()
        if model._meta.app_label not in LEDGER and model is not ContentType
    }
    mails = [(mail.recipients, mail.message["Message-ID"]) for mail in smtp_server.mails]
    return {**rows, "mails": mails}


def test_every_task_is_run_twice_here() -> None:
    assert our_tasks() == set(ARGUMENTS)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_second_run_changes_nothing(name: str, processes: Processes, smtp_server: SmtpServer) -> None:
    kwargs = ARGUMENTS[name]()
    processes.worker(pool="threads", concurrency=2)
    worlds = []
    for runs in (1, 2):
        current_app.send_task(name, kwargs=kwargs)
        wait_until(lambda runs=runs: Job.objects.filter(state="completed").count() == runs, timeout=30)  # type: ignore[misc]
        worlds.append(world(smtp_server))
    assert worlds[0]["mails"]
    assert worlds[0] == worlds[1]
    first, second = Job.objects.order_by("created_at").values_list("result", flat=True)
    assert first == second
