"""The modes of a dedup key: for a time, and the latest call wins. What eight processes do is in tests/guarantees."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chain
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from jobs import claims, dedup, publish, services, settle
from jobs.dispatcher import due
from jobs.models import DedupWindow, Job
from jobs.settle import Run
from tests import sample_tasks
from tests.jobs.connections import somebody_waits_for_a_lock
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db


def throttled(*args: int, **options: Any) -> str:
    return sample_tasks.add.apply_async(args or (1, 2), dedup_key="sum", dedup_seconds=60, **options).id


def latest(*args: int, **options: Any) -> str:
    return sample_tasks.add.apply_async(args or (1, 2), dedup_key="sum", dedup_latest=True, **options).id


def started(job_id: str, name: str = "claim") -> Run:
    return claim_job(Job.objects.get(pk=job_id), make_worker(), name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dedup_seconds": 60}, "dedup_seconds= says nothing without a dedup_key="),
        ({"dedup_latest": True}, "dedup_latest= says nothing without a dedup_key="),
        ({"dedup_key": "k", "dedup_latest": True, "dedup_seconds": 60}, "dedup_seconds= and dedup_latest="),
        ({"dedup_key": "k", "dedup_latest": "yes"}, "dedup_latest='yes': expected True or False"),
        *[
            ({"dedup_key": "k", "dedup_seconds": seconds}, "dedup_seconds=.*: expected seconds")
            for seconds in (0, -1, True, "60", float("nan"), float("inf"), 1e9)
        ],
    ],
)
def test_modes_that_make_no_sense_are_refused_before_anything_is_written(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample_tasks.add.apply_async((1, 2), **options)
    assert not Job.objects.exists()
    assert not DedupWindow.objects.exists()


# -- For a time -------------------------------------------------------------------------------------------------------
def test_a_throttled_key_is_taken_for_its_time_beyond_the_end_of_its_job() -> None:
    first = throttled()
    settle.complete(started(first), result=3)
    assert throttled(3, 4) == first
    assert sample_tasks.add.apply_async((5, 6), dedup_key="sum").id == first
    assert Job.objects.get().args == [1, 2]
    DedupWindow.objects.update(until=Now())
    second = throttled(7, 8)
    assert second != first
    assert Job.objects.get(pk=second).args == [7, 8]


def test_the_time_is_that_of_the_call_by_the_databases_clock() -> None:
    throttled(countdown=3600)
    assert timedelta(seconds=50) < DedupWindow.objects.get().until - timezone.now() < timedelta(seconds=70)


def test_a_live_job_holds_its_key_longer_than_its_time() -> None:
    first = throttled(countdown=3600)
    DedupWindow.objects.update(until=Now())
    assert throttled() == first
    # Nothing was enqueued, so no other time has begun.
    settle.complete(started(_made_due(first)), result=3)
    assert throttled() != first


def _made_due(job_id: str) -> str:
    Job.objects.filter(pk=job_id).update(state="waiting", run_at=Now())
    return job_id


def test_a_rolled_back_call_takes_no_key() -> None:
    with transaction.atomic():
        throttled()
        transaction.set_rollback(True)
    assert not DedupWindow.objects.exists()
    throttled()
    assert Job.objects.count() == 1


def test_an_operators_retry_is_refused_while_another_job_has_taken_the_key_for_a_time() -> None:
    operator = User.objects.create_user("operator@example.com", name="Operator", is_staff=True)
    old = make_job(state="failed", dedup_key="sum")
    taker = throttled()
    settle.complete(started(taker), result=3)
    with pytest.raises(services.ActionRefused, match=f"job {taker} has taken its dedup key 'sum' until 2"):
        services.retry_job(job_id=old.pk, actor=operator)
    services.retry_job(job_id=UUID(taker), actor=operator)
    assert (state_of(old.pk), state_of(taker)) == ("failed", "waiting")


# -- The latest wins --------------------------------------------------------------------------------------------------
def test_the_latest_call_takes_the_place_of_a_job_that_has_not_started() -> None:
    first = latest(1, 2, countdown=60)
    later = timezone.now() + timedelta(hours=2)
    options = {"priority": 1, "queue": "crm", "expires": later, "max_attempts": 9, "time_limit": 5}
    assert latest(3, 4, countdown=600, link=sample_tasks.add.s(5), headers={"a": 1}, **options) == first
    job = Job.objects.get()
    assert (job.args, job.queue, job.priority, job.max_attempts) == ([3, 4], "crm", 1, 9)
    assert (job.expires_at, job.time_limit_seconds, job.headers) == (later, 5, {"a": 1})
    assert job.follow_ups["link"][0]["args"] == [5]
    assert job.state == "delayed"
    assert timedelta(seconds=500) < job.run_at - timezone.now() < timedelta(seconds=700)


def test_the_latest_call_may_hasten_a_job_and_may_be_another_tasks() -> None:
    first = latest(countdown=60)
    result = sample_tasks.append_line.apply_async(("file", "line"), dedup_key="sum", dedup_latest=True)
    assert result.id == first
    job = Job.objects.get()
    assert (job.task, job.state, job.args) == (sample_tasks.append_line.name, "waiting", ["file", "line"])
    # A worker that knows only the old task has nothing to run.
    assert claims.claim({job.pk: "token"}, worker_id=make_worker().pk, tasks=[sample_tasks.add.name]) == []
    assert state_of(first) == "waiting"


def test_what_was_to_follow_a_replaced_call_is_cancelled() -> None:
    step = sample_tasks.add.s(1, 2).set(dedup_key="sum", dedup_latest=True, countdown=60)
    whole = chain(step, sample_tasks.add.s(1)).apply_async()
    assert latest() == whole.parent.id
    assert (state_of(whole.id), Job.objects.get(pk=whole.parent.id).follow_ups) == ("cancelled", {})
    assert "replaced by a newer call" in Job.objects.get(pk=whole.id).error


def operator_cancels(run: Run) -> None:
    operator = User.objects.create_user("operator@example.com", name="Operator", is_staff=True)
    services.cancel_job(job_id=run.job_id, actor=operator)


def worker_dies_too_often(run: Run) -> None:
    Job.objects.filter(pk=run.job_id).update(stalled_count=9)
    settle.lose(run.row(), evidence="signal 9")


def expires_before_its_second_run(run: Run) -> None:
    settle.retry(run, delay=60, error="again")
    Job.objects.filter(pk=run.job_id).update(expires_at=Now() - timedelta(seconds=1))
    due.run_once()


ENDS: dict[str, tuple[Callable[[Run], Any], str]] = {
    "completed": (lambda run: settle.complete(run, result=3), "completed"),
    "failed": (lambda run: settle.fail(run, error="broken"), "failed"),
    "revoked by its worker": (lambda run: settle.cancel(run, reason="enough"), "cancelled"),
    "revoked in code": (lambda run: services.revoke_job(job_id=run.job_id), "cancelled"),
    "cancelled by an operator": (operator_cancels, "cancelled"),
    "lost too often": (worker_dies_too_often, "failed"),
    "expired": (expires_before_its_second_run, "cancelled"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_latest_call_for_a_job_that_has_started_comes_after_it_whichever_way_it_ends(end: str) -> None:
    first = latest()
    run = started(first)
    second, third = latest(3, 4), latest(5, 6, countdown=3600)
    # Callers that wait for the same end are given the same job: that of the newest.
    assert second == third != first
    assert not Job.objects.filter(pk=second).exists()
    write, state = ENDS[end]
    write(run)
    assert state_of(first) == state
    job = Job.objects.get(pk=second)
    assert (job.args, job.state, job.dedup_key) == ([5, 6], "delayed", "sum")
    assert timedelta(minutes=50) < job.run_at - timezone.now() < timedelta(minutes=70)
    assert Job.objects.get(pk=first).successor is None
    assert latest(7, 8) == second
    assert Job.objects.count() == 2


def test_a_successor_that_is_due_is_rung_for_and_waits_from_now_on(django_capture_on_commit_callbacks: Any) -> None:
    run = started(latest())
    second = latest(3, 4)
    with django_capture_on_commit_callbacks() as callbacks:
        settle.complete(run, result=3)
    rings = [callback.__wrapped__.args[0] for callback in callbacks]
    assert publish.Ring("default", 5) in rings
    before, after = Job.objects.get(pk=run.job_id), Job.objects.get(pk=second)
    assert after.state == "waiting"
    assert before.finished_at <= after.run_at


def test_a_job_between_two_runs_has_started_and_is_not_replaced() -> None:
    first = latest()
    run = started(first)
    second = latest(3, 4)
    settle.retry(run, delay=0, error="again")
    assert latest(5, 6) == second
    assert Job.objects.get().args == [1, 2]
    due.run_once()
    settle.complete(started(first, "second"), result=3)
    assert Job.objects.get(pk=second).args == [5, 6]


def test_a_successor_is_revoked_like_any_job() -> None:
    run = started(latest())
    second = sample_tasks.add.apply_async((3, 4), dedup_key="sum", dedup_latest=True)
    assert second.state == "PENDING"
    second.revoke()
    assert (second.state, Job.objects.get(pk=second.id).error) == ("REVOKED", "Revoked.")
    settle.complete(run, result=3)
    assert Job.objects.count() == 2


def test_a_successor_whose_owner_is_gone_comes_without_one() -> None:
    owner = User.objects.create_user("ada@example.com", name="Ada")
    run = started(latest())
    second = latest(3, 4, owner_id=owner.pk)
    owner.delete()
    assert settle.complete(run, result=3)
    connection.check_constraints()
    assert (state_of(second), Job.objects.get(pk=second).owner_id) == ("waiting", None)


def test_a_successor_whose_id_was_taken_meanwhile_stops_no_end() -> None:
    run = started(latest())
    second = str(uuid4())
    latest(3, 4, task_id=second)
    sample_tasks.add.apply_async((5, 6), task_id=second)
    assert settle.complete(run, result=3)
    assert (state_of(run.job_id), Job.objects.get(pk=second).args) == ("completed", [5, 6])


@pytest.mark.parametrize("has_started", [False, True])
def test_a_call_that_is_rolled_back_changes_nothing(has_started: bool) -> None:
    first = latest()
    if has_started:
        started(first)
    before = Job.objects.values().get()
    with transaction.atomic():
        latest(3, 4, countdown=60)
        transaction.set_rollback(True)
    assert Job.objects.values().get() == before


# -- Two connections --------------------------------------------------------------------------------------------------
def in_a_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    return run


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("mode", [throttled, latest])
def test_an_uncommitted_caller_is_waited_for(mode: Any, commits: bool) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            first = mode(1, 2)
            other = pool.submit(in_a_thread(lambda: mode(3, 4)))
            wait_until(somebody_waits_for_a_lock)
            transaction.set_rollback(not commits)
        second = other.result(timeout=30)
    assert (second == first) is commits
    assert Job.objects.get().args == ([1, 2] if mode is throttled and commits else [3, 4])


@pytest.mark.django_db(transaction=True)
def test_a_call_that_meets_the_end_of_the_job_before_it_becomes_a_job_of_its_own() -> None:
    run = started(latest())
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            settle.complete(run, result=3)
            other = pool.submit(in_a_thread(lambda: latest(3, 4)))
            wait_until(somebody_waits_for_a_lock)
        second = other.result(timeout=30)
    assert (state_of(run.job_id), Job.objects.get(pk=second).args) == ("completed", [3, 4])


@pytest.mark.django_db(transaction=True)
def test_an_end_waits_for_a_caller_and_brings_its_job_about() -> None:
    run = started(latest())
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            second = latest(3, 4)
            end = pool.submit(in_a_thread(lambda: settle.complete(run, result=3)))
            wait_until(somebody_waits_for_a_lock)
        assert end.result(timeout=30)
    assert (state_of(run.job_id), state_of(second)) == ("completed", "waiting")


@pytest.mark.django_db(transaction=True)
def test_a_time_that_is_over_is_begun_anew_by_one_of_many_callers() -> None:
    DedupWindow.objects.create(key="sum", job_id=uuid4(), until=Now())
    with ThreadPoolExecutor(8) as pool:
        ids = {call.result() for call in [pool.submit(in_a_thread(throttled)) for _ in range(40)]}
    assert ids == {str(Job.objects.get().pk)} == {str(DedupWindow.objects.get().job_id)}
    assert dedup.open_window("sum") is not None
