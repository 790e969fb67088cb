"""A worker of another version meets a job whose task it does not know."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

import media_jobs.tasks
from jobs import selectors
from jobs.first_tasks import first_tasks
from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import make_job, make_worker
from tests.jobs.plans import rows_read
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it_and_holds_nobody_up(processes: Processes) -> None:
    processes.worker("default", include=())
    unknown = make_job(task=sample_tasks.add.name, args=[1, 2], priority=0)
    before = Job.objects.filter(pk=unknown.pk).values().get()
    for _ in range(3):
        media_jobs.tasks.remove_orphans.delay().get(timeout=30)
    assert Job.objects.filter(pk=unknown.pk).values().get() == before
    assert selectors.unknown_tasks() == {"default": {sample_tasks.add.name}}
    processes.worker("default")
    wait_until(lambda: Job.objects.get(pk=unknown.pk).state == "completed")
    assert Job.objects.get(pk=unknown.pk).attempt == 1
    assert selectors.unknown_tasks() == {}
    assert_ledger_consistent()


@pytest.mark.django_db
def test_a_task_that_no_living_worker_of_its_queue_knows_is_named_with_its_queue() -> None:
    make_worker(queues=["default", "images"], tasks=["known"])
    make_worker(queues=["default"], tasks=["known", "new"])
    make_worker(queues=["images"], tasks=["new"], dead_at="2026-01-01T00:00:00Z")
    for queue in ("default", "images", "video"):
        for task in ("known", "new", "gone"):
            make_job(queue=queue, task=task)
    make_job(task="delayed", state="delayed")
    # A queue without a worker is said to have none.
    assert selectors.unknown_tasks() == {"default": {"gone"}, "images": {"new", "gone"}}


@pytest.mark.django_db
def test_where_a_worker_does_not_tell_its_tasks_none_of_its_queue_is_unknown() -> None:
    make_worker(queues=["default", "images"], tasks=["known"])
    make_worker(queues=["images"], tasks=[])
    for queue in ("default", "images"):
        make_job(queue=queue, task="gone")
    assert selectors.known_tasks()["images"] is None
    assert selectors.unknown_tasks() == {"default": {"gone"}}


@pytest.mark.django_db
def test_tasks_behind_a_backlog_of_known_ones_are_found_once_they_are_at_the_head_of_their_priority() -> None:
    make_worker(queues=["default"], tasks=["known"])
    Job.objects.bulk_create(Job(task="known", queue="default", state="waiting", priority=5) for _ in range(200))
    make_job(task="gone", priority=6)
    hidden = make_job(task="hidden", priority=5)
    assert selectors.unknown_tasks() == {"default": {"gone"}}
    Job.objects.filter(task="known").delete()
    assert selectors.unknown_tasks() == {"default": {"gone", hidden.task}}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "own", [{}, {"rate_key": "k", "rate_limit": "100/s"}, {"concurrency_key": "u", "concurrency_limit": 1}]
)
def test_jobs_of_one_unknown_task_hide_no_other_whether_they_have_limits_or_not(own: dict[str, Any]) -> None:
    make_worker(queues=["default"], tasks=["known"])
    for task in (*["first"] * 30, "second"):
        make_job(task=task, **own)
    assert selectors.unknown_tasks() == {"default": {"first", "second"}}


@pytest.mark.django_db
def test_a_bounded_number_of_jobs_is_looked_at() -> None:
    for key in (None, *(f"key {number}" for number in range(120))):
        like = {"task": "known", "queue": "default", "state": "waiting", "rate_key": key, "lane": key or ""}
        Job.objects.bulk_create(Job(**like) for _ in range(50 if key else 2_000))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    with CaptureQueriesContext(connection) as queries:
        first_tasks(["default"])
    [query] = queries
    # Two hundred without limits, and forty of each of fifty lanes.
    assert rows_read(query["sql"]) < 4_000
