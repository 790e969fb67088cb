"""G13: SIGTERM loses no job and runs none twice."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings

from devstack.throwaway import Server
from jobs.models import Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import POOLS, variant
from tests.waiting import wait_until

_LOAD = 200


@pytest.mark.django_db(transaction=True)
@POOLS
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
@pytest.mark.parametrize(
    ("pool", "ending"),
    [
        ("prefork", "grace period"),
        ("prefork", "second SIGTERM"),
        ("prefork", "SIGQUIT"),
        # Its threads cannot be ended, so the process goes with them.
        ("threads", "grace period"),
        variant("threads", "second SIGTERM"),
        variant("threads", "SIGQUIT"),
    ],
)
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
@POOLS
def test_a_postgresql_that_hangs_does_not_keep_a_worker_from_ending(
    processes: Processes, postgres_server: Server, tmp_path: Path, pool: str
) -> None:
    worker = processes.worker("default", pool=pool, env={"JOBS_GRACE_SECONDS": "600"})
    result = sample_tasks.wait_for_file.delay(str(tmp_path / "never"))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    postgres_server.freeze()
    os.kill(worker.pid, signal.SIGQUIT)
    assert worker.wait() == 0
    assert "Gone. PostgreSQL hangs" in worker.output
    postgres_server.thaw()
    (tmp_path / "never").touch()
    processes.worker("default", pool=pool)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@POOLS
def test_a_job_that_needs_longer_than_the_lease_to_finish_is_not_taken_from_a_worker_that_ends(
    processes: Processes, tmp_path: Path, pool: str
) -> None:
    gate = tmp_path / "gate"
    worker = processes.worker("default", pool=pool, env={"JOBS_GRACE_SECONDS": "600"})
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    other = processes.worker("default", pool=pool)
    worker.terminate()
    begun = Worker.objects.get(pid=worker.pid).lease_expires_at
    lease = timedelta(seconds=settings.JOBS_LEASE_SECONDS)
    wait_until(lambda: Worker.objects.get(pid=worker.pid).lease_expires_at > begun + 2 * lease, timeout=60)
    gate.touch()
    assert worker.wait() == 0
    assert Job.objects.get(pk=result.id).state == "completed"
    assert f"started id={result.id}" not in other.output
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@POOLS
@pytest.mark.parametrize("group", [variant(False, id="process"), pytest.param(True, id="group")])
def test_under_load_no_job_is_lost_or_run_twice(processes: Processes, tmp_path: Path, pool: str, group: bool) -> None:
    file = tmp_path / "lines"
    for number in range(_LOAD):
        sample_tasks.append_line.delay(str(file), f"job-{number};", 0.05)
    for share in (0.2, 0.5):
        workers = [processes.worker("default", pool=pool, concurrency=2) for _ in range(2)]
        wait_until(lambda share=share: Job.objects.filter(state="completed").count() > _LOAD * share, timeout=60)  # type: ignore[misc]
        for worker in workers:
            worker.terminate(group=group)
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
        assert not Job.objects.filter(state="active").exists()
    processes.worker("default", pool=pool, concurrency=2)
    wait_until(lambda: Job.objects.filter(state="completed").count() == _LOAD, timeout=60)
    assert [file.read_text().count(f"begin job-{number};") for number in range(_LOAD)] == [1] * _LOAD
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_an_idle_worker_ends_at_once(processes: Processes) -> None:
    worker = processes.worker("default", env={"JOBS_GRACE_SECONDS": "600"})
    worker.terminate()
    assert worker.wait() == 0
    assert Worker.objects.get().dead_at is not None
