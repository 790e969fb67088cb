"""A database restored from a backup that was taken while jobs were running."""

from datetime import timedelta
from io import StringIO
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from jobs import settle
from jobs.models import Job, Worker
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db


def restore(choice: str) -> str:
    printed = StringIO()
    call_command("restored", choice, stdout=printed)
    return printed.getvalue()


def backup_with_running_jobs() -> tuple[Worker, list[settle.Run]]:
    """What a backup holds: a worker whose lease has ended long since, and two jobs that it was running."""
    worker = make_worker()
    runs = [claim_job(make_job(args=[1, 2], kwargs={}), worker, name) for name in ("first", "second")]
    Worker.objects.filter(pk=worker.pk).update(lease_expires_at=timezone.now() - timedelta(days=1))
    return worker, runs


def test_running_jobs_wait_again_and_nothing_is_counted() -> None:
    worker, runs = backup_with_running_jobs()
    assert restore("--run-again") == "2 jobs run again.\n"
    jobs = [Job.objects.get(pk=run.job_id) for run in runs]
    assert [(job.state, job.attempt, job.stalled_count) for job in jobs] == [("waiting", 1, 0)] * 2
    assert Worker.objects.get(pk=worker.pk).dead_at is not None
    assert_ledger_consistent()


def test_running_jobs_fail_with_a_sentence_and_can_be_run_again() -> None:
    _, runs = backup_with_running_jobs()
    assert restore("--fail") == "2 jobs failed.\n"
    job = Job.objects.get(pk=runs[0].job_id)
    assert job.state == "failed"
    assert "running when the backup was taken" in job.error
    assert [attempt.outcome for attempt in job.attempts.all()] == ["failed"]
    assert_ledger_consistent()


@pytest.mark.parametrize(("choice", "state"), [("--run-again", "waiting"), ("--fail", "failed")])
def test_a_row_that_nobody_can_change_keeps_no_other(choice: str, state: str) -> None:
    _, (first, second) = backup_with_running_jobs()
    refuse_changes_of(first.job_id)
    assert restore(choice).startswith("1 job")
    assert [state_of(run.job_id) for run in (first, second)] == ["active", state]


def test_a_member_that_nobody_can_change_keeps_no_other_from_being_stopped() -> None:
    _, (first, second) = backup_with_running_jobs()
    refuse_changes_of(first.job_id)
    assert settle.stop(Job.objects.all(), reason="no more") == 1
    assert [state_of(run.job_id) for run in (first, second)] == ["active", "cancelled"]


def refuse_changes_of(job_id: UUID) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'this row is stubborn'; END $$;"
            f" CREATE TRIGGER refuse BEFORE UPDATE ON jobs_job FOR EACH ROW WHEN (OLD.id = '{job_id}')"
            " EXECUTE FUNCTION refuse()"
        )


@pytest.mark.parametrize("choice", ["--run-again", "--fail"])
def test_the_second_time_there_is_nothing_left_to_do(choice: str) -> None:
    backup_with_running_jobs()
    restore(choice)
    before = list(Job.objects.order_by("pk").values())
    assert restore(choice).startswith("0 jobs")
    assert list(Job.objects.order_by("pk").values()) == before


@pytest.mark.parametrize("choice", ["--run-again", "--fail"])
def test_while_a_worker_lives_its_jobs_are_not_touched(choice: str) -> None:
    run = claim_job(make_job(), make_worker(node="worker-email@there"))
    with pytest.raises(CommandError, match="worker-email@there has a lease"):
        restore(choice)
    assert state_of(run.job_id) == "active"


def test_jobs_that_were_not_running_are_left_as_they_are() -> None:
    jobs = [
        make_job(state=state, **({"error": "broken"} if state == "failed" else {})) for state in ("waiting", "failed")
    ]
    restore("--fail")
    assert [state_of(job.pk) for job in jobs] == ["waiting", "failed"]


@pytest.mark.django_db(transaction=True)
def test_a_worker_started_afterwards_runs_them(processes: Processes) -> None:
    _, runs = backup_with_running_jobs()
    restore("--run-again")
    processes.worker("default")
    wait_until(lambda: {state_of(run.job_id) for run in runs} == {"completed"}, timeout=60)
    assert {job.stalled_count for job in Job.objects.all()} == {0}
