"""The claimer's thread, on real PostgreSQL and Redis: what it claims, in which order, and what it leaves to others."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
from django.db import connections
from django.db.models.functions import Now

from devstack.throwaway import Server
from jobs import below, claims
from jobs.dispatcher import ageing
from jobs.dispatcher.pacing import Pacer
from jobs.doorbell import MOST_NAMED, Doorbell
from jobs.limits import COLUMNS, lane_of
from jobs.models import Attempt, Job, Limit, QueueControl, Worker
from jobs.worker import claimer, floors, identity
from jobs.worker.claimer import Claimer
from jobs.worker.floors import Floors
from jobs.worker.requests import claimed, running_tokens
from tests.jobs.connections import another_connection
from tests.jobs.factories import make_job, make_worker, state_of
from tests.jobs.worker_stand_in import Started, WorkerStandIn
from tests.sample_tasks import add, append_line
from tests.waiting import wait_until

OLD = timedelta(minutes=5)
Begin = Callable[..., WorkerStandIn]


@pytest.fixture
def doorbell(empty_redis: None) -> Iterator[Doorbell]:
    doorbell = Doorbell.patient()
    yield doorbell
    doorbell.close()


@pytest.fixture
def begin(transactional_db: None, empty_redis: None) -> Iterator[Begin]:
    """Starts the claimer of a worker that knows one task; other workers are the test's own claims."""
    claimers: list[Claimer] = []
    workers: list[WorkerStandIn] = []

    def begin(*queues: str, slot_count: int = 1) -> WorkerStandIn:
        worker = WorkerStandIn(*queues, tasks=[add.name], slot_count=slot_count)
        claimers.append(Claimer(worker, tasks=[add.name]))
        workers.append(worker)
        claimers[-1].start()
        return worker

    row = make_worker(queues=["default", "images", "email"], tasks=[add.name])
    with identity.assumed(row.pk):
        yield begin
        for one in claimers:
            one.stop()
        for one in claimers:
            one.join()
    for worker in workers:
        worker.close()


def make_jobs(count: int, **fields: Any) -> list[Job]:
    own = {name: fields.get(name) for name in COLUMNS}
    values = {"task": add.name, "queue": "default", "state": "waiting", "lane": lane_of(own), **fields}
    return Job.objects.bulk_create([Job(**values) for _ in range(count)])


def started(worker: WorkerStandIn, count: int) -> Callable[[], bool]:
    """Whether so many jobs have started since it began."""

    def look() -> bool:
        worker.turn()
        return len(worker.started) >= count

    return look


def start_one_after_the_other(
    worker: WorkerStandIn, count: int, *, meanwhile: Callable[[], object] = bool
) -> list[Started]:
    """Ends each job as soon as it has started, until there were so many."""
    ended = 0

    def look() -> bool:
        nonlocal ended
        worker.turn()
        for one in worker.started[ended:]:
            one.end()
            ended += 1
        meanwhile()
        return ended >= count

    wait_until(look, timeout=120)
    return worker.started[:count]


# -- What is claimed ---------------------------------------------------------------------------------------------------
def test_jobs_that_wait_already_are_started_the_most_urgent_first(begin: Begin) -> None:
    jobs = [make_job(priority=priority) for priority in (9, 5, 0)]
    worker = begin("default", slot_count=3)
    wait_until(started(worker, 3))
    assert worker.started_ids == [job.pk for job in reversed(jobs)]
    assert {job.claim_token for job in Job.objects.all()} == running_tokens()


def test_no_more_are_claimed_than_there_are_slots_while_jobs_take_their_time(begin: Begin, doorbell: Doorbell) -> None:
    make_jobs(10)
    worker = begin("default", slot_count=3)
    wait_until(started(worker, 3))
    # This worker has its hands full: the others are told.
    wait_until(lambda: doorbell.message_counts(["default"]) == {"default": 1})
    assert Job.objects.filter(state="active").count() == 3
    worker.started[0].end()
    wait_until(started(worker, 4))
    assert Job.objects.filter(state="active").count() == 3


def test_a_ring_ends_the_pause_of_a_worker_that_found_nothing(begin: Begin) -> None:
    worker = begin("default", "images", slot_count=2)
    for count, queue in enumerate(("images", "default"), start=1):
        add.apply_async((1, 2), queue=queue)
        wait_until(started(worker, count))


@pytest.mark.parametrize("is_rung", [True, False])
def test_a_job_is_found_whether_its_ring_arrives_or_not(begin: Begin, doorbell: Doorbell, is_rung: bool) -> None:
    worker = begin("default")
    job = make_job()
    if is_rung:
        doorbell.ring("default", 5)
    wait_until(started(worker, 1))
    assert worker.started_ids == [job.pk]


def test_without_redis_jobs_are_found_all_the_same_and_the_main_thread_is_told(
    begin: Begin, redis_server: Server
) -> None:
    worker = begin("default", slot_count=9)
    redis_server.freeze()
    for count in range(1, 4):
        make_job()
        wait_until(started(worker, count))
    assert worker.left_count > 0


def test_without_a_connection_to_the_broker_jobs_are_found_all_the_same(begin: Begin) -> None:
    worker = begin("default", slot_count=9)
    worker.connection = None
    for count in range(1, 4):
        make_job()
        wait_until(started(worker, count))
    assert worker.left_count == 0


def test_a_claim_goes_on_when_postgresql_is_back(begin: Begin, postgres_server: Server) -> None:
    worker = begin("default", slot_count=9)
    make_job()
    wait_until(started(worker, 1))
    postgres_server.restart()
    connections.close_all()
    make_job()
    wait_until(started(worker, 2))


def test_jobs_of_tasks_that_the_worker_does_not_know_hold_nobody_up_and_stay_as_they_are(begin: Begin) -> None:
    unknown = [make_job(task=append_line.name, priority=0) for _ in range(30)]
    before = list(Job.objects.order_by("pk").values())
    known = make_job(priority=9)
    worker = begin("default", slot_count=3)
    wait_until(started(worker, 1))
    assert worker.started_ids == [known.pk]
    assert list(Job.objects.filter(pk__in=[job.pk for job in unknown]).order_by("pk").values()) == before


def test_a_queue_that_the_worker_does_not_consume_any_more_is_left_to_others(begin: Begin) -> None:
    worker = begin("default", "images", slot_count=9)
    make_job(queue="images")
    wait_until(started(worker, 1))
    del worker.consume_from["images"]
    other = make_job(queue="images")
    for count in range(2, 5):
        make_job()
        wait_until(started(worker, count))
    assert state_of(other.pk) == "waiting"


# -- Grants ------------------------------------------------------------------------------------------------------------
def test_a_job_with_limits_starts_when_it_is_granted_and_not_before(begin: Begin, doorbell: Doorbell) -> None:
    limited, free = make_job(queue="email"), make_job()
    worker = begin("default", "email", slot_count=3)
    wait_until(started(worker, 1))
    doorbell.ring("email", 5)
    later = make_job()
    wait_until(started(worker, 2))
    assert worker.started_ids == [free.pk, later.pk]
    doorbell.grant("email", {limited.pk: 5})
    wait_until(started(worker, 3))
    assert worker.started_ids[-1] == limited.pk


def test_grants_of_jobs_that_may_not_start_are_dropped_and_keep_no_other_waiting(
    begin: Begin, doorbell: Doorbell
) -> None:
    QueueControl.objects.create(name="images", concurrency_limit=0, paused_at=Now())
    ended, paused, unknown = (
        make_job(rate_key="t", state="completed"),
        make_job(queue="images", rate_key="t"),
        make_job(rate_key="t", task=append_line.name),
    )
    granted = make_job(rate_key="t", priority=9)
    worker = begin("default", "images")
    doorbell.grant("default", {ended.pk: 0, unknown.pk: 0, uuid4(): 0, granted.pk: 9})
    doorbell.grant("images", {paused.pk: 0})
    wait_until(started(worker, 1))
    assert worker.started_ids == [granted.pk]
    wait_until(lambda: doorbell.message_counts(["default", "images"]) == {"default": 0, "images": 0})
    assert [state_of(job.pk) for job in (ended, paused, unknown)] == ["completed", "waiting", "waiting"]


def test_what_the_pacer_grants_is_started_within_its_limit(begin: Begin) -> None:
    make_jobs(6, concurrency_key="u", concurrency_limit=2)
    worker, pacer = begin("default", slot_count=9), Pacer()
    most = 0

    def look() -> bool:
        nonlocal most
        pacer.look()
        worker.turn()
        running = Job.objects.filter(state="active").count()
        most = max(most, running)
        if running == 2:
            next(one for one in worker.started if state_of(one.claim.job_id) == "active").end()
        return len(worker.started) == 6

    wait_until(look)
    pacer.close()
    assert most == 2


@pytest.fixture
def floors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One claim, and floors are used; the walk below them finds nothing in time."""
    for name, value in {"SLOW_SECONDS": 0, "SLOW_FACTOR": 0, "_SLOW_CLAIMS": 1}.items():
        monkeypatch.setattr(floors, name, value)
    monkeypatch.setattr(below, "_PAUSE_SECONDS", 3600)


def test_a_job_below_the_floors_that_was_named_while_every_slot_was_taken_is_started_all_the_same(
    begin: Begin, doorbell: Doorbell, floors_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each name counts as one that no slot was free for.
    monkeypatch.setattr(claimer, "_GRANT_SECONDS", -1)
    worker = begin("default", slot_count=9)
    for count in (1, 2):
        make_job()
        wait_until(started(worker, count))
    late = make_job(run_at=Now() - OLD)
    doorbell.ring_for("default", late.pk, late.priority)
    wait_until(started(worker, 3))
    assert worker.started_ids[-1] == late.pk


def test_the_looks_of_a_worker_that_claims_nothing_begin_at_floors_too_once_they_are_slow(
    begin: Begin, floors_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def look(queues: Any) -> list[str]:
        looks.append(len(queues))
        return []

    monkeypatch.setattr(claims, "queues_with_waiting", look)
    worker = begin("default", "images", slot_count=2)
    # Nothing waits at the heads that it looks at, and what it looks at is nothing.
    wait_until(lambda: looks[:1] == [2] and looks[-1] == 0)
    make_job()
    wait_until(started(worker, 1))


def test_of_many_jobs_that_are_committed_late_together_those_that_are_not_named_start_as_well(
    begin: Begin, doorbell: Doorbell, floors_at_once: None
) -> None:
    worker = begin("default", slot_count=99)
    for count in (1, 2):
        make_job()
        wait_until(started(worker, count))
    many = [
        *make_jobs(40, priority=5, run_at=Now() - OLD),
        *make_jobs(1, priority=2, run_at=Now() - OLD),
        *make_jobs(1, priority=9, run_at=Now() - OLD),
    ]
    # The doorbell names no more than these.
    for job in many[:MOST_NAMED]:
        doorbell.ring_for("default", job.pk, job.priority)
    doorbell.ring("default", 9)
    wait_until(started(worker, 2 + len(many)))
    assert set(worker.started_ids[2:]) == {job.pk for job in many}


# -- Who goes first ----------------------------------------------------------------------------------------------------
def test_two_queues_of_a_worker_take_turns_whatever_their_priorities(begin: Begin) -> None:
    make_jobs(60, priority=0)
    other = {job.pk for job in make_jobs(60, queue="images", priority=9)}
    worker = begin("default", "images")
    found = start_one_after_the_other(worker, 60)
    assert 20 <= sum(one.claim.job_id in other for one in found) <= 40


def test_what_has_waited_for_less_than_a_minute_lets_every_urgent_job_go_first(begin: Begin) -> None:
    young = {job.pk for job in make_jobs(10, priority=9)}
    make_jobs(60, priority=1)
    worker = begin("default")
    found = start_one_after_the_other(worker, 60)
    assert young.isdisjoint(one.claim.job_id for one in found)


@pytest.mark.parametrize(("slot_count", "start_count"), [(1, 120), (40, 400)])
def test_while_urgent_jobs_keep_coming_every_tenth_start_is_the_oldest_jobs(
    begin: Begin, slot_count: int, start_count: int
) -> None:
    old = [job.pk for job in make_jobs(100, priority=9, run_at=Now() - OLD)]
    make_jobs(500, priority=1)
    worker = begin("default", slot_count=slot_count)
    found = [one.claim.job_id for one in start_one_after_the_other(worker, start_count)]
    ahead = [job_id for job_id in found if job_id in old]
    assert ahead == old[: len(ahead)]
    # Where several start at once, several old ones follow: then the share is exact again.
    turns = [place for place in range(1, len(found)) if found[place - 1] in old and found[place] not in old]
    assert len(turns) >= 4
    for place in turns:
        old_count = sum(job_id in old for job_id in found[:place])
        assert old_count == (place - old_count) // (ageing.SHARE - 1)
    if slot_count == 1:
        assert [place for place, job_id in enumerate(found, start=1) if job_id in old][:5] == [10, 20, 30, 40, 50]


def test_a_queue_in_which_all_jobs_are_young_takes_no_turn_of_the_old_ones_of_another(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimer, "_YOUNG_SECONDS", 3600)
    make_jobs(200, priority=1)
    make_jobs(200, queue="images", priority=1)
    old = {job.pk for job in make_jobs(50, queue="images", priority=9, run_at=Now() - OLD)}
    worker = begin("default", "images")
    found = [one.claim for one in start_one_after_the_other(worker, 200)]
    assert sum(claim.job_id in old for claim in found) >= 0.05 * sum(claim.queue == "images" for claim in found)


@pytest.mark.parametrize("slot_count", [1, 4])
@pytest.mark.parametrize("limited_are_urgent", [True, False])
def test_of_one_queue_the_more_urgent_go_first_whether_they_were_granted_or_have_no_limits(
    begin: Begin, doorbell: Doorbell, limited_are_urgent: bool, slot_count: int
) -> None:
    limited = make_jobs(60, rate_key="t", priority=0 if limited_are_urgent else 9)
    plain = make_jobs(60, priority=9 if limited_are_urgent else 0)
    priorities = {job.pk: job.priority for job in limited}

    def grant_anew() -> None:
        waiting = set(Job.objects.filter(state="waiting", pk__in=priorities).values_list("pk", flat=True)[:16])
        doorbell.grant("default", {job_id: priorities[job_id] for job_id in waiting})

    grant_anew()
    worker = begin("default", slot_count=slot_count)
    found = [one.claim.job_id for one in start_one_after_the_other(worker, 120, meanwhile=grant_anew)]
    urgent = {job.pk for job in (limited if limited_are_urgent else plain)}
    # Some are claimed together.
    early = sum(job_id not in urgent for job_id in found[:60])
    assert early <= slot_count


def test_a_grant_starts_at_once_beside_less_urgent_ones_that_have_no_limits_and_so_do_those_after_it(
    begin: Begin, doorbell: Doorbell
) -> None:
    make_jobs(40, priority=9)
    [granted] = make_jobs(1, rate_key="t", priority=0)
    doorbell.grant("default", {granted.pk: 0})
    worker = begin("default")
    found = start_one_after_the_other(worker, 41)
    assert found[0].claim.job_id == granted.pk


def test_while_urgent_jobs_are_granted_every_tenth_start_is_that_of_an_old_one_without_limits(
    begin: Begin, doorbell: Doorbell
) -> None:
    old = [job.pk for job in make_jobs(50, priority=9, run_at=Now() - OLD)]
    limited = {job.pk for job in make_jobs(200, rate_key="t", priority=0)}

    def grant_anew() -> None:
        waiting = Job.objects.filter(state="waiting", pk__in=limited).values_list("pk", flat=True)[:16]
        doorbell.grant("default", dict.fromkeys(waiting, 0))

    grant_anew()
    worker = begin("default")
    found = [one.claim.job_id for one in start_one_after_the_other(worker, 100, meanwhile=grant_anew)]
    ahead = [job_id for job_id in found if job_id in old]
    assert ahead == old[: len(ahead)]
    assert 8 <= len(ahead) <= 12


def test_jobs_with_limits_and_those_without_take_turns(
    begin: Begin, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where each job takes longer than the pause between two looks at Redis.
    monkeypatch.setattr(claimer, "_HEAR_SECONDS", 0)
    make_jobs(150)
    limited = {job.pk for job in make_jobs(150, rate_key="t")}
    worker = begin("default")

    def grant_anew() -> None:
        doorbell.grant("default", dict.fromkeys(limited.difference(worker.started_ids), 5), most=150)

    found = [one.claim.job_id for one in start_one_after_the_other(worker, 100, meanwhile=grant_anew)]
    count = len(limited.intersection(found))
    assert min(count, 100 - count) >= 5


# -- The end -----------------------------------------------------------------------------------------------------------
def test_what_was_claimed_and_not_started_when_the_worker_ends_is_handed_back_and_not_counted(
    transactional_db: None, empty_redis: None
) -> None:
    job = make_job()
    row = make_worker()
    worker = WorkerStandIn("default", tasks=[add.name])
    claims = Claimer(worker, tasks=[add.name])
    with identity.assumed(row.pk):
        claims.start()
        # The loop of the main thread does not turn.
        wait_until(lambda: state_of(job.pk) == "active")
        claims.stop()
        claims.join()
    found = Job.objects.get()
    assert (found.state, found.attempt, found.stalled_count) == ("waiting", 1, 0)
    assert not Attempt.objects.exists()
    assert running_tokens() == set()


def test_a_claimer_that_was_stopped_claims_nothing(begin: Begin) -> None:
    claims = Claimer(WorkerStandIn("default", tasks=[add.name]), tasks=[add.name])
    claims.stop()
    job = make_job()
    claims.start()
    claims.join()
    assert state_of(job.pk) == "waiting"


def test_a_worker_that_was_given_up_claims_nothing_more(begin: Begin, doorbell: Doorbell) -> None:
    worker = begin("default", slot_count=3)
    make_job()
    wait_until(started(worker, 1))
    Worker.objects.update(dead_at=Now())
    job = make_job()
    doorbell.ring("default", 5)
    wait_until(lambda: doorbell.message_counts(["default"]) == {"default": 0})
    worker.turn()
    assert state_of(job.pk) == "waiting"
    assert len(worker.started) == 1


@pytest.mark.parametrize("what", ["job", "job above floors", "limit"])
def test_what_somebody_has_locked_keeps_a_worker_from_no_other_job(
    begin: Begin, doorbell: Doorbell, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "job above floors":
        monkeypatch.setattr(Floors, "current", lambda _: dict.fromkeys(range(10), below.Position(below.BEGINNING)))
    own = {"rate_key": "t", "rate_limit": "10/s"} if what == "limit" else {}
    [locked] = make_jobs(1, priority=0, **own)
    Limit.objects.create(pk="rate:t")
    with another_connection() as other:
        with other.cursor() as cursor:
            if what == "limit":
                cursor.execute("SELECT FROM jobs_limit WHERE key = 'rate:t' FOR UPDATE")
            else:
                cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [locked.pk])
        if what == "limit":
            doorbell.grant("default", {locked.pk: 0})
        else:
            doorbell.ring_for("default", locked.pk, 0)
        worker = begin("default", slot_count=2)
        free = make_job(priority=9)
        doorbell.ring("default", 9)
        wait_until(started(worker, 1), timeout=10)
        assert worker.started_ids == [free.pk]
        other.commit()
    doorbell.grant("default", {locked.pk: 0})
    wait_until(started(worker, 2))
    assert worker.started_ids == [free.pk, locked.pk]


def test_a_job_that_is_named_goes_ahead_of_no_other(begin: Begin, doorbell: Doorbell) -> None:
    make_jobs(50, priority=0)
    named = make_job(priority=9, run_at=Now() - timedelta(seconds=10))
    doorbell.ring_for("default", named.pk, named.priority)
    worker = begin("default")
    found = start_one_after_the_other(worker, 51)
    assert found[-1].claim.job_id == named.pk


def test_what_is_given_back_waits_for_nobody(transactional_db: None, empty_redis: None) -> None:
    worker = make_worker(queues=["default"], tasks=[add.name])
    stand_in = WorkerStandIn("default", tasks=[add.name])
    intake = Claimer(stand_in, tasks=[add.name]).intake
    locked, free = make_jobs(2)
    intake.put(claims.claim_next("default", count=2, token="t", tasks=[add.name], worker_id=worker.pk))
    with identity.assumed(worker.pk):
        with another_connection() as other:
            with other.cursor() as cursor:
                cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [locked.pk])
            sleep(0.02)
            intake.give_back(patience_seconds=0.01)
            assert (state_of(locked.pk), state_of(free.pk)) == ("active", "waiting")
            assert [one.claim.job_id for one in intake._waiting] == [locked.pk]
            other.commit()
        sleep(0.02)
        intake.give_back(patience_seconds=0.01)
    assert state_of(locked.pk) == "waiting"
    assert not intake._waiting
    claimed.clear()
    stand_in.close()


def test_the_queues_that_a_worker_takes_and_gives_up_are_in_its_row(begin: Begin) -> None:
    worker = begin("default")
    row = Worker.objects.get()
    worker.consume_from["email"] = None
    wait_until(lambda: Worker.objects.get(pk=row.pk).queues == ["default", "email"])
    worker.consume_from.clear()
    wait_until(lambda: Worker.objects.get(pk=row.pk).queues == [])


def test_a_claim_that_cannot_be_handed_over_fails_its_job_and_no_other(begin: Begin) -> None:
    worker = begin("default", slot_count=2)

    def break_once(*_: Any) -> None:
        worker.strategies[add.name] = works
        raise ValueError("odd")

    works = worker.strategies[add.name]
    worker.strategies[add.name] = break_once
    broken, other = make_job(priority=0), make_job(priority=9)
    wait_until(started(worker, 1))
    job = Job.objects.get(pk=broken.pk)
    assert (job.state, job.error) == ("failed", "It could not be started: odd")
    assert worker.started_ids == [other.pk]


@pytest.mark.parametrize("fields", [{}, {"rate_key": "t"}], ids=["of a queue", "granted"])
def test_a_claim_that_is_committed_after_its_connection_was_lost_is_found_and_runs_once(
    transactional_db: None, empty_redis: None, fields: dict[str, Any]
) -> None:
    [job] = make_jobs(1, **fields)
    worker = make_worker(queues=["default"], tasks=[add.name])
    stand_in = WorkerStandIn("default", tasks=[add.name], slot_count=2)
    one = Claimer(stand_in, tasks=[add.name])
    token = f"token.{job.pk}"
    one._unanswered = partial(claims.claimed_before, token="token", worker_id=worker.pk)
    if fields:
        tokens = {job.pk: token}
        one._unanswered = partial(claims.claim, tokens, worker_id=worker.pk, tasks=["another.task"], repeated=True)
        one._late = partial(claims.claimed_as, tokens)
    one._answer()
    assert not one.intake._waiting
    # PostgreSQL went on with it although nobody listened any more.
    Job.objects.filter(pk=job.pk).update(state="active", worker_id=worker.pk, claim_token=token, started_at=Now())
    for _ in range(2):
        one._doubtful = [(0.0, ask) for _, ask in one._doubtful]
        one._answer()
        one._doubtful = [(0.0, one._late or partial(claims.claimed_as, {job.pk: token}))]
    assert [waiting.claim.job_id for waiting in one.intake._waiting] == [job.pk]
    with identity.assumed(worker.pk):
        one.intake.give_back(patience_seconds=0)
    assert state_of(job.pk) == "waiting"
    claimed.pop(token)
    stand_in.close()
