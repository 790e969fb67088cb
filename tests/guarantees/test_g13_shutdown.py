"""G13: SIGTERM loses no job and runs none twice."""

import os
import signal
from pathlib import Path

import pytest

from jobs.models import Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_sigterm_lets_the_running_jobs_finish(processes: Processes, tmp_path: Path, pool: str, group: bool) -> None:
    file = tmp_path / "lines"
    worker = processes.worker("default", pool=pool, concurrency=2)
    for _ in range(4):
        sample_tasks.append_line.delay(str(file), "x", 2)
    wait_until(lambda: file.exists() and file.read_text().count("begin ") == 2)
    worker.terminate(group=group)
    assert worker.wait() == 0
    assert sorted(Job.objects.values_list("state", flat=True)) == ["completed", "completed", "waiting", "waiting"]
    assert Worker.objects.get().dead_at is not None
    processes.worker("default", pool=pool, concurrency=2)
    wait_until(lambda: Job.objects.filter(state="completed").count() == 4)
    assert file.read_text().count("begin ") == 4
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("ending", ["grace period", "second SIGTERM", "SIGQUIT"])
def test_what_does_not_finish_in_time_is_handed_back_uncounted(
    processes: Processes, tmp_path: Path, pool: str, ending: str
) -> None:
    gate = tmp_path / "gate"
    # The lease outlasts the test: only a hand-back lets the job run again.
    leases = {"JOBS_LEASE_SECONDS": "600", "JOBS_GRACE_SECONDS": "1" if ending == "grace period" else "600"}
    worker = processes.worker("default", pool=pool, env=leases)
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    if ending == "SIGQUIT":
        os.kill(worker.pid, signal.SIGQUIT)
    else:
        worker.terminate()
    if ending == "second SIGTERM":
        wait_until(lambda: "takes no more jobs" in worker.output)
        worker.terminate()
    assert worker.wait() == 0
    job = Job.objects.get(pk=result.id)
    assert (job.state, job.attempt, job.stalled_count) == ("waiting", 1, 0)
    gate.touch()
    processes.worker("default", pool=pool)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_an_idle_worker_ends_at_once(processes: Processes) -> None:
    worker = processes.worker("default", env={"JOBS_GRACE_SECONDS": "600"})
    worker.terminate()
    assert worker.wait() == 0
    assert Worker.objects.get().dead_at is not None
