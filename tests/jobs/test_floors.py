"""Claims above floors: nothing is walked over twice, and nothing that waits is passed over for long."""

import time
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db.models.functions import Now

from jobs import below, claims
from jobs.below import MARGIN, Position
from jobs.claims import Found
from jobs.models import Job, QueueControl, Worker
from jobs.worker import floors
from jobs.worker.floors import Floors
from tests import sample_tasks
from tests.jobs.connections import another_connection
from tests.jobs.factories import make_job, make_worker
from tests.jobs.plans import pages_read
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

TASKS = [sample_tasks.add.name]
MINUTE = timedelta(minutes=1)


@pytest.fixture
def worker() -> Worker:
    return make_worker(queues=["default"])


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch, worker: Worker) -> Floors:
    """Floors of the default queue after three claims that took long."""
    monkeypatch.setattr(floors, "SLOW_FACTOR", 0)
    found = Floors("default", tasks=TASKS)
    for _ in range(3):
        found.learn(Found(), seconds=1)
    assert found.are_used
    return found


def claim(of: Floors, worker: Worker, count: int = 1) -> list[Any]:
    """As the claimer does it."""
    began = time.monotonic()
    found = claims.claim_next(
        "default", count=count, token=uuid4().hex, tasks=TASKS, worker_id=worker.pk, floors=of.current()
    )
    of.learn(found, seconds=time.monotonic() - began)
    return [one.job_id for one in found]


def test_quick_claims_begin_at_the_head() -> None:
    found = Floors("default", tasks=TASKS)
    for seconds in (1, 1, 0.0001, 1, 1):
        found.learn(Found(), seconds=seconds)
    assert not found.are_used
    assert found.current() is None


def test_the_order_is_that_of_claims_from_the_head(used: Floors, worker: Worker) -> None:
    jobs = [make_job(priority=priority, run_at=Now() - age * MINUTE) for priority in (5, 1, 9) for age in (2, 3, 1)]
    wanted = list(Job.objects.order_by("priority", "run_at", "id").values_list("pk", flat=True))
    assert [pk for _ in jobs for pk in claim(used, worker)] == wanted
    assert claim(used, worker) == []


def test_what_is_due_now_is_found_whatever_its_priority(used: Floors, worker: Worker) -> None:
    make_job(priority=5, run_at=Now() - MINUTE)
    claim(used, worker)
    assert claim(used, worker) == []
    for priority in (9, 5, 0):
        job = make_job(priority=priority)
        assert claim(used, worker) == [job.pk]


def test_a_floor_is_never_later_than_some_seconds_ago(used: Floors, worker: Worker) -> None:
    claim(used, worker)
    job = make_job(run_at=Now() - MARGIN / 2)
    assert claim(used, worker) == [job.pk]


def test_a_job_below_the_floors_is_found_by_the_walk(used: Floors, worker: Worker) -> None:
    claim(used, worker)
    late = make_job(run_at=Now() - 90 * MINUTE, priority=3)
    assert claim(used, worker) == []

    def is_found() -> bool:
        for _ in range(20):
            used._walk._at = 0.0
            used.look_below()
        return claim(used, worker) == [late.pk]

    wait_until(is_found)


def test_what_another_worker_is_claiming_keeps_its_floor_and_nobody_from_starting(used: Floors, worker: Worker) -> None:
    held = [make_job(priority=0, run_at=Now() - age * MINUTE) for age in (2, 1)]
    later = [make_job(priority=priority, run_at=Now() - MINUTE) for priority in (3, 9)]
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM jobs_job WHERE priority = 0 FOR UPDATE")
        assert claim(used, worker, count=1) == [later[0].pk]
        assert claim(used, worker, count=2) == [later[1].pk]
        assert claim(used, worker, count=2) == []
        other.rollback()
    assert [pk for _ in held for pk in claim(used, worker)] == [job.pk for job in held]


def look_at_what_was_passed(used: Floors) -> None:
    """Without the walk, which would find it as well, later."""
    used._walk._at, used._look_at = time.monotonic() + 3600, 0.0
    used.look_below()


@pytest.mark.parametrize("apart", [MINUTE, timedelta(0)], ids=["one after the other", "at one moment"])
def test_what_somebody_has_locked_while_the_floor_went_on_is_found_once_it_is_free(
    used: Floors, worker: Worker, apart: timedelta
) -> None:
    begin = claims.now() - 9 * MINUTE
    held, *others = (make_job(run_at=begin + number * apart) for number in range(4))
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [held.pk])
        assert [pk for _ in others for pk in claim(used, worker)] == [job.pk for job in others]
        # Claims do not walk over what has died since it was locked.
        assert (used.current() or {})[5] > Position(begin, held.pk)
        look_at_what_was_passed(used)
        assert claim(used, worker) == []
        other.rollback()
    look_at_what_was_passed(used)
    assert claim(used, worker) == [held.pk]


def walk_all(used: Floors) -> None:
    """What is below the floors, once."""
    used._look_at = time.monotonic() + 3600
    used._walk.forget()
    for _ in range(1000):
        used._walk._at = 0.0
        used.look_below()
        if used._walk.has_ended:
            return
    raise AssertionError("The walk does not end")


def test_a_job_that_stays_locked_keeps_no_floor_down_and_hides_no_late_one(
    used: Floors, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No walk finds so little that floors are given up.
    monkeypatch.setattr(below, "SLOW_SECONDS", 0)
    begin = claims.now() - 9 * MINUTE
    held, *others = (make_job(run_at=begin + number * MINUTE) for number in range(6))
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [held.pk])
        for job in others[:4]:
            assert claim(used, worker) == [job.pk]
            walk_all(used)
        assert (used.current() or {})[5] >= Position(begin + 3 * MINUTE)
        # Below the floor, on either side of what is remembered as passed over, and within.
        for run_at in (begin - MINUTE, begin + MINUTE / 2, begin + 2 * MINUTE):
            late = make_job(run_at=run_at)
            walk_all(used)
            look_at_what_was_passed(used)
            assert claim(used, worker) == [late.pk]
        assert claim(used, worker) == [others[4].pk]
        other.rollback()
    look_at_what_was_passed(used)
    walk_all(used)
    assert claim(used, worker) == [held.pk]


def test_what_somebody_was_claiming_while_the_floor_went_on_is_forgotten(used: Floors, worker: Worker) -> None:
    held = make_job(run_at=Now() - 9 * MINUTE)
    job = make_job(run_at=Now() - 8 * MINUTE)
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("UPDATE jobs_job SET state = 'completed', finished_at = now() WHERE id = %s", [held.pk])
        assert claim(used, worker) == [job.pk]
        other.commit()
    look_at_what_was_passed(used)
    assert not any(used._passed.values())


def test_a_floor_passes_over_some_jobs_that_stay_locked_and_over_no_more(used: Floors, worker: Worker) -> None:
    begin = claims.now() - 60 * MINUTE
    held = [make_job(run_at=begin + 2 * number * MINUTE) for number in range(floors.MOST_PASSED + 1)]
    others = [make_job(run_at=begin + (2 * number + 1) * MINUTE) for number in range(len(held))]
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM jobs_job WHERE id = ANY (%s) FOR UPDATE", [[job.pk for job in held]])
        assert [pk for _ in others for pk in claim(used, worker)] == [job.pk for job in others]
        assert claim(used, worker) == []
        assert (used.current() or {})[5] == Position(begin + 2 * (len(held) - 1) * MINUTE, held[-1].pk)
        look_at_what_was_passed(used)
        assert claim(used, worker) == []
        other.rollback()
    look_at_what_was_passed(used)
    assert [pk for _ in held for pk in claim(used, worker)] == [job.pk for job in held]


def test_a_queue_that_is_paused_keeps_its_floors(used: Floors, worker: Worker) -> None:
    jobs = [make_job(priority=priority, run_at=Now() - MINUTE) for priority in (3, 9)]
    control = QueueControl.objects.create(name="default", paused_at=Now())
    assert claim(used, worker) == []
    control.delete()
    assert [pk for _ in jobs for pk in claim(used, worker)] == [job.pk for job in jobs]


def test_priorities_that_were_not_looked_at_keep_their_floors(used: Floors, worker: Worker) -> None:
    job = make_job(priority=9, run_at=Now() - MINUTE)
    found = claims.claim_next(
        "default", count=1, token="t", tasks=TASKS, worker_id=worker.pk, least_urgent=5, floors=used.current()
    )
    used.learn(found, seconds=0)
    assert claim(used, worker) == [job.pk]


def test_the_walk_comes_to_its_end_where_every_piece_takes_long(
    used: Floors, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(below, "_PIECE_SECONDS", -1)
    monkeypatch.setattr(below, "_MOST_PIECES", 0)
    monkeypatch.setattr(below, "_MOST_PIECES_EACH", 0)
    claim(used, worker)
    late = make_job(run_at=Now() - 90 * MINUTE, priority=3)
    for _ in range(len(floors._PRIORITIES) * 20):
        used._walk._at = 0.0
        used.look_below()
    assert claim(used, worker) == [late.pk]


@pytest.mark.parametrize(
    "apart", [timedelta(milliseconds=1), timedelta(0)], ids=["one after the other", "at one moment"]
)
def test_beside_an_old_snapshot_a_claim_reads_what_is_above_its_floor(
    worker: Worker, used: Floors, apart: timedelta
) -> None:
    run_at = claims.now() - 10 * MINUTE
    Job.objects.bulk_create(
        Job(task=TASKS[0], queue="default", args=[1, 2], state="waiting", run_at=run_at + number * apart)
        for number in range(3000)
    )
    with another_connection() as other, other.cursor() as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM jobs_job")
        while Job.objects.filter(state="waiting").count() > 50:
            claim(used, worker, count=200)
        floor = (used.current() or {})[5]
        of = {"queue": "default", "lane": "", "priority": 5, "tasks": None}
        to = {"end": claims.now(), "end_id": UUID(int=0)}
        above = pages_read(claims.FIRST_DUE, {**of, **to, "begin": floor.run_at, "begin_id": floor.job_id})
        below_it = pages_read(claims.FIRST_DUE, {**of, **to, "begin": run_at, "begin_id": UUID(int=0)})
    assert 5 * above < below_it


def test_where_nothing_is_left_to_walk_over_claims_begin_at_the_head_again(
    used: Floors, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is.
    monkeypatch.setattr(below, "_NOISE_SECONDS", 3600)
    claim(used, worker)

    def is_given_up() -> bool:
        for _ in range(20):
            used._walk._at = 0.0
            used.look_below()
        return not used.are_used

    wait_until(is_given_up, timeout=30)
