"""What operators may do, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connections
from django.utils import timezone

from accounts.models import User
from jobs import claims, services, settle
from jobs.models import Attempt, Job, QueueControl
from jobs.queues import UnknownQueue
from tests.jobs.factories import claim_job, make_job, make_worker, state_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator() -> User:
    return User.objects.create_user("operator@example.com", name="Operator", is_staff=True)


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_an_ended_job_runs_again_as_if_it_had_never_run(operator: User, state: str) -> None:
    job = make_job(
        state=state,
        attempt=3,
        stalled_count=1,
        progress_percent=70,
        result={"old": True},
        error="broken",
        traceback="Traceback",
        claim_token="old",
        expires_at=timezone.now() - timedelta(hours=1),
        kwargs={"user_id": 7},
    )
    services.retry_job(job_id=job.pk, actor=operator)
    job.refresh_from_db()
    assert (job.state, job.attempt, job.stalled_count) == ("waiting", 1, 0)
    assert (job.progress_percent, job.result, job.error, job.traceback) == (None, None, "", "")
    assert job.finished_at is None
    assert job.expires_at is None
    assert job.kwargs == {"user_id": 7}


@pytest.mark.parametrize("state", ["waiting", "delayed"])
def test_a_job_that_has_not_ended_is_not_run_again(operator: User, state: str) -> None:
    job = make_job(state=state)
    with pytest.raises(services.ActionRefused, match=f"{job.pk} is {state}: only a completed, failed or cancelled"):
        services.retry_job(job_id=job.pk, actor=operator)
    assert state_of(job.pk) == state
    assert not LogEntry.objects.exists()


def test_a_retry_is_refused_while_a_live_job_holds_the_dedup_key(operator: User) -> None:
    old = make_job(state="failed", dedup_key="welcome-7")
    holder = make_job(state="waiting", dedup_key="welcome-7")
    with pytest.raises(services.ActionRefused, match=f"job {holder.pk}, which is waiting, holds the same dedup key"):
        services.retry_job(job_id=old.pk, actor=operator)
    assert state_of(old.pk) == "failed"
    assert not LogEntry.objects.exists()


def test_actions_on_a_job_that_is_gone_are_refused(operator: User) -> None:
    for action in (services.retry_job, services.cancel_job):
        with pytest.raises(services.ActionRefused, match=r"no job .* any more"):
            action(job_id=uuid4(), actor=operator)


@pytest.mark.parametrize("state", ["waiting", "delayed"])
def test_an_unstarted_job_is_cancelled(operator: User, state: str) -> None:
    job = make_job(state=state)
    services.cancel_job(job_id=job.pk, actor=operator)
    job.refresh_from_db()
    assert (job.state, job.error) == ("cancelled", "Cancelled by operator@example.com.")
    assert job.finished_at is not None
    assert not Attempt.objects.exists()


def test_the_run_of_a_cancelled_job_can_write_nothing_any_more(operator: User) -> None:
    job = make_job()
    run = claim_job(job, make_worker())
    services.cancel_job(job_id=job.pk, actor=operator)
    assert not settle.report(run, progress_percent=50)
    assert not settle.complete(run, result=1)
    assert not settle.fail(run, error="broken")
    assert state_of(job.pk) == "cancelled"
    assert Attempt.objects.get(job=job).outcome == "cancelled"


def test_the_old_run_of_a_job_that_runs_again_can_write_nothing(operator: User) -> None:
    job = make_job()
    run = claim_job(job, make_worker())
    services.cancel_job(job_id=job.pk, actor=operator)
    services.retry_job(job_id=job.pk, actor=operator)
    assert not settle.complete(run, result=1)
    assert state_of(job.pk) == "waiting"


def test_the_hint_of_the_last_run_cannot_claim_a_job_that_runs_again(operator: User) -> None:
    job, worker = make_job(), make_worker()
    run = claim_job(job, worker)
    settle.fail(run, error="broken")
    services.retry_job(job_id=job.pk, actor=operator)
    assert claims.claim({job.pk: run.token}, worker_id=worker.pk) == []
    assert state_of(job.pk) == "waiting"
    claim_job(job, worker, hint="fresh")


def test_an_ended_job_is_not_cancelled(operator: User) -> None:
    job = make_job(state="completed")
    with pytest.raises(services.ActionRefused, match="is completed: only a delayed, waiting or active job"):
        services.cancel_job(job_id=job.pk, actor=operator)


def test_each_action_is_recorded_with_its_operator(operator: User) -> None:
    job = make_job()
    services.cancel_job(job_id=job.pk, actor=operator)
    services.retry_job(job_id=job.pk, actor=operator)
    services.pause_queue(queue="email", actor=operator)
    entries = LogEntry.objects.order_by("pk").values_list("user__email", "object_id", "change_message")
    assert list(entries) == [
        ("operator@example.com", str(job.pk), "Cancelled (was waiting)."),
        ("operator@example.com", str(job.pk), "Run again (was cancelled)."),
        ("operator@example.com", "email", "Paused."),
    ]


def test_pausing_and_resuming_say_whether_they_changed_anything(operator: User) -> None:
    assert services.pause_queue(queue="email", actor=operator)
    paused_at = QueueControl.objects.get(name="email").paused_at
    assert paused_at is not None
    assert not services.pause_queue(queue="email", actor=operator)
    assert QueueControl.objects.get(name="email").paused_at == paused_at
    assert services.resume_queue(queue="email", actor=operator)
    assert not services.resume_queue(queue="email", actor=operator)
    with pytest.raises(UnknownQueue):
        services.pause_queue(queue="emial", actor=operator)


@pytest.mark.django_db(transaction=True)
def test_of_two_operators_who_press_at_once_one_wins(operator: User) -> None:
    job = make_job(state="failed")
    with ThreadPoolExecutor(max_workers=8) as pool:
        outcomes = list(pool.map(lambda _: _press(job.pk, operator), range(8)))
    assert sorted(outcomes) == ["refused"] * 7 + ["run again"]
    assert LogEntry.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_jobs_with_one_dedup_key_one_runs_again(operator: User) -> None:
    jobs = [make_job(state="failed", dedup_key="report-1") for _ in range(6)]
    with ThreadPoolExecutor(max_workers=6) as pool:
        outcomes = list(pool.map(lambda job: _press(job.pk, operator), jobs))
    assert sorted(outcomes) == ["refused"] * 5 + ["run again"]
    assert Job.objects.filter(state="waiting").count() == 1


def _press(job_id: UUID, operator: User) -> str:
    try:
        services.retry_job(job_id=job_id, actor=operator)
    except services.ActionRefused:
        return "refused"
    finally:
        connections.close_all()
    return "run again"
