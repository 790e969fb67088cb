"""G03: whatever dies, the job runs again within seconds."""

import os
import signal
from pathlib import Path

import pytest
from django.utils import timezone

from jobs.models import Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until


def lines(path: Path, word: str) -> int:
    return path.read_text().count(f"{word} ") if path.exists() else 0


@pytest.mark.django_db(transaction=True)
def test_the_jobs_of_a_killed_worker_run_elsewhere(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    victim = processes.worker("default", concurrency=2)
    results = [sample_tasks.append_line.delay(str(file), "x", 2) for _ in range(2)]
    wait_until(lambda: lines(file, "begin") == 2)
    victim.kill()
    processes.worker("default", concurrency=2)
    for result in results:
        wait_until(lambda result=result: Job.objects.get(pk=result.id).state == "completed", timeout=30)  # type: ignore[misc]
    assert lines(file, "end") == 2
    assert set(Job.objects.values_list("attempt", "stalled_count")) == {(1, 1)}
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_the_job_of_a_killed_pool_process_runs_again_at_once(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    processes.worker("default", env={"JOBS_LEASE_SECONDS": "600"})
    result = sample_tasks.append_line.delay(str(file), "x", 1)
    wait_until(lambda: lines(file, "begin") == 1)
    os.kill(int(file.read_text().split()[-1]), signal.SIGKILL)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=30)
    assert lines(file, "end") == 1
    assert Job.objects.get().attempts.get().error.startswith("WorkerLostError: Worker exited prematurely: signal 9")
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_hangs_is_given_up(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    victim = processes.worker("default")
    sample_tasks.append_line.delay(str(file), "x", 1)
    wait_until(lambda: lines(file, "begin") == 1)
    victim.freeze()
    processes.worker("default")
    wait_until(lambda: Job.objects.get().state == "completed", timeout=30)
    dead = Worker.objects.get(pid=victim.pid)
    assert dead.dead_at is not None
    assert dead.dead_at <= timezone.now()
    assert_ledger_consistent()
