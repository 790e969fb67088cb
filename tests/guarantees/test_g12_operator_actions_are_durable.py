"""G12: what an operator does holds over restarts of everything, is done once, and is recorded."""

from pathlib import Path

import pytest

from accounts.models import User
from jobs import services
from jobs.models import AuditEntry, Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Process, Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

AT_ONCE = {"JOBS_CANCEL_GRACE_SECONDS": "0.5"}
NEVER = {"JOBS_CANCEL_GRACE_SECONDS": "600"}


@pytest.fixture
def operator(transactional_db: None) -> User:
    return User.objects.create_user("operator@example.com", name="Operator", is_staff=True)


def state(job_id: str) -> str:
    return Job.objects.values_list("state", flat=True).get(pk=job_id)


def is_running(job_id: str) -> bool:
    return Job.objects.get(pk=job_id).progress_percent == 10


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def run_another_job() -> None:
    result = sample_tasks.add.delay(1, 2)
    wait_until(lambda: state(result.id) == "completed")


# -- Cancelling --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("asks", ["progress", "check_cancelled"])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_running_job_that_asks_is_told_and_stops_by_itself(
    processes: Processes, operator: User, tmp_path: Path, pool: str, asks: str
) -> None:
    file = tmp_path / "lines"
    worker = processes.worker("default", pool=pool, env=NEVER)
    result = sample_tasks.count_for_ever.delay(str(file), asks)
    wait_until(lambda: len(lines(file)) == 1)
    services.cancel_job(job_id=result.id, actor=operator)
    wait_until(lambda: len(lines(file)) == 2)
    (begun, told), pids = zip(*(line.split() for line in lines(file)), strict=True)
    assert (begun, told) == ("begin", "JobCancelled")
    run_another_job()
    assert state(result.id) == "cancelled"
    assert f"cancelled id={result.id}" in worker.output
    assert "is ended" not in worker.output
    if pool == "prefork":
        assert worker.children() == [int(pids[0])]
    assert_ledger_consistent()


def test_the_process_of_a_cancelled_job_that_goes_on_is_ended_and_its_neighbours_is_not(
    processes: Processes, operator: User, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    worker = processes.worker("default", concurrency=2, env=AT_ONCE)
    stubborn = sample_tasks.go_on_at_first.delay(str(tmp_path / "lines"), str(tmp_path / "never"))
    neighbour = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: is_running(stubborn.id) and is_running(neighbour.id))
    (pid,) = (int(line.split()[1]) for line in lines(tmp_path / "lines"))
    services.cancel_job(job_id=stubborn.id, actor=operator)
    wait_until(lambda: pid not in worker.children())
    wait_until(lambda: len(worker.children()) == 2)
    run_another_job()
    gate.touch()
    wait_until(lambda: state(neighbour.id) == "completed")
    job = Job.objects.get(pk=stubborn.id)
    assert (job.state, job.stalled_count, job.error) == ("cancelled", 0, "Cancelled by operator@example.com.")
    assert job.attempts.get().outcome == "cancelled"
    assert f"id={stubborn.id} was cancelled and goes on" in worker.output
    assert_ledger_consistent()


def test_a_thread_that_goes_on_with_a_cancelled_job_counts_as_stuck(
    processes: Processes, operator: User, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    processes.worker("default", pool="threads", concurrency=3, env=AT_ONCE)
    result = sample_tasks.go_on_at_first.delay(str(tmp_path / "lines"), str(gate))
    wait_until(lambda: is_running(result.id))
    services.cancel_job(job_id=result.id, actor=operator)
    wait_until(lambda: Worker.objects.get().stuck_count == 1)
    run_another_job()
    gate.touch()
    wait_until(lambda: Worker.objects.get().stuck_count == 0)
    assert state(result.id) == "cancelled"
    assert_ledger_consistent()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_that_is_cancelled_and_run_again_at_once_runs_beside_its_old_run(
    processes: Processes, operator: User, tmp_path: Path, pool: str
) -> None:
    worker = processes.worker("default", pool=pool, concurrency=3, env=AT_ONCE)
    file = tmp_path / "lines"
    result = sample_tasks.go_on_at_first.delay(str(file), str(tmp_path / "never"))
    wait_until(lambda: is_running(result.id))
    services.cancel_job(job_id=result.id, actor=operator)
    services.retry_job(job_id=result.id, actor=operator)
    wait_until(lambda: state(result.id) == "completed")
    old, new = (int(line.split()[1]) for line in lines(file))
    if pool == "prefork":
        wait_until(lambda: old not in worker.children())
        assert new in worker.children()
    else:
        wait_until(lambda: Worker.objects.get().stuck_count == 1)
    run_another_job()
    assert state(result.id) == "completed"
    assert Job.objects.get(pk=result.id).result == f"ran by {new}"
    assert_ledger_consistent()


@pytest.mark.parametrize("task", [sample_tasks.write_atomically, sample_tasks.write_fenced])
def test_what_a_cancelled_run_wrote_in_its_transaction_is_rolled_back(
    processes: Processes, operator: User, tmp_path: Path, task: object
) -> None:
    gate = tmp_path / "gate"
    for grace in (NEVER, AT_ONCE):
        worker = processes.worker("default", env=grace)
        result = task.delay("cancelled", str(gate))  # type: ignore[attr-defined]
        wait_until(lambda result=result: Job.objects.get(pk=result.id).progress_percent == 50)  # type: ignore[misc]
        services.cancel_job(job_id=result.id, actor=operator)
        if grace is NEVER:
            gate.touch()
        run_another_job()
        assert state(result.id) == "cancelled"
        assert sample_tasks.effects() == 0
        gate.unlink(missing_ok=True)
        worker.terminate()
        worker.wait()
    assert_ledger_consistent()


def test_a_cancellation_outlives_its_operator_and_the_worker_that_was_to_carry_it_out(
    processes: Processes, operator: User, tmp_path: Path
) -> None:
    worker = processes.worker("default", env=AT_ONCE)
    result = sample_tasks.go_on_at_first.delay(str(tmp_path / "lines"), str(tmp_path / "never"))
    wait_until(lambda: is_running(result.id))
    worker.freeze()
    act_and_die(processes, f"services.cancel_job(job_id={result.id!r}, actor='operator')")
    worker.kill()
    processes.worker("default", env=AT_ONCE)
    run_another_job()
    assert state(result.id) == "cancelled"
    assert len(lines(tmp_path / "lines")) == 1
    assert AuditEntry.objects.get().what == "Cancelled (was active)."
    assert_ledger_consistent()


def act_and_die(processes: Processes, action: str) -> Process:
    """Somebody acts, and dies right after the commit, before any hint."""
    script = processes.start("tests.script", env={"SCRIPT": ACT_AND_DIE.format(action=action)})
    assert script.wait() == 9
    return script


ACT_AND_DIE = """
import os
import django
django.setup()
from django.db import transaction
from jobs import services
with transaction.atomic():
    transaction.on_commit(lambda: os._exit(9))
    {action}
"""
