"""The scheduler of beat."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from celery import current_app
from django.db import connections
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from devstack.throwaway import Server
from jobs.models import Duty, Job
from jobs.scheduler import LedgerScheduler
from tests import sample_tasks
from tests.waiting import wait_until


@pytest.fixture
def digest() -> PeriodicTask:
    crontab = CrontabSchedule.objects.create(minute="0", hour="8", timezone="UTC")
    return PeriodicTask.objects.create(name="sums", task=sample_tasks.add.name, args="[1, 2]", crontab=crontab)


@pytest.mark.django_db(transaction=True)
def test_two_beats_at_one_tick_make_one_job(digest: PeriodicTask, monkeypatch: pytest.MonkeyPatch) -> None:
    for second in (0, 3):
        monkeypatch.setattr(timezone, "now", lambda second=second: datetime(2026, 1, 1, 8, 0, second, tzinfo=UTC))
        beat = LedgerScheduler(app=current_app, lazy=True)
        beat.apply_async(beat.Entry(digest, app=current_app), advance=False)
    assert Job.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_next_tick_makes_another_job(digest: PeriodicTask, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (1, 2):
        monkeypatch.setattr(timezone, "now", lambda day=day: datetime(2026, 1, day, 8, tzinfo=UTC))
        beat = LedgerScheduler(app=current_app, lazy=True)
        beat.apply_async(beat.Entry(digest, app=current_app), advance=False)
    assert Job.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_each_look_is_noted(digest: PeriodicTask) -> None:
    LedgerScheduler(app=current_app).tick()
    assert Duty.objects.get(name="beat").ticked_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_tick_that_comes_while_postgresql_is_away_makes_its_job_afterwards(
    digest: PeriodicTask, postgres_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    beat = LedgerScheduler(app=current_app, lazy=True)
    entry = beat.Entry(digest, app=current_app)

    def tick() -> None:
        beat.apply_async(entry, advance=False)
        connections.close_all()

    connections.close_all()
    postgres_server.stop()
    with ThreadPoolExecutor() as pool:
        ticked = pool.submit(tick)
        wait_until(lambda: "trying again" in caplog.text)
        postgres_server.start()
        ticked.result(timeout=60)
    assert Job.objects.get().args == [1, 2]
