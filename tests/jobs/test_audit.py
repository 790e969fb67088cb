"""A worker's look at itself."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now

from jobs.models import Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import make_job
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
def test_a_job_that_its_worker_owns_and_does_not_run_is_run_again(processes: Processes) -> None:
    processes.worker("default")
    lost = make_job(
        task=sample_tasks.add.name,
        args=[1, 2],
        state="active",
        worker_id=Worker.objects.get().pk,
        claim_token="lost",
        created_at=Now() - timedelta(seconds=1),
        started_at=Now(),
    )
    wait_until(lambda: Job.objects.get(pk=lost.pk).state == "completed", timeout=30)
    assert Job.objects.get(pk=lost.pk).attempts.get().error == "its worker has no run of it any more"
    assert_ledger_consistent()
