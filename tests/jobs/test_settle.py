"""How runs end, and that nothing of a run lands that no longer owns its job."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from django.db import OperationalError
from django.db.models.functions import Now
from django.utils import timezone

from jobs import settle
from jobs.models import Attempt, Job, QueueControl
from jobs.settle import Run
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.processes import database_url
from tests.soak import odd_tasks, poison

pytestmark = pytest.mark.django_db

WRITES: dict[str, Callable[[Run], bool]] = {
    "completion": lambda run: settle.complete(run, result=1),
    "failure": lambda run: settle.fail(run, error="broken"),
    "retry": lambda run: settle.retry(run, delay=1, error="later"),
    "cancellation": lambda run: settle.cancel(run, reason="enough"),
    "progress": lambda run: settle.report(run, progress_percent=50),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_run_that_lost_its_job_writes_nothing(write: str) -> None:
    job, worker = make_job(), make_worker()
    zombie = claim_job(job, worker, "first")
    settle.hand_back(worker.pk)
    claim_job(job, worker, "second")
    before = Job.objects.filter(pk=job.pk).values().get()
    assert WRITES[write](zombie) is False
    assert Job.objects.filter(pk=job.pk).values().get() == before
    assert not Attempt.objects.exists()


@pytest.mark.parametrize("write", [name for name in WRITES if name != "progress"])
def test_an_end_lands_once(write: str) -> None:
    run = claim_job(make_job(), make_worker())
    assert [WRITES[write](run), WRITES[write](run)] == [True, False]
    assert not run.row().exists()


def test_a_retry_counts_the_attempt_and_keeps_its_history() -> None:
    run = claim_job(make_job(), make_worker())
    settle.retry(run, delay=60, error="Busy: try later", traceback="trace")
    job = Job.objects.get(pk=run.job_id)
    assert (job.state, job.attempt, job.error) == ("delayed", 2, "Busy: try later")
    assert timedelta(seconds=50) < job.run_at - timezone.now() < timedelta(seconds=70)
    attempt = job.attempts.get()
    assert (attempt.number, attempt.outcome, attempt.error, attempt.traceback) == (1, "retried", job.error, "trace")


def test_a_retry_beyond_the_limit_raises_the_limit_and_an_endless_job_stays_endless() -> None:
    worker = make_worker()
    last, endless = make_job(max_attempts=1), make_job(max_attempts=None)
    for job in (last, endless):
        settle.retry(claim_job(job, worker), delay=0, error="again")
        job.refresh_from_db()
    assert (last.max_attempts, endless.max_attempts) == (2, None)


def test_a_job_whose_worker_died_runs_again_and_then_fails_with_the_evidence() -> None:
    job, worker = make_job(), make_worker()
    claim_job(job, worker, "first")
    assert settle.lose(Job.objects.filter(pk=job.pk), evidence="signal 9") == (1, 0)
    job.refresh_from_db()
    assert (job.state, job.attempt, job.stalled_count) == ("waiting", 1, 1)
    claim_job(job, worker, "second")
    assert settle.lose(Job.objects.filter(pk=job.pk), evidence="signal 9") == (0, 1)
    job.refresh_from_db()
    assert (job.state, job.stalled_count) == ("failed", 2)
    assert job.error == "Its worker died 2 times while running it. The last time: signal 9"
    assert [attempt.outcome for attempt in job.attempts.all()] == ["stalled", "stalled"]


def test_a_body_that_begins_after_a_while_moves_the_start_and_one_that_lost_its_job_does_not_begin() -> None:
    job, worker = make_job(), make_worker()
    run = claim_job(job, worker)
    Job.objects.filter(pk=job.pk).update(started_at=Now() - timedelta(seconds=9))
    assert settle.begin(run)
    job.refresh_from_db()
    assert job.started_at is not None
    assert timezone.now() - job.started_at < timedelta(seconds=5)
    settle.give_back(run)
    assert not settle.begin(run)
    job.refresh_from_db()
    assert job.state == "waiting"


@pytest.mark.parametrize("fields", [{"queue": "email"}, {"rate_key": "k"}, {"queue": "images"}])
def test_the_start_of_a_job_with_limits_is_the_one_that_they_count(fields: dict[str, Any]) -> None:
    QueueControl.objects.create(name="images", concurrency_limit=2)
    run = claim_job(make_job(**fields), make_worker())
    started_at = Job.objects.get(pk=run.job_id).started_at
    assert settle.begin(run)
    assert Job.objects.get(pk=run.job_id).started_at == started_at
    settle.give_back(run)
    assert not settle.begin(run)


@pytest.mark.django_db(transaction=True)
def test_a_body_does_not_wait_for_whoever_has_locked_its_job_nor_for_postgresql() -> None:
    worker = make_worker()
    mine, lost = claim_job(make_job(), worker), claim_job(make_job(), worker)
    settle.give_back(lost)
    with psycopg.connect(database_url()) as other:
        other.execute("SELECT FROM jobs_job FOR UPDATE")
        assert settle.begin(mine)
        assert not settle.begin(lost)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "rows_of", Mock(side_effect=OperationalError("the server closed the connection")))
        assert settle.begin(mine)


def test_handing_back_counts_nothing() -> None:
    job, worker = make_job(), make_worker()
    claim_job(job, worker)
    assert settle.hand_back(worker.pk) == 1
    job.refresh_from_db()
    assert (job.state, job.attempt, job.stalled_count) == ("waiting", 1, 0)


def test_an_ended_job_stays_ended() -> None:
    job = make_job(state="completed", finished_at=Now())
    assert settle.lose(Job.objects.filter(pk=job.pk), evidence="signal 9") == (0, 0)
    assert state_of(job.pk) == "completed"


def test_a_job_that_cannot_be_given_back_keeps_no_other_of_its_worker() -> None:
    worker = make_worker()
    stubborn, other = make_job(task=odd_tasks.stubborn.name), make_job()
    for job in (stubborn, other):
        claim_job(job, worker, str(job.pk))
    poison.install()
    assert settle.hand_back(worker.pk) == 1
    assert (state_of(stubborn.pk), state_of(other.pk)) == ("active", "waiting")
