"""The whole way with a real worker: jobs end, are counted, and go; no figure changes."""

from datetime import timedelta

import pytest
from celery.result import AsyncResult
from django.db.models.functions import Now
from django.test import Client

from jobs.models import Job, JobEvent, QueueControl, Stat
from tests import sample_tasks
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
def test_jobs_are_counted_and_then_removed_and_the_counts_stay(processes: Processes, client: Client) -> None:
    QueueControl.objects.create(name="default", keep_completed_count=2, keep_failed_count=1)
    processes.worker("default", concurrency=2)
    sums = [sample_tasks.add.delay(number, number) for number in range(20)]
    for _ in range(3):
        sample_tasks.fail_for_good.delay()
    retried = sample_tasks.retry_in.delay(0)
    wait_until(lambda: not Job.objects.filter(finished_at__isnull=True).exists())
    wait_until(lambda: not JobEvent.objects.exists(), reason="the worker's dispatcher has folded the events")

    def figures() -> dict[str, int]:
        told: dict[str, int] = client.get("/health").json()["queues"]["default"]
        return told

    before = figures()
    assert (before["completed"], before["failed"]) == (21, 3)
    assert AsyncResult(sums[0].id).get(timeout=5) == 0
    Job.objects.update(finished_at=Now() - timedelta(hours=2))
    last = retried.id
    Job.objects.filter(pk=last).update(finished_at=Now() - timedelta(hours=1, minutes=1))
    wait_until(lambda: Job.objects.count() == 3, timeout=60)
    assert Job.objects.filter(pk=last).exists()
    assert figures() == before
    assert sum(Stat.objects.values_list("retried_count", flat=True)) == 1
    assert sum(1 for result in sums if AsyncResult(result.id).state == "PENDING") == 19
