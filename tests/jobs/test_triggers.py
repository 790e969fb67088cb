"""Triggers on the jobs table: what happens to a job waits for nothing that happens to another, whatever they share."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection

from accounts.models import User
from jobs import services, settle
from jobs.models import Job, JobEvent, Worker
from jobs.settle import Run
from jobs.statements import rows_of
from tests import sample_tasks
from tests.jobs.connections import another_connection, over
from tests.jobs.factories import claim_job, make_job, make_worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("empty_redis")]


def what_jobs_may_share() -> dict[str, Any]:
    ids = {name: uuid4() for name in ("parent_id", "root_id", "flow_id")}
    limits = {"rate_key": "key", "rate_limit": "1000/s", "concurrency_key": "key", "concurrency_limit": 1000}
    owner = User.objects.create_user("ada@example.com", name="Ada")
    return {"owner": owner, "group_id": "group", "correlation_id": "request", **ids, **limits}


def enqueue(run: Run) -> None:
    """Another one like it, in the way of a caller."""
    names = ("owner_id", "group_id", "correlation_id", "rate_key", "rate_limit", "parent_id", "root_id")
    sample_tasks.add.apply_async((1, 2), **Job.objects.values(*names).get(pk=run.job_id))


def insert(run: Run) -> None:
    """Another one like it, in the way of the trigger."""
    job = Job.objects.get(pk=run.job_id)
    job.pk, job.state, job.worker_id, job.claim_token = uuid4(), "waiting", None, ""
    job.save(force_insert=True)


HAPPENS: dict[str, Callable[[Run], object]] = {
    "is enqueued": enqueue,
    "is inserted": insert,
    "completes": lambda run: settle.complete(run, result=3),
    "fails": lambda run: settle.fail(run, error="broken"),
    "is retried": lambda run: settle.retry(run, delay=60, error="not yet"),
    "is lost": lambda run: settle.lose(run.row(), evidence="worker gone"),
    "is handed back": settle.give_back,
    "is cancelled": lambda run: services.cancel_job(job_id=run.job_id, actor="test"),
    "is deleted": lambda run: Job.objects.filter(pk=run.job_id).delete(),
}


def run_of(shared: dict[str, Any], worker: Worker, name: str) -> Run:
    return claim_job(make_job(**shared), worker, name)


@pytest.mark.parametrize("what", HAPPENS)
def test_what_happens_to_a_job_waits_for_nothing_that_happens_to_others_like_it(what: str) -> None:
    shared, worker = what_jobs_may_share(), make_worker(concurrency=100)
    others = {name: run_of(shared, worker, name) for name in HAPPENS}
    mine = run_of(shared, worker, "mine")
    with another_connection() as other:
        with over(other):
            for name, act in HAPPENS.items():
                with settle.atomic():
                    act(others[name])
            noted = set(JobEvent.objects.values_list("kind", flat=True))
            assert noted == {"completed", "failed", "retried", "stalled", "cancelled"}
        with settle.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '1s'")
            HAPPENS[what](mine)


@pytest.mark.parametrize("what", [name for name in HAPPENS if name not in ("is enqueued", "is inserted")])
def test_what_happens_to_a_job_does_not_wait_for_whoever_has_locked_its_owner(what: str) -> None:
    shared, worker = what_jobs_may_share(), make_worker()
    run = run_of(shared, worker, "mine")
    with another_connection() as other:
        with over(other):
            User.objects.select_for_update().get()
        with settle.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '1s'")
            HAPPENS[what](run)


# Those of foreign keys are PostgreSQL's own: they share a lock of the row that is named.
OUR_TRIGGERS = "SELECT tgname::text, tgfoid FROM pg_trigger WHERE tgrelid = 'jobs_job'::regclass AND NOT tgisinternal"
ALL_TRIGGERS = "SELECT tgname::text FROM pg_trigger WHERE tgrelid = 'jobs_jobevent'::regclass"
UNIQUE = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'jobs_jobevent'::regclass AND indisunique"


def test_the_one_trigger_on_jobs_appends_a_row_that_no_other_meets() -> None:
    [(name, function)] = rows_of(OUR_TRIGGERS, {})
    [(source,)] = rows_of("SELECT prosrc FROM pg_proc WHERE oid = %(function)s", {"function": function})
    assert name == "jobs_note_event"
    words = source.upper().split()
    assert words.count("INSERT") == 1
    assert "INSERT INTO jobs_jobevent" in source
    assert {"UPDATE", "DELETE", "SELECT", "LOCK", "PERFORM", "EXECUTE", "CONFLICT"}.isdisjoint(words)
    # Nothing goes on from there, and two rows can only meet in their number, which is never the same.
    assert rows_of(ALL_TRIGGERS, {}) == []
    assert rows_of(UNIQUE, {}) == [("jobs_jobevent_pkey",)]
