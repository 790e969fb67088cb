"""G01: rolled back, no job; committed, the job will run, also when the process dies right after the commit."""

import pytest

from devstack.throwaway import Server
from jobs.models import Job
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

ENQUEUE_AND_DIE = """
import os
import django
django.setup()
from django.db import transaction
from tests.sample_tasks import add
with transaction.atomic():
    {before}
    add.delay(1, 2)
    {after}
"""


def run_script(processes: Processes, before: str = "pass", after: str = "pass") -> int:
    script = processes.start("tests.script", env={"SCRIPT": ENQUEUE_AND_DIE.format(before=before, after=after)})
    return script.wait()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_dies_between_the_commit_and_the_ring_has_enqueued(processes: Processes) -> None:
    assert run_script(processes, before="transaction.on_commit(lambda: os._exit(9))") == 9
    assert Job.objects.get().state == "waiting"
    processes.worker("default")
    wait_until(lambda: Job.objects.get().state == "completed")
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_dies_right_after_the_ring_has_enqueued_once(processes: Processes) -> None:
    assert run_script(processes, after="transaction.on_commit(lambda: os._exit(9))") == 9
    worker = processes.worker("default")
    wait_until(lambda: Job.objects.get().state == "completed")
    assert worker.output.count("started id=") == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_dies_while_redis_takes_its_ring_has_enqueued_once(
    processes: Processes, redis_server: Server
) -> None:
    redis_server.freeze()
    # The ring is on its way: Redis may take it when it goes on, or may not.
    assert run_script(processes, after="transaction.on_commit(lambda: os._exit(9))") == 9
    redis_server.thaw()
    worker = processes.worker("default")
    wait_until(lambda: Job.objects.get().state == "completed")
    assert worker.output.count("started id=") == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_dies_before_the_commit_has_enqueued_nothing(processes: Processes) -> None:
    assert run_script(processes, after="os._exit(9)") == 9
    assert not Job.objects.exists()
