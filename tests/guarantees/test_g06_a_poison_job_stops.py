"""G06: a job that kills its worker is tried a bounded number of times, then fails with the evidence."""

import pytest

from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
def test_a_job_that_kills_its_process_again_and_again_fails(processes: Processes) -> None:
    processes.worker("default")
    poison, healthy = sample_tasks.kill_own_process.delay(100), sample_tasks.kill_own_process.delay(1)
    wait_until(lambda: Job.objects.get(pk=poison.id).state == "failed", timeout=30)
    assert "died 2 times" in Job.objects.get(pk=poison.id).error
    wait_until(lambda: Job.objects.get(pk=healthy.id).state == "completed", timeout=30)
    assert_ledger_consistent()
