"""`manage.py doctor`: every kind of trouble is found, named, and comes with its cure."""

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from devstack.throwaway import Server
from jobs import doctor
from jobs.models import Duty, QueueControl
from jobs.queues import QUEUES
from tests.jobs.factories import make_job, make_worker
from tests.processes import Processes
from tests.waiting import wait_until

# Health asks over connections of its own.
pytestmark = pytest.mark.django_db(transaction=True)


def findings(title: str) -> list[doctor.Finding]:
    return dict(doctor.examine())[title]


def troubles(title: str) -> str:
    """What is not good, with its cures."""
    bad = [finding for finding in findings(title) if finding.level in ("warning", "error")]
    assert all(finding.cure for finding in bad)
    return "\n".join(f"{finding.level}: {finding.text} → {finding.cure}" for finding in bad)


@pytest.fixture
def _all_is_well(settings: Any) -> None:
    settings.JOBS_LEASE_SECONDS, settings.JOBS_HEARTBEAT_SECONDS = 20, 5
    make_worker(queues=list(QUEUES), renewed_at=Now(), clock_at=timezone.now(), versions=doctor.own_versions())
    for name in ("dispatcher", "beat"):
        Duty.objects.update_or_create(name=name, defaults={"ticked_at": Now()})


@pytest.mark.usefixtures("_all_is_well")
@pytest.mark.parametrize("title", ["Versions", "Clocks", "Workers and queues", "Health", "Leases"])
def test_there_is_no_trouble_where_all_is_well(title: str) -> None:
    assert troubles(title) == ""


def test_a_worker_with_other_versions_is_named() -> None:
    make_worker(node="old@host", versions={**doctor.own_versions(), "celery": "5.6.2"})
    assert "warning: Worker old@host runs other versions: celery 5.6.2" in troubles("Versions")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, ""), (-3, "warning: The clock of worker w@host is 3.0 s behind"), (60, "error: The clock of worker w@host")],
)
def test_clocks_that_differ_from_the_databases_are_named(seconds: float, expected: str) -> None:
    now = timezone.now()
    make_worker(node="w@host", renewed_at=now, clock_at=now + timedelta(seconds=seconds))
    assert expected in troubles("Clocks")
    assert bool(troubles("Clocks")) is bool(expected)


def test_queues_that_nobody_works_on_or_nobody_knows_are_named() -> None:
    make_worker(queues=["default"], tasks=["here.task"])
    make_job(queue="email")
    make_job(queue="nowhere")
    make_job(task="gone.task")
    make_job(task="here.task")
    QueueControl.objects.create(name="crm", paused_at=Now())
    found = troubles("Workers and queues")
    assert "error: No worker consumes queue email; waiting or delayed there: 1 job. → Start one: celery" in found
    assert "warning: No worker consumes queue video" in found
    assert "No worker consumes queue default" not in found
    assert "error: Queue nowhere is not declared, and has 1 job." in found
    assert "error: No worker of queue default knows the task gone.task, of which jobs wait there." in found
    assert "python manage.py jobs cancel --task gone.task" in found
    assert "here.task" not in found
    assert "warning: Queue crm is paused since" in found


@pytest.mark.usefixtures("_all_is_well")
def test_jobs_that_wait_although_workers_are_idle_are_named() -> None:
    make_job(queue="email", run_at=Now() - timedelta(minutes=5))
    assert "Waiting in email: 1 job, the oldest for 300 s, while" in troubles("Workers and queues")
    make_job(queue="email", state="active", claim_token="x", worker_id=make_worker().pk)
    assert troubles("Workers and queues") == ""


def test_a_duty_that_does_not_tick_is_told_as_health_tells_it() -> None:
    assert "error: The dispatcher has never ticked: is one running?" in troubles("Health")


def test_what_a_duty_raised_is_told() -> None:
    long_ago = Now() - timedelta(minutes=5)
    Duty.objects.create(name="pacing", every_seconds=1, succeeded_at=long_ago, failed_at=Now(), error="KeyError: 'x'")
    Duty.objects.create(name="due", every_seconds=1, succeeded_at=Now(), failed_at=long_ago, error="KeyError: 'y'")
    assert troubles("Duties of the dispatcher").startswith("error: pacing: KeyError: 'x' → ")
    assert "'y'" not in troubles("Duties of the dispatcher")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("default_transaction_isolation = 'repeatable read'", "error: Transactions are repeatable read"),
        ("default_transaction_read_only = on", "error: PostgreSQL takes no writes"),
    ],
)
def test_a_database_whose_transactions_are_of_another_kind_is_named(setting: str, told: str) -> None:
    assert told not in troubles("Servers")
    with connection.cursor() as cursor:
        cursor.execute(f"SET {setting}")
    try:
        assert told in troubles("Servers")
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"RESET {setting.partition(' ')[0]}")


@pytest.mark.usefixtures("_all_is_well")
def test_leases_that_are_short_or_late_are_named(settings: Any) -> None:
    make_worker(node="late@host", lease_expires_at=timezone.now() + timedelta(seconds=2))
    make_worker(node="gone@host", lease_expires_at=timezone.now() - timedelta(seconds=9))
    found = troubles("Leases")
    assert "Worker late@host has not renewed its lease in time" in found
    assert "The lease of worker gone@host ran out" in found
    settings.JOBS_LEASE_SECONDS = 2
    assert "warning: Leases last 2 s" in troubles("Leases")


def test_servers_that_may_lose_what_they_were_given_are_named(redis_server: Server) -> None:
    found = troubles("Servers")
    with connection.cursor() as cursor:
        cursor.execute("SHOW fsync")
        fsync = cursor.fetchone()[0]
    assert ("runs with fsync = off" in found) is (fsync == "off")
    texts = [finding.text for finding in findings("Servers")]
    assert any(text.startswith("PostgreSQL 1") for text in texts)
    assert any(text.startswith(("Redis ", "Valkey ")) for text in texts)


def test_a_redis_that_is_away_is_an_error_and_stops_no_other_examination(settings: Any) -> None:
    settings.CELERY_BROKER_URL = "redis://127.0.0.1:1/0"
    assert "error: Redis does not answer" in troubles("Servers")
    assert "error: Could not be looked at" in troubles("Workers and queues")
    assert troubles("Clocks") == ""


def test_a_broker_that_is_no_redis_is_an_error_and_stops_no_other_examination(settings: Any) -> None:
    settings.CELERY_BROKER_URL = "amqp://127.0.0.1/"
    assert "error: Could not be looked at: Redis URL must specify" in troubles("Servers")
    assert "jobs.E007" in troubles("Settings")
    assert "error: Redis does not answer" in troubles("Health")


def test_unsafe_settings_are_named(settings: Any) -> None:
    settings.JOBS_HEARTBEAT_SECONDS = settings.JOBS_LEASE_SECONDS
    assert "(jobs.E001)" in troubles("Settings")
    settings.DEBUG = True
    assert "warning: DEBUG is on" in troubles("Settings")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_parts_out_of_reach_are_named(settings: Any, taken_port: int) -> None:
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    settings.FLOWER_URL = f"http://127.0.0.1:{taken_port}"
    settings.CRM_BASE_URL = "http://127.0.0.1:1"
    settings.MEDIA_ROOT = "/proc/nothing/is/written/here"
    found = troubles("Parts")
    assert "warning: The mail server at 127.0.0.1:1 cannot be reached" in found
    assert "The CRM at 127.0.0.1:1" in found
    assert "Flower" not in found
    assert "error: Files cannot be written to /proc/nothing" in found


def command(*arguments: str) -> tuple[str, int]:
    out = StringIO()
    try:
        call_command("doctor", *arguments, stdout=out, no_color=True)
    except SystemExit as end:
        return out.getvalue(), int(end.code or 0)
    return out.getvalue(), 0


def test_the_command_says_it_in_words_and_as_json_and_by_its_status() -> None:
    make_job(queue="email")
    words, status = command()
    assert status == 1
    assert "  ✗ No worker consumes queue email" in words
    assert "    → Start one: celery -A config worker -Q email" in words
    assert max(map(len, words.splitlines())) <= 104
    lines, status = command("--json")
    assert status == 1
    facts = [json.loads(line) for line in lines.splitlines()]
    assert {"examination", "level", "text", "cure"} == set(facts[0])


@pytest.mark.usefixtures("_all_is_well")
def test_warnings_are_a_failure_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    warning = doctor.Finding(doctor.Level.WARNING, "It rains.", "Take an umbrella.")
    monkeypatch.setattr(doctor, "_examinations", {"Weather": lambda: iter([warning])})
    assert command() == ("Weather\n  ! It rains.\n    → Take an umbrella.\n\n0 errors, 1 warning.\n", 0)
    assert command("--strict")[1] == 1


def test_a_real_worker_tells_its_clock_and_versions(processes: Processes) -> None:
    processes.worker("default")
    wait_until(lambda: "is that of the database" in [finding.text for finding in findings("Clocks")][-1])
    assert any("clock of worker worker0@" in finding.text for finding in findings("Clocks"))
    assert troubles("Versions") == ""
