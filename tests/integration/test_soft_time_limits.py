"""Soft time limits in pools of processes: an exception in the body that they belong to, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from jobs.models import Job
from tests import dying_tasks, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

INCLUDE = ("tests.sample_tasks", "tests.dying_tasks")
# The lease outlasts the tests: no audit settles what a limit has broken.
ENV = {"JOBS_LEASE_SECONDS": "600"}
STRUCK = "It ran longer than its time limit, and was ended."


def no_job_is_left() -> bool:
    return not Job.objects.filter(state__in=["waiting", "delayed", "active"]).exists()


def test_a_soft_limit_of_the_row_or_of_the_task_fails_its_job_and_not_the_next_one(processes: Processes) -> None:
    worker = processes.worker("default", concurrency=1, include=INCLUDE, env=ENV)
    [pid] = worker.children()
    by_row = sample_tasks.run_for.apply_async((60,), soft_time_limit=0.3)
    by_task = dying_tasks.run_by_the_tasks_limit.delay(60)
    longer = dying_tasks.run_by_the_tasks_limit.apply_async((0.5,), soft_time_limit=600, time_limit=600)
    unlimited = sample_tasks.run_for.delay(0.5)
    wait_until(no_job_is_left)
    for struck in (by_row, by_task):
        job = Job.objects.get(pk=struck.id)
        assert (job.state, job.error, job.attempt, job.stalled_count) == ("failed", STRUCK, 1, 0)
    assert {Job.objects.get(pk=job.id).state for job in (longer, unlimited)} == {"completed"}
    assert worker.children() == [pid]
    assert_ledger_consistent()


def test_where_nobody_has_set_a_soft_limit_the_hard_one_alone_strikes(processes: Processes, tmp_path: Path) -> None:
    processes.worker("default", concurrency=2, include=INCLUDE, env=ENV)
    # Each is retried after its hard limit; a soft one would be a failure.
    for _ in range(12):
        sample_tasks.wait_for_file_at_first.apply_async((str(tmp_path / "never"),), time_limit=0.3)
    wait_until(no_job_is_left, timeout=90)
    assert set(Job.objects.values_list("state", "attempt", "result")) == {("completed", 2, 1)}
    assert_ledger_consistent()


@contextmanager
def row_held(job_id: str) -> Iterator[None]:
    """Nobody can end the job while the block runs."""
    with transaction.atomic():
        Job.objects.select_for_update().get(pk=job_id)
        yield


@pytest.mark.parametrize("is_atomic", [False, True])
def test_a_soft_limit_that_strikes_while_the_end_is_written_changes_nothing(
    processes: Processes, is_atomic: bool
) -> None:
    worker = processes.worker("default", concurrency=1, include=INCLUDE, env=ENV)
    [pid] = worker.children()
    task = sample_tasks.evaluate_atomically if is_atomic else sample_tasks.evaluate
    job = task.apply_async(("__import__('time').sleep(0.5)",), soft_time_limit=2)
    wait_until(lambda: Job.objects.get(pk=job.id).state == "active")
    with row_held(job.id):
        wait_until(lambda: f"Soft time limit (2.0s) exceeded for {task.name}[{job.id}]" in worker.output)
    wait_until(no_job_is_left)
    after = sample_tasks.add.delay(1, 2)
    wait_until(no_job_is_left)
    for one in (job, after):
        found = Job.objects.get(pk=one.id)
        assert (found.state, found.error, found.attempt, found.stalled_count) == ("completed", "", 1, 0)
    assert worker.children() == [pid]
    assert_ledger_consistent()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.variant)])
def test_a_soft_limit_that_comes_with_the_end_of_its_job_strikes_no_other_and_no_process(
    processes: Processes, count: int
) -> None:
    worker = processes.worker("default", concurrency=2, include=INCLUDE, env=ENV)
    pids = set(worker.children())
    limited, unlimited = [], []
    for number in range(count):
        # From well before the limit to well after it.
        seconds = 0.05 + 0.03 * number / count
        limited.append(sample_tasks.run_for.apply_async((seconds,), soft_time_limit=0.065).id)
        unlimited.append(sample_tasks.run_for.delay(0.03).id)
    wait_until(no_job_is_left, timeout=count)
    assert set(worker.children()) == pids
    jobs: Any = Job.objects.values_list("state", "error", "attempt", "stalled_count")
    assert set(jobs.filter(pk__in=unlimited)) == {("completed", "", 1, 0)}
    assert set(jobs.filter(pk__in=limited)) <= {("completed", "", 1, 0), ("failed", STRUCK, 1, 0)}
    assert_ledger_consistent()
