"""G04: a worker that was given up and wakes up again writes nothing, and ends itself."""

from pathlib import Path

import pytest
from django.contrib.auth import get_user_model

from jobs import services, settle
from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import claim_job, make_job, make_worker
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
@POOLS
def test_a_worker_frozen_past_its_lease_cannot_finish_what_another_has_finished(
    processes: Processes, tmp_path: Path, pool: str
) -> None:
    gate = tmp_path / "gate"
    frozen = processes.worker("default", pool=pool)
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    frozen.freeze()
    processes.worker("default", pool=pool)
    wait_until(lambda: Job.objects.get(pk=result.id).stalled_count == 1, timeout=20)
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10, timeout=20)
    gate.touch()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    before = Job.objects.filter(pk=result.id).values().get()
    frozen.thaw()
    frozen.wait()
    assert "was given up for dead" in frozen.output
    assert Job.objects.filter(pk=result.id).values().get() == before
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_after_a_hand_back_a_stall_and_an_operators_retry_no_earlier_run_writes_anything() -> None:
    operator = get_user_model().objects.create_superuser(email="operator@example.org", password="x" * 12)
    job, workers, zombies = make_job(), [make_worker() for _ in range(4)], []
    zombies.append(claim_job(job, workers[0]))
    settle.hand_back(workers[0].pk)
    zombies.append(claim_job(job, workers[1]))
    settle.lose(Job.objects.filter(pk=job.pk), evidence="its worker fell silent")
    zombies.append(claim_job(job, workers[2]))
    settle.fail(zombies[-1], error="no")
    services.retry_job(job_id=job.pk, actor=operator)
    owner = claim_job(job, workers[3])
    before = Job.objects.filter(pk=job.pk).values().get()
    for zombie in zombies:
        assert not settle.report(zombie, progress_percent=99)
        assert not settle.complete(zombie, result="of an earlier run")
        assert not settle.retry(zombie, delay=0, error="of an earlier run")
        assert not settle.fail(zombie, error="of an earlier run")
        assert not settle.cancel(zombie, reason="of an earlier run")
        assert not settle.give_back(zombie)
    settle.hand_back(workers[0].pk)
    assert Job.objects.filter(pk=job.pk).values().get() == before
    assert settle.complete(owner, result="of its owner")
