"""G13: SIGTERM loses no job and runs none twice."""

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
