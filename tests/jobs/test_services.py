"""What operators may do, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, connections
from django.utils import timezone

from accounts.models import User
from jobs import claims, flows, services, settle
from jobs.models import Attempt, AuditEntry, Flow, Job, QueueControl
from jobs.queues import UnknownQueue
from tests import sample_tasks
from tests.jobs.connections import another_connection, over
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.soak.poison import nested
from tests.waiting import wait_until

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
    assert not AuditEntry.objects.exists()


def test_a_retry_is_refused_while_a_live_job_holds_the_dedup_key(operator: User) -> None:
    old = make_job(state="failed", dedup_key="welcome-7")
    holder = make_job(state="waiting", dedup_key="welcome-7")
    with pytest.raises(services.ActionRefused, match=f"job {holder.pk}, which is waiting, holds the same dedup key"):
        services.retry_job(job_id=old.pk, actor=operator)
    assert state_of(old.pk) == "failed"
    assert not AuditEntry.objects.exists()


def test_actions_on_a_job_that_is_gone_are_refused(operator: User) -> None:
    for action in (services.retry_job, services.cancel_job, services.promote_job):
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


def test_the_token_of_the_last_run_cannot_claim_a_job_that_runs_again(operator: User) -> None:
    job, worker = make_job(), make_worker()
    run = claim_job(job, worker)
    settle.fail(run, error="broken")
    services.retry_job(job_id=job.pk, actor=operator)
    assert claims.claim({job.pk: run.token}, worker_id=worker.pk) == []
    assert state_of(job.pk) == "waiting"
    claim_job(job, worker, name="fresh")


def test_an_ended_job_is_not_cancelled(operator: User) -> None:
    job = make_job(state="completed")
    with pytest.raises(services.ActionRefused, match="is completed: only a delayed, waiting or active job"):
        services.cancel_job(job_id=job.pk, actor=operator)


@pytest.mark.parametrize("attempt", [1, 2], ids=["a delay", "the wait before a retry"])
def test_a_delayed_job_is_promoted_with_its_attempts(operator: User, attempt: int) -> None:
    job = make_job(state="delayed", attempt=attempt, run_at=timezone.now() + timedelta(days=1))
    services.promote_job(job_id=job.pk, actor=operator)
    job.refresh_from_db()
    assert (job.state, job.attempt) == ("waiting", attempt)
    assert job.run_at <= timezone.now()
    assert AuditEntry.objects.get().what.startswith("Promoted (was due ")


@pytest.mark.parametrize("state", ["waiting", "completed", "failed", "cancelled"])
def test_only_a_delayed_job_is_promoted(operator: User, state: str) -> None:
    job = make_job(state=state)
    with pytest.raises(services.ActionRefused, match=f"{job.pk} is {state}: only a delayed job can be promoted"):
        services.promote_job(job_id=job.pk, actor=operator)
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_an_ended_job_is_edited_and_runs_again(operator: User, state: str) -> None:
    job = make_job(state=state, args=[1], kwargs={"y": 2}, attempt=3, error="broken")
    services.edit_job(job_id=job.pk, args=[], kwargs={"x": 5, "y": 6}, actor=operator)
    job.refresh_from_db()
    assert (job.state, job.attempt, job.error, job.args, job.kwargs) == ("waiting", 1, "", [], {"x": 5, "y": 6})
    entry = AuditEntry.objects.get()
    assert entry.what == f"Edited and run again (was {state})."
    assert entry.details == {"before": {"args": [1], "kwargs": {"y": 2}}, "after": {"args": [], "kwargs": job.kwargs}}


@pytest.mark.parametrize("state", ["waiting", "delayed"])
def test_a_job_that_has_not_started_is_edited_in_place(operator: User, state: str) -> None:
    run_at = timezone.now() + timedelta(hours=1)
    job = make_job(state=state, args=[1, 2], run_at=run_at)
    services.edit_job(job_id=job.pk, args=[3, 4], kwargs={}, actor=operator)
    job.refresh_from_db()
    assert (job.state, job.args, job.run_at) == (state, [3, 4], run_at)
    assert AuditEntry.objects.get().what == f"Edited (while {state})."


def test_the_arguments_of_a_running_job_are_not_edited(operator: User) -> None:
    job = make_job(args=[1, 2])
    claim_job(job, make_worker())
    with pytest.raises(services.ActionRefused, match="is active: cancel it first"):
        services.edit_job(job_id=job.pk, args=[3, 4], kwargs={}, actor=operator)
    assert Job.objects.get(pk=job.pk).args == [1, 2]


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ([1], {}, "missing 1 required positional argument: 'y'"),
        ([1, 2, 3], {}, "takes 2 positional arguments but 3 were given"),
        ([], {"x": 1, "z": 2}, "unexpected keyword argument 'z'"),
        ({"x": 1}, {}, "a JSON list"),
        ([1, 2], [], "a JSON list"),
        ([1, float("nan")], {}, "not JSON"),
        (["\0", 1], {}, "NUL character"),
        (["x" * 300_000, 1], {}, "more than 262144"),
        (["•••", 1], {}, "no hidden value"),
        ([nested(600), 1], {}, "more than 100 lists and objects inside of each other"),
        ([nested(5000), 1], {}, "more than 100 lists and objects inside of each other"),
        (["\ud800", 1], {}, "half a character"),
    ],
)
def test_arguments_that_could_not_be_enqueued_are_refused_and_nothing_is_written(
    operator: User, args: Any, kwargs: Any, reason: str
) -> None:
    job = make_job(state="failed", args=[1, 2], error="broken")
    before = Job.objects.filter(pk=job.pk).values().get()
    with pytest.raises(services.ActionRefused, match=f"Job {job.pk} was not changed: .*{reason}"):
        services.edit_job(job_id=job.pk, args=args, kwargs=kwargs, actor=operator)
    assert Job.objects.filter(pk=job.pk).values().get() == before
    assert not AuditEntry.objects.exists()


def test_a_job_of_an_unknown_task_is_not_edited(operator: User) -> None:
    job = make_job(state="failed", task="gone.tasks.away")
    with pytest.raises(services.ActionRefused, match=r"its task gone\.tasks\.away is not known here"):
        services.edit_job(job_id=job.pk, args=[], kwargs={}, actor=operator)


def test_a_key_that_names_an_argument_follows_the_edit_and_one_that_the_call_gave_stays(operator: User) -> None:
    keyed, called = (
        Job.objects.get(pk=sample_tasks.for_a_tenant.apply_async((1,), **options).id)
        for options in ({}, {"concurrency_key": "of the call"})
    )
    for job in (keyed, called):
        services.edit_job(job_id=job.pk, args=[2], kwargs={}, actor=operator)
        job.refresh_from_db()
    assert (keyed.concurrency_key, called.concurrency_key) == ("tenant:2", "of the call")
    assert "tenant:2" in keyed.lane


def test_secrets_that_the_editor_does_not_see_stay_and_are_not_kept_with_the_action(operator: User) -> None:
    job = make_job(state="failed", task=sample_tasks.add.name, args=[{"token": "one", "n": 1}, 2])
    services.edit_job(job_id=job.pk, args=[{"token": "•••", "n": 5}, 2], kwargs={}, actor=operator)
    assert Job.objects.get(pk=job.pk).args == [{"token": "one", "n": 5}, 2]
    assert AuditEntry.objects.get().details == {
        "before": {"args": [{"token": "•••", "n": 1}, 2], "kwargs": {}},
        "after": {"args": [{"token": "•••", "n": 5}, 2], "kwargs": {}},
    }


@pytest.mark.django_db(transaction=True)
def test_an_action_on_a_row_that_a_run_has_locked_for_long_is_refused_and_does_not_hang(operator: User) -> None:
    job = make_job()
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [job.pk])
        with pytest.raises(services.ActionRefused, match="is locked at the moment"):
            services.cancel_job(job_id=job.pk, actor=operator)
    assert state_of(job.pk) == "waiting"


@pytest.mark.django_db(transaction=True)
def test_of_two_operators_who_wait_for_each_other_one_is_told_to_try_again() -> None:
    one, two = make_job(), make_job()
    with another_connection() as other, ThreadPoolExecutor(1) as thread, other.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '1min'")
        lock = "SELECT FROM jobs_job WHERE id = %s FOR UPDATE"
        cursor.execute(lock, [two.pk])

        def lock_both() -> None:
            with services._locked(one.pk):
                thread.submit(cursor.execute, lock, [one.pk])
                Job.objects.select_for_update().get(pk=two.pk)

        with pytest.raises(services.ActionRefused, match="try again shortly"):
            lock_both()


def test_each_action_is_recorded_with_its_operator(operator: User) -> None:
    job = make_job()
    services.cancel_job(job_id=job.pk, actor=operator)
    services.retry_job(job_id=job.pk, actor=operator)
    services.pause_queue(queue="email", actor="ada (terminal)")
    entries = AuditEntry.objects.order_by("pk").values_list("actor__email", "actor_name", "thing_id", "what")
    assert list(entries) == [
        (operator.email, operator.email, str(job.pk), "Cancelled (was waiting)."),
        (operator.email, operator.email, str(job.pk), "Run again (was cancelled)."),
        (None, "ada (terminal)", "email", "Paused."),
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
    assert AuditEntry.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_jobs_with_one_dedup_key_one_runs_again(operator: User) -> None:
    jobs = [make_job(state="failed", dedup_key="report-1") for _ in range(6)]
    with ThreadPoolExecutor(max_workers=6) as pool:
        outcomes = list(pool.map(lambda job: _press(job.pk, operator), jobs))
    assert sorted(outcomes) == ["refused"] * 5 + ["run again"]
    assert Job.objects.filter(state="waiting").count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_member_that_is_run_again_while_its_flow_is_being_closed_brings_the_flow_with_it(operator: User) -> None:
    member, waiting = _a_flow_whose_member_has_failed()
    with another_connection() as other, ThreadPoolExecutor(1) as pool:
        with over(other):
            assert flows.close_if_ended(member.flow_id)
        pressed = pool.submit(_press, member.pk, operator)
        wait_until(lambda: pressed.done() or _somebody_waits_for_a_lock())
        other.commit()
        assert pressed.result(timeout=30) == "run again"
    assert [state_of(job.pk) for job in (member, waiting)] == ["waiting", "delayed"]
    assert not Flow.objects.exclude(closed_at=None).exists()


@pytest.mark.django_db(transaction=True)
def test_a_flow_whose_member_is_being_run_again_is_not_closed(operator: User) -> None:
    member, waiting = _a_flow_whose_member_has_failed()
    with another_connection() as other:
        with over(other):
            services.retry_job(job_id=member.pk, actor=operator)
        assert not flows.close_if_ended(member.flow_id)
        other.commit()
    assert [state_of(job.pk) for job in (member, waiting)] == ["waiting", "delayed"]
    assert not flows.close_if_ended(member.flow_id)


def _a_flow_whose_member_has_failed() -> tuple[Any, Job]:
    result = flows.fan_out(None, [sample_tasks.add.s(1, 2)], then=sample_tasks.add.s(1))
    Job.objects.filter(flow_id__isnull=False).update(state="failed", finished_at=timezone.now())
    return Job.objects.get(flow_id__isnull=False), Job.objects.get(pk=result.id)


def _somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


def _press(job_id: UUID, operator: User) -> str:
    try:
        services.retry_job(job_id=job_id, actor=operator)
    except services.ActionRefused:
        return "refused"
    finally:
        connections.close_all()
    return "run again"
