"""G03: whatever dies, the job runs again within seconds."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group
from django.utils import timezone

from jobs.models import Job, Worker
from tests import crash_points, often_killed, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import DRAINING, variant
from tests.waiting import wait_until

# Where a run dies once: the attempts and stalls of its job afterwards, and how often the body wrote in all.
CRASHES = {
    "claim: committed": (1, 1, 1),
    "begin: before": (1, 1, 1),
    "begin: begun": (1, 1, 1),
    "run: in the middle": (1, 1, 2),
    "end: before": (1, 1, 2),
    "end: written": (1, 0, 1),
    "answer: committed": (1, 0, 1),
    "retry: before": (2, 1, 3),
    "retry: committed": (2, 0, 2),
}


def lines(path: Path, word: str) -> int:
    return path.read_text().count(f"{word} ") if path.exists() else 0


@pytest.mark.django_db(transaction=True)
def test_the_jobs_of_a_killed_worker_run_elsewhere(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    victim = processes.worker("default", concurrency=2)
    # On its own host its death would be noticed at once; to others only the lease tells of it.
    Worker.objects.update(pid_space="another host")
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
@pytest.mark.parametrize("successor", ["started after its death", "living beside it"])
def test_a_killed_worker_is_noticed_at_once_on_its_own_host(
    processes: Processes, tmp_path: Path, successor: str
) -> None:
    file, lease = tmp_path / "lines", {"JOBS_LEASE_SECONDS": "600"}
    victim = processes.worker("default", env=lease)
    if successor == "living beside it":
        processes.worker("crm", env=lease)
    result = sample_tasks.append_line.delay(str(file), "x", 0.5)
    wait_until(lambda: lines(file, "begin") == 1)
    victim.kill()
    processes.worker("default", env=lease)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=30)
    dead = Worker.objects.get(pid=victim.pid)
    assert Job.objects.get().started_at < dead.lease_expires_at, "it ran again only because the lease had ended"
    assert Job.objects.get().attempts.get().error == f"the process of worker {dead.node} (pid {dead.pid}) is gone"
    assert lines(file, "begin") == 2
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


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(400)
@DRAINING
@pytest.mark.parametrize("victim", ["process", "worker"])
def test_a_run_that_dies_at_any_point_ends_once_with_one_effect(
    processes: Processes, tmp_path: Path, victim: str, draining: bool
) -> None:
    tasks = {"atomic": crash_points.write_atomically}
    if victim == "process":
        tasks["plain"] = crash_points.write
    crashes = {(kind, point): str(uuid4()) for kind in tasks for point in CRASHES}
    points = tmp_path / "points"
    points.mkdir()
    for (kind, point), job_id in crashes.items():
        (points / job_id).write_text(point)
        tasks[kind].apply_async((f"{kind} {point}", int(point.startswith("retry"))), task_id=job_id)
    env = {"CRASH_POINTS": str(points), "CRASH_VICTIM": victim, "JOBS_LEASE_SECONDS": "2"}
    if draining:
        (tmp_path / "draining").mkdir()
        env["CRASH_DRAINING"] = str(tmp_path / "draining")

    def all_completed() -> bool:
        if not processes.started or processes.started[-1].status is not None:
            # As a supervisor does.
            processes.worker("default", include=["tests.crash_points"], env=env, waits=False)
        return not Job.objects.exclude(state="completed").exists()

    wait_until(all_completed, timeout=300)
    assert list(points.iterdir()) == []
    assert len([process for process in processes.started if process.status == -signal.SIGKILL]) == (
        # A claim is made by the main process.
        len(tasks) if victim == "process" else len(CRASHES)
    )
    output = "".join(process.output for process in processes.started)
    for (kind, point), job_id in crashes.items():
        attempts, stalls, writes = CRASHES[point]
        if kind == "atomic":
            # Written is not committed: the transaction of the body is still open. What it wrote went with it.
            stalls, writes = (1, 1) if point == "end: written" else (stalls, 1)
        job = Job.objects.get(pk=job_id)
        assert (kind, point, job.attempt, job.stalled_count) == (kind, point, attempts, stalls)
        assert (kind, point, Group.objects.filter(name__startswith=f"{kind} {point} ").count()) == (kind, point, writes)
        assert (kind, point, len(re.findall(f"completed id={job_id}", output))) <= (kind, point, 1)
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_by_default_the_job_of_a_worker_that_hangs_runs_again_when_the_lease_of_20_s_is_over(
    processes: Processes, tmp_path: Path
) -> None:
    defaults = {"JOBS_LEASE_SECONDS": "20", "JOBS_HEARTBEAT_SECONDS": "5", "JOBS_DISPATCH_SECONDS": "0.4"}
    file, gate = tmp_path / "lines", tmp_path / "gate"
    hangs = processes.worker("default", env=defaults)
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    processes.worker("default", env=defaults)
    hangs.freeze()
    gate.touch()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=60)
    assert not file.exists()
    (stalled,) = Job.objects.get(pk=result.id).attempts.all()
    assert stalled.outcome == "stalled"
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_holds_the_jobs_row_for_longer_than_the_lease_loses_nothing(processes: Processes) -> None:
    for _ in range(2):
        processes.worker("default", env={"JOBS_LEASE_SECONDS": "2", "JOBS_HEARTBEAT_SECONDS": "0.5"})
    result = sample_tasks.hold_the_row_for.delay(5)
    beside = [sample_tasks.run_for.delay(0.1) for _ in range(5)]
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=30)
    wait_until(lambda: Job.objects.filter(state="completed").count() == len(beside) + 1)
    assert Job.objects.get(pk=result.id).stalled_count == 0
    assert Worker.objects.filter(dead_at__isnull=True).count() == 2
    assert_ledger_consistent()


@pytest.mark.timeout(400)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kills", [20, variant(300)])
def test_pool_processes_are_killed_again_and_again_and_no_job_hangs(processes: Processes, kills: int) -> None:
    worker = processes.worker("default", concurrency=8, include=["tests.often_killed"], env={"OFTEN_KILLED": "1"})
    killed = jobs = 0

    def is_busy() -> bool:
        """The worker may end jobs as fast as they are enqueued: then it gets more of them."""
        nonlocal jobs
        if Job.objects.exclude(state="completed").count() < 50:
            for _ in range(100):
                jobs += 1
                often_killed.write_at_once.delay(f"effect-{jobs}")
        return Job.objects.filter(state="active").exists()

    while killed < kills:
        wait_until(is_busy)
        for pid in worker.children():
            # The pool may have ended it meanwhile.
            with suppress(ProcessLookupError):
                worker.kill_child(pid)
                killed += 1
    wait_until(lambda: Job.objects.filter(state="completed").count() == jobs, timeout=120)
    assert worker.status is None
    assert Group.objects.count() == jobs
    assert_ledger_consistent()
