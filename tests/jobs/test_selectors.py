"""Counts of queues, and that PostgreSQL can answer them from its indexes."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import selectors
from jobs.models import Job, QueueControl
from tests.jobs.factories import make_job, make_worker
from tests.jobs.plans import rows_read

pytestmark = pytest.mark.django_db


def test_the_oldest_waiting_job_tells_how_far_a_queue_is_behind() -> None:
    make_job(queue="email", run_at=Now() - timedelta(seconds=90))
    make_job(queue="email", run_at=Now() - timedelta(seconds=30))
    statuses = selectors.queue_statuses()
    assert 90 <= (statuses["email"].oldest_waiting_seconds or 0) < 100
    assert statuses["images"].oldest_waiting_seconds is None


def test_an_undeclared_queue_with_jobs_is_shown_as_such() -> None:
    make_job(queue="retired")
    status = selectors.queue_statuses()["retired"]
    assert (status.is_declared, status.waiting, status.has_no_worker) == (False, 1, True)


def test_only_living_workers_take_a_queue() -> None:
    make_worker(node="living", queues=["email", "crm"])
    make_worker(node="silent", queues=["email"], lease_expires_at=timezone.now() - timedelta(seconds=1))
    make_worker(node="ended", queues=["email"], dead_at=timezone.now())
    make_job(queue="email")
    make_job(queue="images")
    statuses = selectors.queue_statuses()
    assert statuses["email"].worker_nodes == ["living"]
    assert not statuses["email"].has_no_worker
    assert statuses["images"].has_no_worker


def test_all_counts_take_nine_queries_however_many_queues_have_jobs() -> None:
    for queue in ("email", "images", "retired"):
        make_job(queue=queue)
    QueueControl.objects.create(name="email", paused_at=timezone.now())
    with CaptureQueriesContext(connection) as queries:
        selectors.queue_statuses()
        selectors.tick_ages_seconds()
    assert len(queries) == 9


def test_every_count_of_jobs_has_an_index() -> None:
    # Enough rows, and known to the planner, that reading the table as a whole is clearly the dearer way.
    Job.objects.bulk_create(
        Job(task="tests.sample_tasks.add", queue="default", state="cancelled", finished_at=timezone.now())
        for _ in range(3000)
    )
    for state in ("waiting", "delayed"):
        make_job(state=state)
    with CaptureQueriesContext(connection) as queries:
        selectors.queue_statuses()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    read = [rows_read(query["sql"]) for query in queries if re.search(r"\bjobs_job\b", query["sql"])]
    assert len(read) == 2
    # None of those that have ended.
    assert max(read) < 100
