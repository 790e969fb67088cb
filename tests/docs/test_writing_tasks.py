"""`docs/writing_tasks.md`: its code is Python, its options are taken, its figures are the declared ones."""

import ast
import re
import unittest
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import current_app, shared_task
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from accounts.models import User
from devstack.home import BASE_DIR
from jobs import limits, rates, services
from jobs.cron import catch_up
from jobs.dispatcher import ageing
from jobs.models import CatchUp, Job, Tick
from jobs.queues import QUEUES
from jobs.scheduler import LedgerScheduler
from jobs.task import JobTask
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.jobs.cron.schedules import pass_time

PAGE = (BASE_DIR / "docs" / "writing_tasks.md").read_text()
OPTIONS: dict[str, Any] = {
    "priority": 1,
    "countdown": 600,
    "eta": timezone.now() + timedelta(days=30),
    "expires": 60,
    "queue": "crm",
    "soft_time_limit": 7,
    "time_limit": 400,
    "task_id": "0195508e-1a2b-7c3d-8e4f-5a6b7c8d9e0f",
    "link": sample_tasks.add.s(1),
    "link_error": sample_tasks.add.si(1, 2),
    "rate_key": "tenant:42",
    "rate_limit": "5/s",
    "concurrency_key": "user:42",
    "concurrency_limit": 2,
    "quiet_hours": "22:00-07:00 Europe/Berlin",
    "dedup_key": "contact-7",
    "dedup_seconds": 60,
    "dedup_latest": True,
    "owner_id": None,
    "max_attempts": 9,
    "correlation_id": "request-1",
}
# Where an option is kept under another name.
COLUMNS = {
    "countdown": "run_at",
    "eta": "run_at",
    "expires": "expires_at",
    "soft_time_limit": "soft_time_limit_seconds",
    "time_limit": "time_limit_seconds",
    "task_id": "id",
    "link": "follow_ups",
    "link_error": "follow_ups",
}


def options() -> list[str]:
    """The options in the first column of the table."""
    (table,) = re.findall(r"^\| Option \| Meaning \|\n\|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_the_code_is_python() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


@pytest.mark.django_db(transaction=True)
def test_the_example_of_a_test_passes() -> None:
    (example,) = re.findall(r"^## Testing\n.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    outcome = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(names["SignUpTests"]).run(outcome)
    assert [problem for _, problem in outcome.errors + outcome.failures] == []
    assert outcome.testsRun == 1


@pytest.mark.django_db(transaction=True)
def test_the_example_of_a_schedule_makes_up_for_each_tick_with_its_own_day() -> None:
    (example,) = re.findall(r"^## Schedules\n.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "docs.schedules", "shared_task": shared_task}
    exec(example, names)
    PeriodicTask.objects.all().delete()
    names["plan"]()
    pass_time(days=5)
    LedgerScheduler(app=current_app).tick()
    ticks = list(Tick.objects.order_by("scheduled_for"))
    assert {tick.scheduled_for.astimezone(ZoneInfo("Europe/Berlin")).hour for tick in ticks} == {7}
    assert len(ticks) >= 3
    assert sorted(job.result for job in run_due_jobs()) == [f"books of {tick.scheduled_for.date()}" for tick in ticks]


@pytest.mark.django_db
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_the_example_of_cancelling_tidies_up_when_its_job_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_cancelled: bool
) -> None:
    (example,) = re.findall(r"^## Cancelling\n.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr("jobs.worker.notes.REPORT_SECONDS", 0)

    def line_of(order_id: int) -> str:
        if is_cancelled and order_id == 2:
            assert (tmp_path / "orders.part").exists()
            services.cancel_job(job_id=Job.objects.get().pk, actor="ada")
        return f"{order_id}\n"

    names: dict[str, Any] = {"__name__": f"docs.cancelling_{is_cancelled}", "line_of": line_of}
    exec(example, names)
    names["export_orders"].delay([1, 2, 3], str(tmp_path / "orders"))
    (ran,) = run_due_jobs()
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert (ran.state, files) == (("cancelled", {}) if is_cancelled else ("completed", {"orders": "1\n2\n3\n"}))


@pytest.mark.django_db
def test_the_example_of_limits_limits_each_user_and_each_host() -> None:
    (example,) = re.findall(r"^## Priorities and limits\n.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    answers = {"slow.example": 429, "quick.example": 200}

    class Http:
        @staticmethod
        def get(host: str, path: str) -> Any:
            return SimpleNamespace(status_code=answers[host], headers={"Retry-After": "90"})

    names: dict[str, Any] = {"__name__": "docs.limits", "http": Http}
    exec(example, names)
    names["make_statement"].delay(42)
    for host in answers:
        names["call"].delay(host, "/")
    names["call_gently"]("quick.example")
    assert set(Job.objects.values_list(*limits.COLUMNS)) == {
        (None, None, "user:42", 1, None),
        ("host:slow.example", "5/s", None, None, None),
        ("host:quick.example", "5/s", None, None, None),
        ("host:quick.example", "10/m", None, None, "22:00-07:00 Europe/Berlin"),
    }
    run_due_jobs()
    assert Job.objects.filter(rate_key="host:quick.example", state="completed", result=200).count() == 2
    slow = Job.objects.get(rate_key="host:slow.example")
    assert (slow.state, slow.attempt) == ("waiting", 1)
    wait = limits.obstacle(slow)
    assert wait is not None
    assert wait.until is not None
    assert timedelta(seconds=60) < wait.until - timezone.now() <= timedelta(seconds=90)


def test_the_limits_of_queues_are_the_declared_ones() -> None:
    limited = {name: queue.limits for name, queue in QUEUES.items() if queue.limits}
    assert limited == {"email": "10/s", "crm": "5/s"}
    assert "`email` is limited to 10 starts a second, `crm` to 5." in PAGE
    assert f"every {'tenth' if ageing.SHARE == 10 else '?'}" in PAGE
    assert f"up to {rates.MOST:,}" in PAGE


def test_the_policies_and_limits_of_schedules_are_the_declared_ones() -> None:
    (table,) = re.findall(r"^\| `policy` \|.*\n\|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row)[0] for row in table.splitlines()] == CatchUp.Policy.values
    defaults = CatchUp()
    assert f"`{defaults.policy}` within {defaults.within_minutes} minutes" in PAGE
    assert f"`most_count` ({defaults.most_count})" in PAGE
    assert f"within {catch_up.ON_TIME.seconds} s" in PAGE


@pytest.mark.django_db
@pytest.mark.parametrize("option", options())
def test_every_option_of_the_table_is_taken(option: str) -> None:
    value = OPTIONS[option]
    if option == "owner_id":
        value = User.objects.create_user("ada@example.com", name="Ada").pk
    if option in ("dedup_seconds", "dedup_latest"):
        _call_twice_with_a_key(option, value)
        return
    plain, with_option = (
        Job.objects.get(pk=sample_tasks.add.apply_async((1, 2), **chosen).id) for chosen in ({}, {option: value})
    )
    column = COLUMNS.get(option, option)
    assert getattr(plain, column) != getattr(with_option, column)


def _call_twice_with_a_key(mode: str, value: Any) -> None:
    """The first job has ended, or not started, when the second call comes."""
    options = {"dedup_key": "contact-7", mode: value}
    first = sample_tasks.add.apply_async((1, 2), **options)
    if mode == "dedup_seconds":
        Job.objects.update(state="completed", finished_at=timezone.now())
    assert sample_tasks.add.apply_async((3, 4), **options).id == first.id
    assert Job.objects.get().args == ([1, 2] if mode == "dedup_seconds" else [3, 4])


def test_the_options_that_are_not_celerys_come_last_and_are_told_by_the_task() -> None:
    told = re.findall(r"`(\w+)`", (JobTask.__doc__ or "").partition("the options ")[2])
    ours = {"dedup_key", "dedup_seconds", "dedup_latest", "owner_id", "max_attempts", "correlation_id", *limits.COLUMNS}
    assert set(options()[-11:]) == ours
    assert ours <= set(told)


def test_the_default_priority_is_the_one_that_is_told(settings: Any) -> None:
    assert f"{current_app.conf.task_default_priority} where nothing is said" in PAGE
