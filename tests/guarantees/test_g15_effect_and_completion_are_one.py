"""G15: a database effect and its job's completion are one transaction, for tasks declared atomic and fenced blocks."""

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group

from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
FENCED_TASKS = pytest.mark.parametrize(
    "task", [sample_tasks.write_atomically, sample_tasks.write_fenced], ids=["atomic task", "fenced block"]
)


def written(result: Any) -> bool:
    """The run has written, in a transaction that is still open, and its progress is visible all the same."""
    return Job.objects.get(pk=result.id).progress_message == "written"


@FENCED_TASKS
def test_a_run_killed_after_its_write_leaves_one_effect(processes: Processes, tmp_path: Path, task: Any) -> None:
    victim = processes.worker("default")
    result = task.delay("effect", str(tmp_path / "gate"))
    wait_until(lambda: written(result))
    assert not Group.objects.exists()
    victim.kill()
    (tmp_path / "gate").touch()
    processes.worker("default")
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=30)
    assert Group.objects.count() == 1
    assert_ledger_consistent()


@FENCED_TASKS
@POOLS
def test_a_run_frozen_past_its_lease_adds_nothing_to_the_effect_of_another(
    processes: Processes, tmp_path: Path, task: Any, pool: str
) -> None:
    frozen = processes.worker("default", pool=pool)
    result = task.delay("effect", str(tmp_path / "gate"))
    wait_until(lambda: written(result))
    frozen.freeze()
    processes.worker("default", pool=pool)
    wait_until(lambda: Job.objects.get(pk=result.id).stalled_count == 1, timeout=20)
    wait_until(lambda: written(result), timeout=20)
    (tmp_path / "gate").touch()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    frozen.thaw()
    frozen.wait()
    assert Group.objects.count() == 1
    assert_ledger_consistent()


def test_an_atomic_task_that_fails_leaves_no_effect_but_its_progress(processes: Processes) -> None:
    processes.worker("default")
    result = sample_tasks.write_atomically_and_fail.delay("effect")
    wait_until(lambda: Job.objects.get(pk=result.id).state == "failed")
    job = Job.objects.get(pk=result.id)
    assert (job.error, job.progress_percent, job.progress_message) == ("after all, no", 50, "written")
    assert not Group.objects.exists()
    assert_ledger_consistent()


def test_the_effects_of_runs_that_were_retried_are_rolled_back_and_an_error_after_the_commit_is_no_failure(
    processes: Processes,
) -> None:
    worker = processes.worker("default")
    result = sample_tasks.write_atomically_and_retry.delay("effect")
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=30)
    assert Group.objects.count() == 1
    assert Job.objects.get(pk=result.id).result == 2
    wait_until(lambda: "a callback after its commit failed" in worker.output)
    assert_ledger_consistent()
