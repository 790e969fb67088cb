"""G16: what is wrong is reported within a minute, and nothing else is."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta

import pytest
from celery import current_app
from django.db import connection
from django.db.models import F
from django.test import Client
from django.utils import timezone

from jobs import health
from jobs.models import Duty, Job, QueueControl, Stat
from tests import sample_tasks
from tests.processes import Processes
from tests.slow_redis import SlowRedis
from tests.variants import POOLS
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

QUEUES = ("default", "email", "crm", "images", "video", "reports", "webhooks")


def reasons() -> list[str]:
    return list(Client().get("/health").json()["reasons"])


def wait_for(words: str, *, timeout: float = 20) -> None:
    """Waits until a reason holds these words."""
    wait_until(lambda: any(words in reason for reason in reasons()), timeout=timeout, reason=words)


def wait_for_health() -> None:
    wait_until(lambda: reasons() == [], timeout=20, reason="nothing is reported")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """What is reported after half a minute is reported after so many seconds."""
    return lambda seconds: monkeypatch.setattr(health, "PATIENCE_SECONDS", seconds)


def test_a_system_at_work_has_nothing_to_report(processes: Processes) -> None:
    processes.worker(concurrency=2)
    processes.start("celery", "-A", "config", "beat")
    wait_for_health()
    results = [sample_tasks.add.delay(number, 1) for number in range(20)]
    wait_until(lambda: Job.objects.filter(pk__in=[one.id for one in results], state="completed").count() == 20)
    assert reasons() == []


def test_a_duty_that_keeps_failing_is_reported_and_no_other(processes: Processes) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {Stat._meta.db_table} ADD CONSTRAINT refuse CHECK (completed_count = 0)")
    try:
        processes.worker(concurrency=2)
        processes.start("celery", "-A", "config", "beat")
        sample_tasks.add.delay(1, 2)
        failed = Duty.objects.filter(name="statistics.Fold", failed_at__isnull=False)
        wait_until(failed.exists, timeout=20)
        # As a minute later.
        failed.update(succeeded_at=F("failed_at") - timedelta(seconds=46))

        def is_the_only_one() -> bool:
            found = reasons()
            return len(found) == 1 and found[0].startswith("The dispatcher's duty statistics.Fold last succeeded ")

        wait_until(is_the_only_one, timeout=20)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {Stat._meta.db_table} DROP CONSTRAINT refuse")
    wait_for_health()


@POOLS
def test_a_worker_that_lives_and_does_not_look_for_jobs_is_reported(
    processes: Processes, impatient: Callable[[float], None], pool: str
) -> None:
    impatient(8.0)
    processes.worker(pool=pool, include=("tests.sample_tasks", "tests.standing_still"))
    processes.start("celery", "-A", "config", "beat")
    wait_for_health()
    current_app.control.broadcast("stand_still", arguments={"seconds": 16})
    wait_for("lives, but has not looked for jobs for ")
    wait_for_health()


def test_a_worker_whose_connection_to_the_broker_hangs_is_reported(
    processes: Processes, impatient: Callable[[float], None], slow_redis: SlowRedis
) -> None:
    impatient(3.0)
    slow_redis.delay_seconds = 0
    processes.worker(env={"REDIS_URL": slow_redis.url})
    processes.start("celery", "-A", "config", "beat")
    wait_for_health()
    slow_redis.delay_seconds = 60
    wait_for("Redis has not answered it for ")
    # It works all the same.
    result = sample_tasks.add.delay(1, 2)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    slow_redis.delay_seconds = 0
    wait_for_health()


def test_a_worker_that_was_told_to_leave_a_queue_is_reported(processes: Processes) -> None:
    processes.worker(*QUEUES)
    processes.start("celery", "-A", "config", "beat")
    wait_for_health()
    current_app.control.cancel_consumer("email", reply=True)
    wait_for("does not take from email any more, as it was told by cancel_consumer, and no other worker does.")
    current_app.control.add_consumer("email", reply=True)
    wait_for_health()
    for queue in QUEUES:
        current_app.control.cancel_consumer(queue, reply=True)
    wait_for("takes from no queue any more, as it was told by cancel_consumer.")


def test_a_queue_whose_only_worker_is_stopped_is_reported(
    processes: Processes, impatient: Callable[[float], None]
) -> None:
    impatient(1.0)
    worker = processes.worker()
    processes.start("celery", "-A", "config", "beat")
    wait_for_health()
    os.kill(worker.pid, signal.SIGSTOP)
    sample_tasks.add.delay(1, 2)
    wait_for("default: 1 jobs wait, and no living worker takes from it.")
    # What the other duties say follows, and is not waited for here.
    os.kill(worker.pid, signal.SIGCONT)
    worker.kill()
    processes.worker()
    wait_for_health()


def test_a_queue_that_only_grows_is_reported(processes: Processes) -> None:
    minute = timezone.now().replace(second=0, microsecond=0)
    for number in range(8):
        at = minute - timedelta(minutes=number)
        Job.objects.bulk_create(
            Job(task=sample_tasks.add.name, queue="crm", state="waiting", created_at=at, run_at=at) for _ in range(3)
        )
    # It counts what has come, and takes nothing of it.
    processes.worker("default")
    wait_for("crm: grows. In five minutes 15 jobs came and 0 ended, and no more of them are being started.")


def test_jobs_of_a_queue_that_nobody_declares_are_reported(
    processes: Processes, impatient: Callable[[float], None]
) -> None:
    impatient(1.0)
    Job.objects.create(task=sample_tasks.add.name, queue="nobodys", state="waiting")
    wait_for("nobodys: 1 jobs wait in a queue that nobody declares.")


def test_a_paused_queue_with_jobs_degrades_nothing_and_is_told(processes: Processes) -> None:
    processes.worker()
    processes.start("celery", "-A", "config", "beat")
    QueueControl.objects.update_or_create(name="default", defaults={"paused_at": timezone.now()})
    sample_tasks.add.delay(1, 2)
    wait_for_health()
    assert Client().get("/health").json()["warnings"] == ["default: paused, with 1 jobs waiting."]


@pytest.mark.parametrize("duty", ["beat", "dispatcher"])
def test_a_duty_that_has_stopped_ticking_is_reported(processes: Processes, duty: str) -> None:
    worker = processes.worker()
    beat = processes.start("celery", "-A", "config", "beat")
    wait_for_health()
    (beat if duty == "beat" else worker).kill()
    # As a minute later.
    Duty.objects.filter(name=duty).update(ticked_at=F("ticked_at") - timedelta(seconds=46))
    wait_for(f"The {duty} last ticked ")
