"""G08: one job per dedup key, under any number of concurrent callers."""

from pathlib import Path

import pytest

from jobs.models import Job
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

PROCESSES, CALLS = 8, 125

# Each process says that it is ready, waits for the others, then calls as fast as it can.
ENQUEUE_AT_THE_GATE = """
import pathlib, time
import django
django.setup()
from tests.sample_tasks import add
folder = pathlib.Path({folder!r})
(folder / "ready-{number}").touch()
while not (folder / "gate").exists():
    time.sleep(0.01)
ids = [add.apply_async((1, 2), dedup_key="sum", countdown=3600).id for _ in range({calls})]
(folder / "ids-{number}").write_text("\\n".join(ids))
"""


@pytest.mark.django_db(transaction=True)
def test_a_thousand_concurrent_calls_with_one_key_from_eight_processes_make_one_job(
    processes: Processes, tmp_path: Path
) -> None:
    for number in range(PROCESSES):
        script = ENQUEUE_AT_THE_GATE.format(folder=str(tmp_path), number=number, calls=CALLS)
        processes.start("tests.script", env={"SCRIPT": script})
    wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == PROCESSES, timeout=60)
    (tmp_path / "gate").touch()
    for process in processes.started:
        assert process.wait(timeout=60) == 0
    ids = [line for file in tmp_path.glob("ids-*") for line in file.read_text().split()]
    assert len(ids) == PROCESSES * CALLS
    assert set(ids) == {str(Job.objects.get().pk)}
    assert_ledger_consistent()
