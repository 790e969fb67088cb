"""Hard time limits in pools that cannot end a run."""

from pathlib import Path
from typing import Any

import pytest

from jobs import health
from jobs.models import Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Process, Processes
from tests.waiting import wait_until


def living() -> Worker:
    return Worker.objects.get(dead_at__isnull=True)


def stick(gate: Path, task: Any = sample_tasks.wait_for_file) -> str:
    """Enqueues a job that runs past its limit, until the gate is there; returns its id once the limit has struck."""
    job_id: str = task.apply_async((str(gate),), time_limit=1).id
    wait_until(lambda: Job.objects.get(pk=job_id).state in ("failed", "delayed"))
    return job_id


def is_running(job_id: str) -> bool:
    return Job.objects.get(pk=job_id).progress_percent == 10


def is_completed(job_id: str) -> bool:
    return Job.objects.get(pk=job_id).state == "completed"


def run_another_job() -> None:
    result = sample_tasks.add.delay(1, 2)
    wait_until(lambda: is_completed(result.id), timeout=30)


def starts(worker: Process) -> int:
    return worker.output.count(" ready.")


@pytest.mark.django_db(transaction=True)
def test_a_thread_past_the_limit_fails_its_job_and_its_slot_is_free_once_it_returns(
    processes: Processes, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    worker = processes.worker("default", pool="threads", concurrency=3)
    stuck = stick(gate)
    assert Job.objects.get(pk=stuck).error == "It ran longer than its time limit of 1 seconds, and was ended."
    assert Job.objects.get(pk=stuck).attempts.get().outcome == "failed"
    wait_until(lambda: living().stuck_count == 1)
    reason = f"{living().node}: 1 of 3 slots are stuck in runs past a time limit or cancelled."
    assert reason in health.check().reasons
    run_another_job()

    gate.touch()
    wait_until(lambda: living().stuck_count == 0)
    assert reason not in health.check().reasons
    assert Job.objects.get(pk=stuck).state == "failed"
    assert f"id={stuck} failed, but the job was no longer this run's: not kept" in worker.output

    other = tmp_path / "other"
    for result in [sample_tasks.wait_for_file.delay(str(other)) for _ in range(3)]:
        wait_until(lambda result=result: is_running(result.id))  # type: ignore[misc]
    other.touch()
    wait_until(lambda: Job.objects.filter(state="completed").count() == 4)
    assert starts(worker) == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_job_past_its_limit_is_retried_beside_the_stuck_thread(processes: Processes, tmp_path: Path) -> None:
    processes.worker("default", pool="threads", concurrency=3)
    stuck = stick(tmp_path / "never", sample_tasks.wait_for_file_at_first)
    wait_until(lambda: is_completed(stuck))
    assert Job.objects.get(pk=stuck).attempts.get().outcome == "retried"
    assert living().stuck_count == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("grace_seconds", [600, 1], ids=["healthy jobs finish", "healthy jobs are handed back"])
def test_a_worker_half_of_whose_slots_are_stuck_replaces_itself(
    processes: Processes, tmp_path: Path, grace_seconds: int
) -> None:
    gate = tmp_path / "gate"
    # The lease outlasts the test: nothing is waited for but the hand-back.
    env = {"JOBS_GRACE_SECONDS": str(grace_seconds), "JOBS_LEASE_SECONDS": "600"}
    worker = processes.worker("default", pool="threads", concurrency=2, env=env)
    before = living()
    healthy = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: is_running(healthy.id))
    stick(tmp_path / "never")
    wait_until(lambda: "replaces itself" in worker.output)
    if grace_seconds > 1:
        gate.touch()
    wait_until(lambda: starts(worker) == 2, timeout=60)
    after = wait_until(lambda: Worker.objects.filter(dead_at__isnull=True).exclude(pk=before.pk).get())
    assert (after.pid, after.stuck_count) == (worker.pid, 0)
    gate.touch()
    wait_until(lambda: is_completed(healthy.id), timeout=30)
    job = Job.objects.get(pk=healthy.id)
    assert (job.attempt, job.stalled_count) == (1, 0)
    assert worker.output.count(f"started id={healthy.id}") == (1 if grace_seconds > 1 else 2)
    run_another_job()
    assert worker.status is None
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_the_solo_pool_settles_the_job_and_replaces_itself(processes: Processes, tmp_path: Path) -> None:
    worker = processes.worker("default", pool="solo")
    stick(tmp_path / "never")
    wait_until(lambda: starts(worker) == 2, timeout=60)
    run_another_job()
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_stuck_thread_does_not_keep_its_worker_from_ending(processes: Processes, tmp_path: Path) -> None:
    worker = processes.worker("default", pool="threads", concurrency=3, env={"JOBS_GRACE_SECONDS": "600"})
    stick(tmp_path / "never")
    worker.terminate()
    assert worker.wait() == 0
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_is_stopped_while_it_replaces_itself_ends(processes: Processes, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    worker = processes.worker("default", pool="threads", concurrency=2, env={"JOBS_GRACE_SECONDS": "600"})
    healthy = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: is_running(healthy.id))
    stick(tmp_path / "never")
    wait_until(lambda: "takes no more jobs" in worker.output)
    worker.terminate()
    gate.touch()
    assert worker.wait() == 0
    assert is_completed(healthy.id)
    assert starts(worker) == 1
    assert_ledger_consistent()
