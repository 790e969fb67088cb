"""G08: one job per dedup key, under any number of concurrent callers."""

import json
from pathlib import Path

import pytest

from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

PROCESSES, CALLS = 8, 125

# Each process says that it is ready, waits for the others, then calls as fast as it can.
CALL_AT_THE_GATE = """
import json, pathlib, time
import django
django.setup()
from tests.sample_tasks import add
folder = pathlib.Path({folder!r})
(folder / "ready-{number}").touch()
while not (folder / "gate").exists():
    time.sleep(0.01)
ids = [add.apply_async(({number}, call), dedup_key="sum", **{options!r}).id for call in range({calls})]
(folder / "ids-{number}").write_text(json.dumps(ids))
"""


def ids_of_calls(processes: Processes, folder: Path, **options: object) -> list[str]:
    """Calls with one key from many processes at once; returns the ids that they were given, in no order."""
    scripts = [
        processes.start(
            "tests.script",
            env={"SCRIPT": CALL_AT_THE_GATE.format(folder=str(folder), number=number, calls=CALLS, options=options)},
        )
        for number in range(PROCESSES)
    ]
    wait_until(lambda: len(list(folder.glob("ready-*"))) == PROCESSES, timeout=60)
    (folder / "gate").touch()
    for script in scripts:
        assert script.wait(timeout=60) == 0
    ids = [job_id for file in folder.glob("ids-*") for job_id in json.loads(file.read_text())]
    assert len(ids) == PROCESSES * CALLS
    return ids


@pytest.mark.django_db(transaction=True)
def test_a_thousand_concurrent_calls_with_one_key_from_eight_processes_make_one_job(
    processes: Processes, tmp_path: Path
) -> None:
    ids = ids_of_calls(processes, tmp_path, countdown=3600)
    assert set(ids) == {str(Job.objects.get().pk)}
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_thousand_concurrent_calls_with_a_throttled_key_make_one_job_though_it_ends_meanwhile(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default")
    ids = ids_of_calls(processes, tmp_path, dedup_seconds=3600)
    assert set(ids) == {str(Job.objects.get().pk)}
    wait_until(lambda: Job.objects.get().state == "completed")
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_of_a_thousand_concurrent_calls_the_latest_always_runs_and_every_caller_knows_a_job_that_ran(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default", concurrency=2)
    ids = ids_of_calls(processes, tmp_path, dedup_latest=True)
    last = sample_tasks.add.apply_async((1000, 1000), dedup_key="sum", dedup_latest=True)
    wait_until(lambda: not Job.objects.filter(finished_at__isnull=True).exists(), timeout=60)
    assert Job.objects.get(pk=last.id).result == 2000
    assert set(Job.objects.values_list("state", flat=True)) == {"completed"}
    assert {str(pk) for pk in Job.objects.values_list("pk", flat=True)} == {*ids, last.id}
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_what_came_for_the_job_of_a_killed_worker_runs_after_it_has_failed(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default")
    options = {"dedup_key": "poison", "dedup_latest": True}
    poison = sample_tasks.kill_own_process.apply_async((99,), **options)
    wait_until(lambda: Job.objects.get(pk=poison.id).started_at is not None)
    latest = sample_tasks.add.apply_async((1, 2), **options)
    wait_until(lambda: Job.objects.filter(pk=latest.id, state="completed").exists(), timeout=60)
    assert latest.id == poison.id or Job.objects.get(pk=poison.id).state == "failed"
    assert_ledger_consistent()
