"""However a job ends, what hangs from it is in the way of nobody."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from accounts.models import User
from jobs import ends, services, settle
from jobs.bulk_actions import request
from jobs.dispatcher import due
from jobs.job_filter import JobFilter
from jobs.models import BulkAction, Job, Worker
from jobs.settle import Run
from jobs.testing import run_due_jobs
from tests.jobs.factories import claim_job, make_job, make_worker, state_of

pytestmark = pytest.mark.django_db

# As no call is accepted any more: steps that are none, and ids that are none.
ODD: list[Any] = [
    {"chain": 7},
    {"chain": [7]},
    {"chain": [{"task": "t", "options": {"task_id": "invoice-7"}}]},
    {"chain": [{"subtask_type": "chord", "kwargs": {}}]},
    {"link_error": [{"task": "t", "args": 7}], "chain": [None]},
    [1],
]


@pytest.fixture
def worker() -> Worker:
    return make_worker()


@pytest.fixture
def actor() -> User:
    return User.objects.create(email="op@example.com", name="Op", is_staff=True)


def expire(job: Job, worker: Worker, actor: User) -> str:
    Job.objects.filter(pk=job.pk).update(expires_at=Now() - timedelta(seconds=1))
    due.run_once()
    return "cancelled"


def cancel(job: Job, worker: Worker, actor: User) -> str:
    services.cancel_job(job_id=job.pk, actor=actor)
    return "cancelled"


def cancel_many(job: Job, worker: Worker, actor: User) -> str:
    request(kind=BulkAction.Kind.CANCEL, wanted=JobFilter(task=job.task), actor=actor)
    run_due_jobs()
    return "cancelled"


def stop(job: Job, worker: Worker, actor: User) -> str:
    settle.stop(Job.objects.filter(pk=job.pk), reason="no more")
    return "cancelled"


def fail(job: Job, worker: Worker, actor: User) -> str:
    settle.fail(claim_job(job, worker), error="it broke")
    return "failed"


def cancel_run(job: Job, worker: Worker, actor: User) -> str:
    settle.cancel(claim_job(job, worker), reason="no more")
    return "cancelled"


def lose(job: Job, worker: Worker, actor: User) -> str:
    Job.objects.filter(pk=job.pk).update(stalled_count=99)
    claim_job(job, worker)
    settle.lose(Job.objects.filter(worker_id=worker.pk), evidence="it died")
    return "failed"


def leave(job: Job, worker: Worker, actor: User) -> str:
    settle.complete(claim_job(job, worker), result=None)
    return "completed"


WAYS: list[Callable[[Job, Worker, User], str]] = [expire, cancel, cancel_many, stop, fail, cancel_run, lose, leave]


@pytest.mark.parametrize("follow_ups", ODD, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_job_ends_whatever_was_to_follow_it(
    way: Callable[[Job, Worker, User], str], follow_ups: Any, worker: Worker, actor: User
) -> None:
    job = make_job(task="odd")
    Job.objects.filter(pk=job.pk).update(follow_ups=follow_ups)
    neighbour = make_job(state="delayed", run_at=Now() - timedelta(minutes=1))
    state = way(Job.objects.get(pk=job.pk), worker, actor)
    job.refresh_from_db()
    assert job.state == state
    assert job.finished_at is not None
    due.run_once()
    assert state_of(neighbour.pk) != "delayed"


def test_what_could_not_follow_is_said_in_the_error(actor: User) -> None:
    job = make_job(follow_ups={"chain": [{"task": "t", "options": {"task_id": "invoice-7"}}]})
    services.cancel_job(job_id=job.pk, actor=actor)
    job.refresh_from_db()
    assert job.error.startswith("Cancelled by ")
    assert "It ended, but what was to follow it could not be made: InvalidJobId" in job.error


def test_a_job_that_cannot_be_taken_from_a_dead_worker_keeps_no_other_there(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, other = make_job(), make_job()
    for job in (odd, other):
        claim_job(job, worker)
    keep = ends.keep_attempt

    def refuse(job: Job, *args: Any, **options: Any) -> None:
        if job.pk == odd.pk:
            raise ValueError("odd")
        keep(job, *args, **options)

    monkeypatch.setattr(settle, "keep_attempt", refuse)
    assert settle.lose(Job.objects.filter(worker_id=worker.pk), evidence="it died") == (1, 0)
    assert (state_of(odd.pk), state_of(other.pk)) == ("active", "waiting")


def test_an_end_is_written_once(worker: Worker) -> None:
    run: Run = claim_job(make_job(), worker)
    assert settle.fail(run, error="first")
    assert not settle.fail(run, error="second")
    assert Job.objects.get(pk=run.job_id).error == "first"
