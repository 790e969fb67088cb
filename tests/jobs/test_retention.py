"""What retention removes, and what it must never remove."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import purge, settle
from jobs.dispatcher import retention
from jobs.job_filter import JobFilter
from jobs.models import ENDED, Attempt, DedupWindow, Job, Limit, QueueControl, RateStart, Worker
from jobs.queues import QUEUES
from jobs.states import State
from tests.jobs.connections import another_connection, kill, over
from tests.jobs.factories import claim_job, make_job, make_worker

LONG_AGO = timezone.now() - timedelta(hours=2)


def make_jobs(count: int, **fields: Any) -> list[UUID]:
    """Ended jobs, a second apart, the oldest first."""
    values = {"task": "tests.sample_tasks.add", "queue": "default", "state": "completed", **fields}
    jobs = [Job(**{"finished_at": LONG_AGO - timedelta(seconds=count - number), **values}) for number in range(count)]
    return [job.pk for job in Job.objects.bulk_create(jobs)]


def left(**fields: Any) -> set[UUID]:
    return set(Job.objects.filter(**fields).values_list("pk", flat=True))


def retain() -> None:
    """Rounds until nothing is left to remove."""
    while retention.run_once():
        pass


def keep(count: int, *, failed: int | None = None, queue: str = "default") -> None:
    QueueControl.objects.create(
        name=queue, keep_completed_count=count, keep_failed_count=count if failed is None else failed
    )


@pytest.mark.django_db
def test_the_last_hundred_completed_and_cancelled_and_five_hundred_failed_jobs_of_each_queue_stay() -> None:
    queues = ("default", "email", "no longer declared")
    made = {(queue, state): make_jobs(510, queue=queue, state=state) for queue in queues for state in ENDED}
    retain()
    for (queue, state), ids in made.items():
        count = 500 if state == "failed" else 100
        assert left(queue=queue, state=state) == set(ids[-count:])


@pytest.mark.django_db
def test_what_an_operator_has_set_for_a_queue_comes_before_its_declaration() -> None:
    keep(3, failed=0)
    completed, _ = make_jobs(5), make_jobs(5, state="failed")
    elsewhere = make_jobs(5, queue="email")
    retain()
    assert left() == {*completed[-3:], *elsewhere}


@pytest.mark.django_db
def test_whoever_waits_for_a_result_has_an_hour_to_fetch_it() -> None:
    keep(0)
    old, young = (make_job(state="completed", finished_at=Now() - timedelta(minutes=minutes)) for minutes in (61, 59))
    retain()
    assert left() == {young.pk}
    assert old.pk not in left()


@pytest.mark.django_db
def test_of_jobs_that_ended_in_one_moment_exactly_so_many_stay() -> None:
    keep(3)
    ids = make_jobs(10, finished_at=LONG_AGO)
    retain()
    assert left() == set(sorted(ids)[-3:])


@pytest.mark.django_db
def test_a_live_job_is_never_removed_however_old_it_is() -> None:
    keep(0)
    ids = {make_job(state=state, created_at=LONG_AGO, run_at=LONG_AGO).pk for state in ("waiting", "delayed")}
    active = make_job(created_at=LONG_AGO)
    claim_job(active, make_worker())
    make_jobs(3)
    retain()
    assert left() == {*ids, active.pk}


@pytest.mark.django_db
@pytest.mark.parametrize(("state", "stays"), [("waiting", True), ("delayed", True), ("completed", False)])
def test_a_job_with_unfinished_children_stays(state: str, stays: bool) -> None:
    keep(0)
    parent, _ = make_jobs(2)
    make_job(state=state, parent_id=parent, queue="email")
    retain()
    assert left(queue="default") == ({parent} if stays else set())


@pytest.mark.django_db
def test_a_job_stays_as_long_as_the_steps_that_it_would_bring_about_if_it_were_run_again() -> None:
    QueueControl.objects.create(name="default", keep_failed_count=0)
    (failed,) = make_jobs(1, state="failed")
    step = make_job(state="cancelled", parent_id=failed, finished_at=LONG_AGO)
    retain()
    assert left() == {failed, step.pk}
    QueueControl.objects.update(keep_completed_count=0)
    retain()
    retain()
    assert left() == set()


@pytest.mark.django_db
def test_a_jobs_attempts_go_with_it() -> None:
    keep(0)
    job = make_job(created_at=LONG_AGO)
    settle.fail(claim_job(job, make_worker()), error="no")
    Job.objects.update(finished_at=LONG_AGO)
    assert Attempt.objects.count() == 1
    retain()
    assert (left(), Attempt.objects.count()) == (set(), 0)


@pytest.mark.django_db(transaction=True)
def test_a_job_that_an_operator_runs_again_at_this_moment_stays() -> None:
    keep(0)
    first, second = make_jobs(2)
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("UPDATE jobs_job SET state = 'waiting', finished_at = NULL WHERE id = %s", [first])
        retain()
        assert left() == {first}
        other.commit()
    retain()
    assert left(state="waiting") == {first}
    assert second not in left()


@pytest.mark.django_db(transaction=True)
def test_a_round_that_dies_in_the_middle_has_removed_nothing_by_halves() -> None:
    keep(0)
    ids = make_jobs(5, state="failed")
    Attempt.objects.bulk_create(Attempt(job_id=pk, number=1, outcome="failed") for pk in ids)
    with another_connection() as other:
        with over(other):
            retain()
            assert left() == set()
        kill(other)
    assert (left(), Attempt.objects.count()) == (set(ids), 5)


@pytest.mark.django_db
def test_more_than_a_batch_is_removed_at_the_next_looks() -> None:
    keep(0)
    make_jobs(1100)
    counts = []
    while retention.run_once():
        counts.append(len(left()))
    assert counts[:2] == [600, 100]
    assert left() == set()


@pytest.mark.django_db
def test_a_round_ends_early_rather_than_hold_the_other_duties_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_ROUND_SECONDS", -1)
    keep(0)
    make_jobs(3)
    assert retention.run_once()
    assert len(left()) == 3


@pytest.mark.django_db
def test_ended_workers_and_expired_windows_go() -> None:
    ends = [timezone.now() - timedelta(hours=hours) for hours in (25, 23)]
    old, young = (make_worker(dead_at=dead_at, settled_at=dead_at).pk for dead_at in ends)
    living, unsettled = make_worker().pk, make_worker(dead_at=ends[0]).pk
    for key, hours in (("past", -1), ("future", 1)):
        DedupWindow.objects.create(key=key, job_id=living, until=timezone.now() + timedelta(hours=hours))
    retain()
    assert set(Worker.objects.values_list("pk", flat=True)) == {young, living, unsettled}
    assert old not in {young, living}
    assert list(DedupWindow.objects.values_list("key", flat=True)) == ["future"]


@pytest.mark.django_db
def test_limits_that_nobody_has_asked_for_a_day_go_unless_they_still_hold() -> None:
    for key, hours in (("idle", 25), ("used", 23), ("told to wait", 25)):
        Limit.objects.create(key=key, used_at=timezone.now() - timedelta(hours=hours))
        RateStart.objects.create(key=key, number=1, started_at=timezone.now() - timedelta(hours=hours))
    Limit.objects.filter(key="told to wait").update(rate_limited_until=timezone.now() + timedelta(hours=1))
    assert not retention.remove_idle_limits()
    assert set(Limit.objects.values_list("key", flat=True)) == {"used", "told to wait"}
    assert set(RateStart.objects.values_list("key", flat=True)) == {"used", "told to wait"}


@pytest.mark.django_db
def test_limits_which_no_index_orders_by_their_age_are_not_read_in_each_round() -> None:
    with CaptureQueriesContext(connection) as queries:
        retain()
    assert not [query for query in queries if '"jobs_limit"' in query["sql"]]


@pytest.mark.django_db(transaction=True)
def test_a_caller_that_takes_an_expired_key_is_not_waited_for() -> None:
    for key in ("taken", "free"):
        DedupWindow.objects.create(key=key, job_id=uuid4(), until=timezone.now() - timedelta(hours=1))
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM jobs_dedupwindow WHERE key = 'taken' FOR UPDATE")
        with connection.cursor() as mine:
            mine.execute("SET lock_timeout = '50ms'")
            retain()
            mine.execute("RESET lock_timeout")
    assert list(DedupWindow.objects.values_list("key", flat=True)) == ["taken"]


@pytest.mark.django_db
def test_the_ended_jobs_of_a_queue_are_never_read_as_a_whole() -> None:
    # Enough, and known to the planner, that reading the table is clearly the dearer way.
    make_jobs(3000, queue="email")
    for queue in QUEUES.keys() - {"email"}:
        make_jobs(1, queue=queue)
    plans = []
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
        with CaptureQueriesContext(connection) as queries:
            list(retention._queues_with_ended_jobs())
            found = retention.removable("email", State.COMPLETED, keep_count=100)
            assert len(found[:50]) == 50
        for query in queries:
            if query["sql"].startswith("SELECT"):
                cursor.execute(f"EXPLAIN {query['sql']}")
                plans.append("\n".join(row[0] for row in cursor.fetchall()))
    assert len(plans) == len(QUEUES) + 3
    assert all("Seq Scan" not in plan and "job_ended" in plan for plan in plans), plans


@pytest.fixture
def pointed_at(db: None) -> Iterator[UUID]:
    """A job to which a row of another app points, the oldest of ten."""
    ids = make_jobs(10)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE invoices (job_id uuid REFERENCES jobs_job DEFERRABLE INITIALLY DEFERRED)")
        cursor.execute("INSERT INTO invoices VALUES (%s)", [ids[0]])
    yield ids[0]
    retention._protected.clear()


def test_a_job_that_another_app_holds_keeps_no_other_from_being_removed(pointed_at: UUID) -> None:
    keep(2)
    retain()
    assert len(left()) == 3
    assert pointed_at in left()
    # It is left alone for an hour, and then tried again.
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM invoices")
    retain()
    assert pointed_at in left()
    retention._protected[pointed_at] = 0.0
    retain()
    assert len(left()) == 2


def test_a_job_that_another_app_holds_keeps_no_other_from_being_purged(pointed_at: UUID) -> None:
    assert purge.purge(wanted=JobFilter(), actor="ann") == 9
    assert left() == {pointed_at}


def test_where_many_jobs_are_held_the_duty_says_so_and_remembers_no_more(
    pointed_at: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(2)
    monkeypatch.setattr(retention, "_MOST_PROTECTED", 1)
    with pytest.raises(retention.TooManyProtected, match="1 ended jobs cannot be removed"):
        retain()
    assert len(left()) == 3
