"""G04: a worker that was given up and wakes up again writes nothing, and ends itself."""

from pathlib import Path

import pytest

from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
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
