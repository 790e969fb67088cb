"""G18: whatever was accepted comes to an end, and keeps no other job."""

import time
from typing import Any

import pytest
from django.db import connection, transaction

from jobs.models import LIVE, AuditEntry, Job
from tests import sample_tasks
from tests.processes import Processes
from tests.soak import odd_tasks, poison
from tests.variants import POOLS
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def ordinary() -> list[str]:
    """An ordinary job of each kind: at once, delayed, retried, with limits."""
    results: list[Any] = [
        sample_tasks.add.delay(1, 2),
        sample_tasks.add.apply_async((1, 2), countdown=1),
        sample_tasks.retry_in.delay(0.5),
        sample_tasks.add.apply_async((1, 2), rate_key="k", rate_limit="100/s"),
        sample_tasks.add.apply_async((1, 2), queue="crm"),
    ]
    return [result.id for result in results]


@POOLS
def test_odd_jobs_come_to_an_end_and_keep_no_ordinary_one(processes: Processes, pool: str) -> None:
    processes.worker("default", "crm", concurrency=2, pool=pool, include=("tests.sample_tasks", "tests.soak.odd_tasks"))
    ids = ordinary()
    for call in poison.ACCEPTED:
        with transaction.atomic():
            call()
        ids += ordinary()
    wait_until(lambda: Job.objects.filter(pk__in=ids, state="completed").count() == len(ids), timeout=60)
    wait_until(lambda: not Job.objects.filter(task=odd_tasks.odd.name, state__in=LIVE).exists(), timeout=60)


@pytest.mark.parametrize("call", poison.REFUSED)
def test_a_call_that_cannot_be_kept_is_refused_and_its_callers_transaction_goes_on(call: Any) -> None:
    with transaction.atomic():
        before = sample_tasks.add.delay(1, 2)
        poison.refuse(call)
        after = sample_tasks.add.delay(1, 2)
    assert {str(pk) for pk in Job.objects.values_list("pk", flat=True)} == {before.id, after.id}


def test_a_row_that_nobody_can_change_is_failed_in_the_end_and_keeps_no_other(processes: Processes) -> None:
    poison.install()
    try:
        processes.worker("default", "crm", concurrency=2)
        odd = [Job.objects.create(task=odd_tasks.stubborn.name, queue="default", state="delayed") for _ in range(2)]
        done: list[str] = []

        def is_over() -> bool:
            # Only beside others that can be processed is it known to be at fault.
            done.extend(ordinary())
            # So that the loop makes some dozens of jobs, and not thousands.
            time.sleep(0.4)
            return Job.objects.filter(pk__in=[job.pk for job in odd], state="failed").count() == len(odd)

        wait_until(is_over, timeout=60)
        wait_until(lambda: Job.objects.filter(pk__in=done, state="completed").count() == len(done), timeout=30)
        assert AuditEntry.objects.filter(thing_id=str(odd[0].pk), actor_name="the dispatcher").count() == 1
        assert "this row is stubborn" in Job.objects.get(pk=odd[0].pk).error
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION soak_refuse() CASCADE")
