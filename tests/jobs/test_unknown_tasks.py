"""A worker of another version meets a job whose task it does not know."""

import pytest
from django.db.models.functions import Now

import media_jobs.tasks
from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import make_job
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it_and_holds_nobody_up(processes: Processes) -> None:
    processes.worker("default", include=())
    unknown = make_job(task=sample_tasks.add.name, args=[1, 2])
    wait_until(lambda: Job.objects.get(pk=unknown.pk).refused_count >= 2)
    known = media_jobs.tasks.remove_orphans.delay()
    wait_until(lambda: Job.objects.get(pk=known.id).state == "completed")
    assert Job.objects.get(pk=unknown.pk).state in ("delayed", "waiting")
    processes.worker("default")

    def is_done() -> bool:
        # The one that does not know it may take it again and again; its delays grow.
        Job.objects.filter(pk=unknown.pk, state="delayed").update(run_at=Now())
        return Job.objects.get(pk=unknown.pk).state == "completed"

    wait_until(is_done)
    assert Job.objects.get(pk=unknown.pk).attempt == 1
    assert_ledger_consistent()
