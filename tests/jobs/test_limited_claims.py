"""Claims of jobs with limits, over real SQL; the clock is the database's, so the past is made by moving rows."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from statistics import median
from threading import Barrier
from typing import Any

import pytest
from django.db import DataError, connections
from django.db.models import F
from django.db.models.functions import Now

from jobs import claims, limited_claims, limits, paced, settle
from jobs.models import Job, Limit, QueueControl, RateStart, Worker
from jobs.rates import Rate
from jobs.settle import Run
from tests.jobs.connections import another_connection, somebody_waits_for_a_lock
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.jobs.plans import pages_read
from tests.waiting import wait_until

numbers = count()


def start(job: Job, worker: Worker, *, repeated: bool = False, token: str = "") -> bool:
    """Claims a job with a fresh token; returns whether it may start."""
    token = token or f"{worker.pk.hex}:{next(numbers)}"
    return bool(claims.claim({job.pk: token}, worker_id=worker.pk, repeated=repeated))


def starts_of(number: int, **fields: Any) -> int:
    """How many of so many jobs may start, one after the other."""
    worker = make_worker()
    return sum(start(make_job(**fields), worker) for _ in range(number))


def let_time_pass(time: timedelta) -> None:
    RateStart.objects.update(started_at=F("started_at") - time)
    Limit.objects.update(rate_limited_until=F("rate_limited_until") - time)
    QueueControl.objects.update(rate_limited_until=F("rate_limited_until") - time)


@pytest.fixture
def ten_a_minute(db: None) -> None:
    """A rate of a queue with time enough between the statements of a test."""
    QueueControl.objects.create(name="video", rate_limit="10/m")


@pytest.mark.usefixtures("ten_a_minute")
def test_a_queue_starts_no_more_jobs_in_a_time_than_its_rate() -> None:
    assert starts_of(15, queue="video") == 10
    let_time_pass(timedelta(seconds=30))
    assert starts_of(5, queue="video") == 0
    let_time_pass(timedelta(seconds=31))
    assert starts_of(15, queue="video") == 10


@pytest.mark.usefixtures("ten_a_minute")
def test_the_window_slides() -> None:
    assert starts_of(7, queue="video") == 7
    let_time_pass(timedelta(seconds=31))
    assert starts_of(7, queue="video") == 3
    let_time_pass(timedelta(seconds=31))
    assert starts_of(10, queue="video") == 7


@pytest.mark.usefixtures("ten_a_minute")
def test_after_an_hour_of_nothing_there_is_no_more_than_one_window() -> None:
    assert starts_of(10, queue="video") == 10
    let_time_pass(timedelta(hours=1))
    assert starts_of(30, queue="video") == 10


@pytest.mark.django_db
def test_the_start_of_a_job_is_the_one_that_is_counted() -> None:
    worker, job = make_worker(), make_job(queue="email")
    assert start(job, worker)
    assert RateStart.objects.get().started_at == Job.objects.get().started_at


@pytest.mark.django_db
def test_a_rate_key_holds_over_queues_and_leaves_others_alone() -> None:
    assert starts_of(4, rate_key="t", rate_limit="3/m") == 3
    assert starts_of(4, rate_key="t", rate_limit="3/m", queue="images") == 0
    assert starts_of(4, rate_key="other", rate_limit="3/m") == 3
    assert starts_of(4) == 4


@pytest.mark.django_db
def test_each_job_holds_its_own_limit_against_all_starts_of_its_key() -> None:
    assert starts_of(5, rate_key="t", rate_limit="3/m") == 3
    assert starts_of(9, rate_key="t", rate_limit="5/m") == 2
    assert starts_of(1, rate_key="t", rate_limit="3/m") == 0
    let_time_pass(timedelta(seconds=61))
    assert starts_of(1, rate_key="t", rate_limit="3/m") == 1
    # No more starts are kept than the largest limit asks for.
    assert starts_of(9, rate_key="t", rate_limit="5/m") == 4
    assert RateStart.objects.count() == 5


@pytest.mark.django_db
def test_a_refused_claim_leaves_the_job_as_it_was_and_counts_nothing() -> None:
    worker = make_worker()
    jobs = [make_job(rate_key="t", rate_limit="1/m") for _ in range(2)]
    assert [start(job, worker) for job in jobs] == [True, False]
    before = Job.objects.filter(pk=jobs[1].pk).values().get()
    assert not start(jobs[1], worker)
    assert Job.objects.filter(pk=jobs[1].pk).values().get() == before
    assert RateStart.objects.count() == 1


@pytest.mark.django_db
def test_a_claim_that_another_reason_refuses_uses_no_start() -> None:
    worker = make_worker()
    paused = make_job(queue="email")
    QueueControl.objects.create(name="email", paused_at=Now())
    assert not start(paused, worker)
    QueueControl.objects.all().delete()
    assert not start(make_job(queue="email", expires_at=Now() - timedelta(seconds=1)), worker)
    assert not start(make_job(queue="email"), make_worker(dead_at=Now()))
    assert not claims.claim({paused.pk: "token"}, worker_id=worker.pk, tasks=["another.task"])
    assert not RateStart.objects.exists()


@pytest.mark.django_db
def test_a_claim_whose_answer_was_lost_finds_itself_and_uses_no_second_start() -> None:
    worker = make_worker()
    jobs = [make_job(rate_key="t", rate_limit="2/m", concurrency_key="u", concurrency_limit=1) for _ in range(2)]
    assert start(jobs[0], worker, token="token")
    started_at = Job.objects.get(pk=jobs[0].pk).started_at
    assert start(jobs[0], worker, token="token", repeated=True)
    assert not start(jobs[0], worker, token="token")
    assert RateStart.objects.get().started_at == started_at == Job.objects.get(pk=jobs[0].pk).started_at


@pytest.mark.django_db
def test_a_token_is_good_for_one_claim_of_a_limited_job_too() -> None:
    job, worker = make_job(queue="email"), make_worker()
    assert start(job, worker, token="token")
    settle.hand_back(worker.pk)
    assert not start(job, worker, token="token")
    assert start(job, worker)


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"concurrency_key": "u", "concurrency_limit": 2}, {}])
def test_no_more_run_at_once_than_a_key_or_a_queue_allows(fields: dict[str, Any]) -> None:
    if not fields:
        QueueControl.objects.create(name="default", concurrency_limit=2)
    worker, jobs = make_worker(), [make_job(**fields) for _ in range(4)]
    assert [start(job, worker) for job in jobs] == [True, True, False, False]
    running = Job.objects.get(pk=jobs[0].pk)
    settle.complete(Run(running.pk, running.claim_token), result=None)
    assert [start(job, worker) for job in jobs[2:]] == [True, False]


@pytest.mark.django_db
def test_the_slot_of_a_dead_worker_is_free_with_the_rescue_of_its_job() -> None:
    fields = {"concurrency_key": "u", "concurrency_limit": 1}
    dead, worker = make_worker(), make_worker()
    lost, waiting = make_job(**fields), make_job(**fields)
    claim_job(lost, dead)
    assert not start(waiting, worker)
    settle.lose(Job.objects.filter(worker_id=dead.pk), evidence="it is dead")
    assert start(waiting, worker)
    assert not start(lost, worker)


@pytest.mark.django_db
def test_an_operators_limits_come_before_the_declared_ones() -> None:
    QueueControl.objects.create(name="email", rate_limit="2/h")
    QueueControl.objects.create(name="default", rate_limit="3/h")
    assert (starts_of(4, queue="email"), starts_of(4)) == (2, 3)
    QueueControl.objects.filter(name="email").update(rate_limit="none")
    assert starts_of(20, queue="email") == 20


@pytest.mark.django_db
@pytest.mark.parametrize("broken", [{"rate_limit": "fast"}, {"quiet_hours": "22:00-07:00 Mars/Base"}])
def test_a_limit_that_means_nothing_leaves_the_declared_one_in_force(broken: dict[str, Any]) -> None:
    for name in ("email", "default"):
        QueueControl.objects.create(name=name, keep_failed_count=7, **broken)
    assert (starts_of(12), starts_of(1, rate_key="t", rate_limit="1/h")) == (12, 1)
    assert limits.in_force("email", QueueControl.objects.get(name="email")).limits == "10/s"
    assert limits.in_force("email", QueueControl.objects.get(name="email")).keep_failed_count == 7


@pytest.mark.django_db
@pytest.mark.parametrize("own", [True, False])
def test_nothing_starts_in_quiet_hours_and_what_runs_goes_on(own: bool) -> None:
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    quiet, loud = f"{now - hour:%H:%M}-{now + hour:%H:%M} UTC", f"{now + hour:%H:%M}-{now - hour:%H:%M} UTC"
    worker = make_worker()
    running = claim_job(make_job(), worker)
    fields = {"quiet_hours": quiet} if own else {}
    if not own:
        QueueControl.objects.create(name="default", quiet_hours=quiet)
    assert not start(make_job(**fields), worker)
    assert settle.complete(running, result=1)
    if not own:
        QueueControl.objects.update(quiet_hours=loud)
    # It is loud for another hour, which the claim is told.
    assert start(make_job(**({"quiet_hours": loud} if own else {})), worker)


@pytest.mark.django_db
def test_a_job_that_was_told_to_wait_holds_its_key_or_its_queue_and_counts_nothing() -> None:
    worker = make_worker()
    keyed = claim_job(make_job(rate_key="host"), worker)
    assert settle.rate_limit(keyed, seconds=60)
    assert not settle.rate_limit(keyed, seconds=60)
    job = Job.objects.get(pk=keyed.job_id)
    assert (job.state, job.attempt, job.stalled_count, job.attempts.count()) == ("waiting", 1, 0, 0)
    assert (starts_of(1, rate_key="host"), starts_of(1, rate_key="host", queue="images"), starts_of(1)) == (0, 0, 1)
    plain = claim_job(make_job(), worker)
    assert settle.rate_limit(plain, seconds=60)
    # A shorter pause does not end a longer one.
    QueueControl.objects.update(rate_limited_until=Now() + timedelta(hours=1))
    settle.rate_limit(claim_job(make_job(queue="images"), worker), seconds=1)
    assert (starts_of(1), starts_of(1, rate_key="another"), starts_of(1, queue="video")) == (0, 0, 1)
    let_time_pass(timedelta(hours=2))
    assert starts_of(1) == starts_of(1, rate_key="host") == 1


@pytest.mark.django_db
def test_a_job_that_another_call_has_moved_to_another_lane_is_not_claimed_by_its_old_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, job = make_worker(), make_job(rate_key="t", rate_limit="1/m")
    of = limits.Limits.of

    def meanwhile(*arguments: Any) -> limits.Limits:
        found = of(*arguments)
        Job.objects.filter(pk=job.pk).update(rate_key="u", lane="another")
        return found

    monkeypatch.setattr(limits.Limits, "of", meanwhile)
    assert not start(job, worker)
    assert state_of(job.pk) == "waiting"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "fields",
    [
        {"queue": "email"},
        {"rate_key": "t", "rate_limit": "10/h", "concurrency_key": "u", "concurrency_limit": 100},
        {"concurrency_key": "u", "concurrency_limit": 10},
    ],
    ids=["queue", "two keys", "concurrency"],
)
def test_of_many_claims_at_one_moment_as_many_win_as_the_limit_allows(fields: dict[str, Any]) -> None:
    worker, jobs = make_worker(), [make_job(**fields) for _ in range(48)]
    together = Barrier(8, timeout=30)

    def claim_some(share: list[Job]) -> int:
        try:
            together.wait()
            return sum(start(job, worker) for job in share)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        won = sum(pool.map(claim_some, [jobs[number::8] for number in range(8)]))
    moments = sorted(start for start in Job.objects.values_list("started_at", flat=True) if start is not None)
    assert len(moments) == won
    if fields.get("queue") == "email":
        # Claims that are slow may run into the next second.
        assert all(
            later - earlier >= timedelta(seconds=1) for earlier, later in zip(moments, moments[10:], strict=False)
        )
        assert won >= 10
    else:
        assert won == 10


@pytest.mark.django_db(transaction=True)
def test_a_job_that_somebody_has_locked_keeps_no_other_from_its_limit() -> None:
    worker = make_worker()
    locked, free = (make_job(queue="email") for _ in range(2))
    tokens = {job.pk: str(job.pk) for job in (locked, free)}
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [locked.pk])
        assert [one.job_id for one in claims.claim(tokens, worker_id=worker.pk)] == [free.pk]
        other.commit()
    assert [one.job_id for one in claims.claim(tokens, worker_id=worker.pk)] == [locked.pk]


@pytest.mark.django_db(transaction=True)
def test_a_limit_that_somebody_has_locked_keeps_no_other_from_starting() -> None:
    worker = make_worker()
    locked, free = make_job(rate_key="t", rate_limit="10/s"), make_job(rate_key="u", rate_limit="10/s")
    Limit.objects.bulk_create([Limit(pk="rate:t"), Limit(pk="rate:u")])
    tokens = {job.pk: str(job.pk) for job in (locked, free)}
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_limit WHERE key = 'rate:t' FOR UPDATE")
        assert [one.job_id for one in claims.claim(tokens, worker_id=worker.pk)] == [free.pk]
        other.commit()
    assert [one.job_id for one in claims.claim(tokens, worker_id=worker.pk)] == [locked.pk]


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"concurrency_key": "u", "concurrency_limit": 1}, {"queue": "video"}])
def test_where_the_clock_was_put_back_what_runs_is_counted(fields: dict[str, Any]) -> None:
    QueueControl.objects.create(name="video", concurrency_limit=1)
    worker, jobs = make_worker(), [make_job(**fields) for _ in range(3)]
    assert start(jobs[0], worker)
    claims.complete({jobs[0].pk: (Job.objects.get(pk=jobs[0].pk).claim_token, None)})
    # What ran before was started by a clock that was ahead.
    Limit.objects.update(running_since=Now() + timedelta(minutes=1))
    assert set(paced.running(keys=["u"], queues=["video"]).values()) == {0}
    assert start(jobs[1], worker)
    assert sum(paced.running(keys=["u"], queues=["video"]).values()) == 1
    assert not start(jobs[2], worker)


@pytest.mark.django_db
def test_a_slower_rate_after_a_faster_one_lets_nothing_start_beyond_it() -> None:
    control = QueueControl.objects.create(name="video", rate_limit="5/s")
    for _ in range(4):
        assert starts_of(6, queue="video") == 5
        let_time_pass(timedelta(seconds=2))
    QueueControl.objects.filter(pk=control.pk).update(rate_limit="10/m")
    [free] = paced.free_starts([("queue:video", Rate.parse("10/m"))], most=16).values()
    assert free.free == 0
    assert free.more_at is not None
    assert starts_of(3, queue="video") == 0
    obstacle = limits.obstacle(make_job(queue="video"))
    assert obstacle is not None
    assert "has had its 10/m starts" in obstacle.text
    let_time_pass(timedelta(seconds=61))
    assert starts_of(15, queue="video") == 10


def wait_for_a_lock() -> None:
    wait_until(somebody_waits_for_a_lock)


KINDS: dict[str, dict[str, Any]] = {
    "rate": {"rate_key": "t", "rate_limit": "1000/h"},
    "concurrency": {"concurrency_key": "u", "concurrency_limit": 10},
    "queue": {"queue": "video"},
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", KINDS)
def test_what_died_beside_an_old_snapshot_costs_a_claim_nothing(kind: str) -> None:
    QueueControl.objects.create(name="video", rate_limit="1000/h", concurrency_limit=10)
    worker = make_worker()
    fields = KINDS[kind]
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM jobs_job")
        # The first plans what the others do, and so does one after the statistics have changed.
        pages = [pages_of_a_claim(make_job(**fields), worker) for _ in range(300)]
        other.commit()
    assert Job.objects.filter(state="completed").count() == 300
    assert median(pages[-20:]) <= min(pages[1:20]) + 25


def pages_of_a_claim(job: Job, worker: Worker) -> int:
    """Claims a job and ends it; returns how many pages the claim has looked at."""
    token = str(job.pk)
    candidates, _ = limited_claims.sorted_out({job.pk: token})
    parameters = limited_claims.parameters_of(candidates, worker_id=worker.pk, tasks=None)
    pages = pages_read(limited_claims.CLAIM_LIMITED, parameters)
    assert claims.complete({job.pk: (token, None)})
    # As if the seconds had passed in which the moment moves on.
    Limit.objects.filter(running_since__isnull=False).update(running_since=Now())
    return pages


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"concurrency_key": "u", "concurrency_limit": 2}, {"queue": "video"}])
def test_running_jobs_are_looked_for_from_the_start_of_the_earliest(fields: dict[str, Any]) -> None:
    QueueControl.objects.create(name="video", concurrency_limit=2)
    worker, ended, running = make_worker(), make_job(**fields), make_job(**fields)
    for job, seconds in ((ended, 60), (running, 30)):
        assert start(job, worker)
        Job.objects.filter(pk=job.pk).update(started_at=F("started_at") - timedelta(seconds=seconds))
    Limit.objects.update(running_since=None)
    assert not start(make_job(**fields), worker)
    assert Limit.objects.get().running_since == Job.objects.get(pk=ended.pk).started_at
    claims.complete({ended.pk: (Job.objects.get(pk=ended.pk).claim_token, None)})
    assert start(make_job(**fields), worker)
    assert Limit.objects.get().running_since == Job.objects.get(pk=running.pk).started_at
    assert not start(make_job(**fields), worker)


@pytest.mark.django_db(transaction=True)
def test_a_job_that_cannot_be_claimed_keeps_no_other_from_it() -> None:
    worker, bad, good = make_worker(), make_job(rate_key="t"), make_job(rate_key="t")
    tokens = {bad.pk: "x" * 200, good.pk: "good"}
    with pytest.raises(DataError):
        claims.claim({bad.pk: tokens[bad.pk]}, worker_id=worker.pk)
    assert [one.job_id for one in claims.claim(tokens, worker_id=worker.pk)] == [good.pk]
