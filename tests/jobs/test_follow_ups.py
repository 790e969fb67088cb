"""What comes after a job: the rest of its chain and its errbacks, however it ends."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from celery import chain, chord, group, shared_task
from celery.exceptions import Ignore, TaskRevokedError
from celery.result import AsyncResult
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models.functions import Now

from jobs import claims, correlation, services, settle
from jobs.dispatcher import due
from jobs.models import Job
from jobs.settle import Run
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.jobs.factories import make_worker, state_of
from tests.jobs.test_flows import total

pytestmark = pytest.mark.django_db


def operator() -> Any:
    return get_user_model().objects.create_superuser(email="operator@example.com", password="x" * 12)


def started(job_id: UUID | str, token: str = "first") -> tuple[Run, claims.Claim]:
    worker = make_worker()
    (claim,) = claims.claim({UUID(str(job_id)): f"{worker.pk.hex}:{token}"}, worker_id=worker.pk)
    return Run(claim.job_id, claim.token), claim


def lose(run: Run) -> None:
    Job.objects.update(stalled_count=99)
    assert settle.lose(run.row(), evidence="worker gone") == (0, 1)


def expire(run: Run) -> None:
    settle.give_back(run)
    Job.objects.filter(pk=run.job_id).update(expires_at=Now() - timedelta(seconds=1))
    due.run_once()


def test_what_follows_a_job_is_written_in_the_transaction_that_completes_it() -> None:
    first = sample_tasks.add.s(1, 2).set(link=[sample_tasks.add.s(20)])
    whole = chain(first, sample_tasks.add.s(10)).apply_async()
    run, claim = started(whole.parent.id)
    with transaction.atomic():
        assert settle.complete(run, result=3, claim=claim)
        assert sorted(job.args for job in Job.objects.exclude(pk=run.job_id)) == [[3, 10], [3, 20]]
        transaction.set_rollback(True)
    assert [job.state for job in Job.objects.all()] == ["active"]
    assert settle.complete(run, result=3, claim=claim)
    assert Job.objects.count() == 3


BAD_ENDS: dict[str, Callable[[Run], Any]] = {
    "failed": lambda run: settle.fail(run, error="broken"),
    "lost too often": lose,
    "ignored": lambda run: settle.complete(run, result=None),
    "cancelled by its run": lambda run: settle.cancel(run, reason="enough"),
    "cancelled by an operator": lambda run: services.cancel_job(job_id=run.job_id, actor=operator()),
    "revoked": lambda run: services.revoke_job(job_id=run.job_id),
    "expired": expire,
}


@pytest.mark.parametrize("end", BAD_ENDS)
def test_the_rest_of_a_chain_is_cancelled_however_a_step_ends_badly(end: str) -> None:
    whole = chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(10), sample_tasks.add.s(100)).apply_async()
    first = whole.parent.parent
    run, _ = started(first.id)
    BAD_ENDS[end](run)
    assert [state_of(whole.parent.id), state_of(whole.id)] == ["cancelled", "cancelled"]
    # As in Celery: a step after one that failed has failed as that did.
    assert whole.state == ("FAILURE" if state_of(first.id) == "failed" else "REVOKED")
    assert first.id in Job.objects.get(pk=whole.id).error


@pytest.mark.parametrize("end", BAD_ENDS)
def test_a_step_that_is_run_again_brings_the_rest_of_its_chain_with_it(end: str) -> None:
    whole = chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(10)).apply_async()
    run, _ = started(whole.parent.id)
    BAD_ENDS[end](run)
    actor = get_user_model().objects.first() or operator()
    services.retry_job(job_id=run.job_id, actor=actor)
    run, claim = started(run.job_id, "second")
    assert settle.complete(run, result=3, claim=claim)
    step = Job.objects.get(pk=whole.id)
    assert (step.state, step.args) == ("waiting", [3, 10])


def test_members_of_a_group_at_the_end_of_a_broken_chain_are_cancelled_too() -> None:
    whole = chain(sample_tasks.add.s(1, 2), group(sample_tasks.add.s(1), sample_tasks.add.s(2))).apply_async()
    settle.fail(started(whole.parent.id)[0], error="broken")
    assert [state_of(member.id) for member in whole.children] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("end", BAD_ENDS)
def test_who_waits_for_a_chord_after_a_broken_step_hears_of_it_and_of_its_next_run(end: str) -> None:
    add = sample_tasks.add
    whole = (add.s(1, 2) | group(add.s(1), add.s(2)) | total.s() | add.s(10)).apply_async()
    body, header = whole.parent, whole.parent.parent
    run, _ = started(header.parent.id)
    BAD_ENDS[end](run)
    later = [*(member.id for member in header.children), body.id, whole.id]
    assert {result_id: state_of(result_id) for result_id in later} == dict.fromkeys(later, "cancelled")
    assert Job.objects.count() == 1 + len(later)
    has_failed = state_of(run.job_id) == "failed"
    with pytest.raises(Exception, match=r"broken|worker gone") if has_failed else pytest.raises(TaskRevokedError):
        AsyncResult(whole.id).get(timeout=1)
    services.retry_job(job_id=run.job_id, actor=get_user_model().objects.first() or operator())
    run_due_jobs()
    assert whole.get(timeout=1) == 19


def test_a_later_step_that_has_no_arguments_yet_is_not_run_by_itself() -> None:
    whole = chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(10)).apply_async()
    settle.fail(started(whole.parent.id)[0], error="broken")
    with pytest.raises(services.ActionRefused, match=f"run job {whole.parent.id}"):
        services.retry_job(job_id=UUID(whole.id), actor=operator())
    assert state_of(whole.id) == "cancelled"


@pytest.mark.parametrize("end", ["failed", "lost too often"])
def test_an_errback_with_one_argument_is_a_job_inserted_with_the_failure(end: str) -> None:
    result = sample_tasks.add.apply_async((1, 2), link_error=sample_tasks.remember_failed_id.s())
    BAD_ENDS[end](started(result.id)[0])
    errback = Job.objects.exclude(pk=result.id).get()
    assert (errback.task, errback.args, str(errback.parent_id)) == (
        "tests.sample_tasks.remember_failed_id",
        [result.id],
        result.id,
    )


def test_the_next_failure_after_an_operators_retry_calls_the_errback_again() -> None:
    result = sample_tasks.add.apply_async((1, 2), link_error=sample_tasks.remember_failed_id.s())
    settle.fail(started(result.id)[0], error="broken")
    services.retry_job(job_id=UUID(result.id), actor=operator())
    settle.fail(started(result.id, "second")[0], error="broken again")
    assert Job.objects.exclude(pk=result.id).count() == 2


def test_each_failure_of_a_job_that_waits_for_others_calls_its_errback() -> None:
    body = total.s().on_error(sample_tasks.remember_failed_id.s())
    result = chord([sample_tasks.fail_for_good.s()], body).delay()
    for failures in (1, 2):
        run_due_jobs()
        assert Job.objects.filter(task=sample_tasks.remember_failed_id.name).count() == failures
        services.retry_job(job_id=UUID(result.id), actor=get_user_model().objects.first() or operator())


@shared_task(queue="default")
def see_the_correlation(request: Any, error: BaseException, traceback: str) -> None:
    CORRELATIONS_SEEN.append(correlation.current())


CORRELATIONS_SEEN: list[str] = []


def test_an_errback_of_either_kind_bears_the_correlation_id_of_its_job(django_capture_on_commit_callbacks: Any) -> None:
    CORRELATIONS_SEEN.clear()
    errbacks = [sample_tasks.remember_failed_id.s(), see_the_correlation.s()]
    result = sample_tasks.add.apply_async((1, 2), link_error=errbacks, correlation_id="from-a-request")
    run, _ = started(result.id)
    with django_capture_on_commit_callbacks(execute=True):
        lose(run)
    assert Job.objects.get(parent_id=result.id).correlation_id == "from-a-request"
    assert CORRELATIONS_SEEN == ["from-a-request"]
    assert correlation.current() == ""


def test_a_failure_that_is_rolled_back_leaves_no_errback() -> None:
    result = sample_tasks.add.apply_async((1, 2), link_error=sample_tasks.remember_failed_id.s())
    run, _ = started(result.id)
    with transaction.atomic():
        settle.fail(run, error="broken")
        transaction.set_rollback(True)
    assert Job.objects.count() == 1
    assert state_of(result.id) == "active"


def test_an_errback_with_three_arguments_is_called_in_place_after_the_commit(
    django_capture_on_commit_callbacks: Any,
) -> None:
    sample_tasks.FAILURES_SEEN.clear()
    result = sample_tasks.add.apply_async((1, 2), link_error=sample_tasks.see_failure.s())
    run, _ = started(result.id)
    error = Ignore("the cause itself")
    with django_capture_on_commit_callbacks(execute=True):
        settle.fail(run, error="broken", traceback="trace", cause=error)
        assert not sample_tasks.FAILURES_SEEN
    (seen,) = sample_tasks.FAILURES_SEEN
    assert seen == (result.id, error, "trace")
    assert Job.objects.count() == 1


def test_an_errback_that_is_no_task_stops_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    result = sample_tasks.add.apply_async((1, 2))
    # Of a version that knew it.
    Job.objects.update(follow_ups={"link_error": [{"task": "gone.task", "args": [], "kwargs": {}}]})
    assert settle.fail(started(result.id)[0], error="broken")
    assert state_of(result.id) == "failed"
    assert "gone.task is no task of this project" in caplog.text
