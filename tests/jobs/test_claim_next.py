"""Claims from the head of a queue, over real SQL."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, connections
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import claims, settle
from jobs.below import BEGINNING, Position
from jobs.claims import Claim
from jobs.models import Job, QueueControl, Worker
from jobs.settle import Run
from tests.jobs.connections import another_connection, kill, over
from tests.jobs.factories import make_job, make_worker, state_of
from tests.jobs.plans import rows_read
from tests.sample_tasks import add

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


FROM_THE_BEGINNING = dict.fromkeys(range(10), Position(BEGINNING))


@pytest.fixture
def worker(db: None) -> Worker:
    return make_worker()


def claim_next(worker: Worker, *, queue: str = "default", count: int = 100, **options: Any) -> list[Claim]:
    values = {"token": f"{worker.pk.hex}:{uuid4().hex}", "tasks": [add.name], "worker_id": worker.pk, **options}
    return claims.claim_next(queue, count=count, **values)


def claim_oldest(worker: Worker, *, queue: str = "default", **options: Any) -> list[Claim]:
    values = {"token": f"{worker.pk.hex}:{uuid4().hex}", "tasks": [add.name], "worker_id": worker.pk, **options}
    return claims.claim_oldest(queue, age=MINUTE, **values)


def ids(found: list[Claim]) -> list[UUID]:
    return [claim.job_id for claim in found]


def pks(*jobs: Job) -> list[UUID]:
    return [job.pk for job in jobs]


# -- The order ---------------------------------------------------------------------------------------------------------
def test_the_most_urgent_are_claimed_first_then_those_that_were_due_first(worker: Worker) -> None:
    now = timezone.now()
    last = make_job(priority=9, run_at=now - 3 * SECOND)
    third = make_job(priority=5, run_at=now - 1 * SECOND)
    second = make_job(priority=5, run_at=now - 2 * SECOND)
    first = make_job(priority=0, run_at=now)
    assert ids(claim_next(worker, count=3)) == pks(first, second, third)
    assert ids(claim_next(worker, count=3)) == pks(last)
    assert claim_next(worker, count=3) == []


def test_of_jobs_that_were_due_at_one_moment_the_earlier_id_is_first(worker: Worker) -> None:
    now = timezone.now()
    jobs = [make_job(run_at=now) for _ in range(5)]
    assert ids(claim_next(worker, count=2)) + ids(claim_next(worker)) == pks(*jobs)


def test_a_claim_has_what_the_row_says_and_a_token_of_its_own(worker: Worker) -> None:
    when = timezone.now()
    jobs = [make_job(args=[1, number], kwargs={"when": when}, headers={"a": 1}) for number in range(3)]
    found = claim_next(worker, token="t")
    assert [(claim.args, claim.kwargs, claim.headers) for claim in found] == [
        ([1, number], {"when": when}, {"a": 1}) for number in range(3)
    ]
    assert [claim.token for claim in found] == [f"t.{job.pk}" for job in jobs]
    for claim, job in zip(found, Job.objects.order_by("pk"), strict=True):
        assert (job.state, job.worker_id, job.claim_token) == ("active", worker.pk, claim.token)
        assert job.started_at == claim.started_at
        assert settle.complete(Run(job.pk, claim.token), result=None, claim=claim)


def test_what_an_earlier_run_told_of_its_progress_is_gone(worker: Worker) -> None:
    job = make_job(progress_percent=70, progress_message="nearly", custom_state="ODD", custom_meta={"a": 1})
    claim_next(worker)
    job.refresh_from_db()
    assert (job.progress_percent, job.progress_message, job.custom_state, job.custom_meta) == (None, "", "", None)


# -- What is left alone ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("claim_some", [claim_next, claim_oldest])
@pytest.mark.parametrize(
    "fields",
    [
        {"queue": "images"},
        {"expires_at": Now() - SECOND},
        {"rate_key": "t"},
        {"concurrency_key": "u", "concurrency_limit": 3},
        {"quiet_hours": "00:00-00:01 UTC"},
        {"task": "another.task"},
        *[{"state": state} for state in ("delayed", "completed", "failed", "cancelled")],
    ],
    ids=str,
)
def test_what_may_not_start_is_passed_over_and_stays_as_it_is(
    worker: Worker, claim_some: Any, fields: dict[str, Any]
) -> None:
    other = make_job(priority=0, **{"run_at": Now() - 9 * MINUTE, **fields})
    before = Job.objects.filter(pk=other.pk).values().get()
    plain = make_job(priority=9, run_at=Now() - 5 * MINUTE)
    assert ids(claim_some(worker)) == pks(plain)
    assert claim_some(worker) == []
    assert Job.objects.filter(pk=other.pk).values().get() == before


@pytest.mark.parametrize("claim_some", [claim_next, claim_oldest])
@pytest.mark.parametrize(
    "control",
    [
        {"paused_at": Now()},
        {"rate_limited_until": Now() + MINUTE},
        {"rate_limit": "100/s"},
        {"concurrency_limit": 3},
        {"quiet_hours": "00:00-00:01 UTC"},
    ],
    ids=str,
)
def test_a_queue_that_an_operator_paused_or_limited_gives_nothing_from_its_head(
    worker: Worker, claim_some: Any, control: dict[str, Any]
) -> None:
    make_job(run_at=Now() - 5 * MINUTE)
    QueueControl.objects.create(name="default", **control)
    QueueControl.objects.create(name="images", paused_at=Now())
    assert claim_some(worker) == []
    QueueControl.objects.filter(name="default").delete()
    assert len(claim_some(worker)) == 1


@pytest.mark.parametrize("claim_some", [claim_next, claim_oldest])
def test_a_queue_with_a_declared_limit_gives_nothing_from_its_head_whatever_an_operator_says(
    worker: Worker, claim_some: Any
) -> None:
    make_job(queue="email", run_at=Now() - 5 * MINUTE)
    assert claim_some(worker, queue="email") == []
    QueueControl.objects.create(name="email", rate_limit="none")
    assert claim_some(worker, queue="email") == []
    assert claims.queues_with_waiting(["email", "default"]) == []


@pytest.mark.parametrize("claim_some", [claim_next, claim_oldest])
def test_neither_a_worker_that_was_given_up_nor_a_stranger_claims(worker: Worker, claim_some: Any) -> None:
    make_job(run_at=Now() - 5 * MINUTE)
    assert claim_some(make_worker(dead_at=Now())) == []
    assert claim_some(worker, worker_id=uuid4()) == []
    # Its lease has ended, and nobody has given it up.
    assert len(claim_some(make_worker(lease_expires_at=timezone.now() - MINUTE))) == 1


def test_queues_in_which_jobs_without_limits_wait_are_known(worker: Worker) -> None:
    make_job(queue="images")
    make_job(queue="video", rate_key="t")
    make_job(queue="reports", state="delayed")
    assert claims.queues_with_waiting(["default", "images", "video", "reports", "crm"]) == ["images"]
    assert claims.queues_with_waiting([]) == []


# -- Floors ------------------------------------------------------------------------------------------------------------
def test_of_a_priority_with_a_floor_nothing_is_looked_at_that_was_due_before(worker: Worker) -> None:
    now = timezone.now()
    below = make_job(priority=0, run_at=now - 2 * MINUTE)
    above = [make_job(priority=0, run_at=now - MINUTE), make_job(priority=0, run_at=now)]
    other = make_job(priority=5, run_at=now - 3 * MINUTE)
    floors = {0: Position(now - MINUTE)}
    assert ids(claim_next(worker, floors=floors, count=1)) == pks(above[0])
    assert ids(claim_next(worker, floors=floors)) == pks(above[1], other)
    assert claim_next(worker, floors=floors) == []
    assert ids(claim_next(worker)) == pks(below)


def test_above_floors_as_many_are_claimed_as_wait_the_most_urgent_first(worker: Worker) -> None:
    jobs = [make_job(priority=priority, run_at=Now() - MINUTE) for priority in (0, 0, 3, 9, 9)]
    floors = FROM_THE_BEGINNING
    some = claims.claim_next("default", count=4, token="t", tasks=[add.name], worker_id=worker.pk, floors=floors)
    assert ids(some) == pks(*jobs[:4])
    assert not some.is_all
    heads = {job.priority: Position(Job.objects.get(pk=job.pk).run_at, job.pk) for job in (jobs[0], jobs[2], jobs[3])}
    assert some.heads == {priority: heads.get(priority) for priority in range(10)}
    rest = claims.claim_next("default", count=4, token="u", tasks=[add.name], worker_id=worker.pk, floors=floors)
    assert ids(rest) == pks(jobs[4])
    assert rest.is_all


@pytest.mark.parametrize("floors", [None, FROM_THE_BEGINNING], ids=["from the head", "from floors"])
def test_nothing_is_claimed_that_is_less_urgent_than_was_asked_for(worker: Worker, floors: Any) -> None:
    jobs = [make_job(priority=priority) for priority in (2, 5, 6)]
    assert ids(claim_next(worker, floors=floors, least_urgent=5)) == pks(*jobs[:2])
    assert claim_next(worker, floors=floors, least_urgent=5) == []
    assert ids(claim_next(worker, floors=floors)) == pks(jobs[2])


# -- The oldest --------------------------------------------------------------------------------------------------------
def test_the_one_that_has_waited_longest_is_claimed_whatever_its_priority(worker: Worker) -> None:
    now = timezone.now()
    urgent = make_job(priority=0, run_at=now - 2 * MINUTE)
    oldest = make_job(priority=9, run_at=now - 4 * MINUTE)
    second = make_job(priority=7, run_at=now - 3 * MINUTE)
    make_job(priority=9, run_at=now)
    assert [ids(claim_oldest(worker)) for _ in range(4)] == [pks(oldest), pks(second), pks(urgent), []]


def test_of_several_that_have_waited_longest_none_is_young(worker: Worker) -> None:
    now = timezone.now()
    old = [make_job(priority=9, run_at=now - age * MINUTE) for age in (4, 3, 2)]
    young = make_job(priority=9, run_at=now)
    assert ids(claim_oldest(worker, count=2)) == pks(*old[:2])
    assert ids(claim_oldest(worker, count=9)) == pks(old[2])
    assert ids(claim_next(worker)) == pks(young)


# -- Two at once -------------------------------------------------------------------------------------------------------
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", ["from the head", "from floors", "the oldest"])
def test_many_that_claim_at_once_share_the_jobs_and_leave_none(worker: Worker, kind: str) -> None:
    run_at = timezone.now() - 5 * MINUTE
    Job.objects.bulk_create(
        Job(task=add.name, queue="default", state="waiting", priority=number % 3, run_at=run_at)
        for number in range(200)
    )
    together = Barrier(4, timeout=30)
    floors = FROM_THE_BEGINNING if kind == "from floors" else None

    def claim_all(_: int) -> list[Claim]:
        found: list[Claim] = []
        try:
            together.wait()
            # None may be all that others are claiming at this moment.
            while Job.objects.filter(state="waiting").exists():
                found += claim_oldest(worker) if kind == "the oldest" else claim_next(worker, count=7, floors=floors)
        finally:
            connections.close_all()
        return found

    with ThreadPoolExecutor(4) as pool:
        found = [claim for some in pool.map(claim_all, range(4)) for claim in some]
    assert len(found) == len({claim.job_id for claim in found}) == 200
    assert {job.pk: job.claim_token for job in Job.objects.all()} == {claim.job_id: claim.token for claim in found}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "claim_some",
    [claim_next, partial(claim_next, floors=FROM_THE_BEGINNING), claim_oldest],
    ids=["from the head", "from floors", "the oldest"],
)
def test_a_job_that_another_transaction_holds_keeps_nobody_waiting(worker: Worker, claim_some: Any) -> None:
    held = make_job(priority=0, run_at=Now() - 3 * MINUTE)
    free = make_job(priority=9, run_at=Now() - 2 * MINUTE)
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [held.pk])
        assert ids(claim_some(worker, count=1)) == pks(free)
        assert claim_some(worker) == []
        other.rollback()
    assert ids(claim_some(worker)) == pks(held)


@pytest.mark.django_db(transaction=True)
def test_a_claim_whose_worker_died_before_it_was_committed_leaves_the_jobs_as_they_were(worker: Worker) -> None:
    jobs = [make_job() for _ in range(3)]
    before = list(Job.objects.order_by("pk").values())
    with another_connection() as other:
        with over(other):
            assert len(claim_next(worker, count=2)) == 2
        kill(other)
    assert list(Job.objects.order_by("pk").values()) == before
    assert ids(claim_next(make_worker())) == pks(*jobs)


# -- Lost answers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("claim_some", [claim_next, claim_oldest])
def test_a_claim_whose_answer_was_lost_is_found_again(worker: Worker, claim_some: Any) -> None:
    for _ in range(3):
        make_job(run_at=Now() - 5 * MINUTE)
    token = f"{worker.pk.hex}:mine"
    claim_next(worker, count=1)
    mine = claim_some(worker, token=token)
    claim_next(make_worker())
    found = claims.claimed_before(token=token, worker_id=worker.pk)
    assert sorted(found, key=str) == sorted(mine, key=str)
    assert mine
    assert claims.claimed_before(token=token, worker_id=uuid4()) == []
    assert claims.claimed_before(token=f"{worker.pk.hex}:nobody's", worker_id=worker.pk) == []


def test_what_was_settled_meanwhile_is_not_found_again(worker: Worker) -> None:
    jobs = [make_job() for _ in range(3)]
    token = f"{worker.pk.hex}:mine"
    first, second, third = claim_next(worker, token=token)
    assert settle.complete(Run(first.job_id, first.token), result=None, claim=first)
    settle.lose(Job.objects.filter(pk=second.job_id), evidence="it is gone")
    assert ids(claims.claimed_before(token=token, worker_id=worker.pk)) == [third.job_id]
    assert [state_of(job.pk) for job in jobs] == ["completed", "waiting", "active"]


# -- The plan ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("with_floors", [False, True])
def test_the_head_of_a_queue_is_found_by_the_index_and_not_by_reading_the_backlog(
    worker: Worker, with_floors: bool
) -> None:
    Job.objects.bulk_create(
        Job(task=add.name, queue=queue, state="waiting", priority=priority)
        for queue in ("default", "images")
        for priority in (3, 6)
        for _ in range(1000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    with CaptureQueriesContext(connection) as queries:
        claim_next(worker, count=5, floors={3: Position(timezone.now() - MINUTE)} if with_floors else None)
    assert rows_read(queries[0]["sql"]) < 50


def test_jobs_that_are_claimed_together_have_begun_in_their_order(worker: Worker) -> None:
    # Whoever gives a worker up takes those that began first for the ones that it was running.
    Job.objects.bulk_create(
        Job(task=add.name, queue="default", state="waiting", priority=9 - number % 10) for number in range(300)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    moments = [claim.started_at for claim in claim_next(worker, count=40)]
    assert moments == sorted(moments)
