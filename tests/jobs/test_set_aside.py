"""A row that cannot be processed is set aside, named, and failed in the end, while its neighbours go on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, OperationalError, connection
from django.db.models.functions import Now
from psycopg.errors import LockNotAvailable, ProgramLimitExceeded

from jobs import flows, services
from jobs.dispatcher import flows as dispatcher_flows
from jobs.dispatcher import levels, pacing, set_aside
from jobs.dispatcher.due import run_once
from jobs.dispatcher.flows import Ends
from jobs.dispatcher.pacing import Pacer
from jobs.dispatcher.rescue import Rescuer
from jobs.dispatcher.set_aside import SetAside, TooManyFailed
from jobs.limits import Limits
from jobs.models import Attempt, AuditEntry, Flow, Job, Worker
from jobs.queues import QUEUES, Queue
from tests import sample_tasks
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.variants import variant

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
LEAVES_ITS_STATE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.task = 'odd' AND NEW.state <> 'failed' THEN RAISE EXCEPTION 'odd row'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON jobs_job FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def _odd_jobs_stay(db: None) -> None:
    """PostgreSQL refuses every change of a job of the task "odd", but for its failure."""
    with connection.cursor() as cursor:
        cursor.execute(LEAVES_ITS_STATE)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait is long."""
    monkeypatch.setattr(set_aside, "_FIRST_WAIT_SECONDS", 0.0)


@pytest.mark.usefixtures("_odd_jobs_stay")
@pytest.mark.parametrize("what", ["due", "expiry"])
def test_one_job_that_cannot_be_moved_keeps_no_other_and_fails_after_five_tries(what: str) -> None:
    fields: dict[str, Any] = {"state": "delayed", "run_at": Now() - MINUTE}
    if what == "expiry":
        fields = {"state": "waiting", "expires_at": Now() - MINUTE}
    delayed, expiring = SetAside("due"), SetAside("expiry")
    odd = make_job(task="odd", **fields)
    for number in range(5):
        assert state_of(odd.pk) == fields["state"]
        neighbour = make_job(**fields)
        run_once(delayed=delayed, expiring=expiring)
        assert state_of(neighbour.pk) != fields["state"], number
    odd.refresh_from_db()
    assert odd.state == "failed"
    assert odd.error.startswith(f"It could not be processed by the dispatcher's duty {what}: ")
    assert "odd row" in odd.error
    assert AuditEntry.objects.get().actor_name == "the dispatcher"


@pytest.mark.usefixtures("_odd_jobs_stay")
def test_where_none_can_be_processed_the_duty_fails_and_no_job() -> None:
    odd = make_job(task="odd", state="delayed", run_at=Now() - MINUTE)
    delayed = SetAside("due")
    for _ in range(10):
        with pytest.raises(DatabaseError, match="odd row"):
            run_once(delayed=delayed)
    assert state_of(odd.pk) == "delayed"


@pytest.mark.usefixtures("_odd_jobs_stay")
def test_where_no_job_can_be_expired_others_are_made_due_all_the_same() -> None:
    odd = make_job(task="odd", expires_at=Now() - MINUTE)
    due = make_job(state="delayed", run_at=Now() - MINUTE)
    with pytest.raises(DatabaseError, match="odd row"):
        run_once()
    assert (state_of(odd.pk), state_of(due.pk)) == ("waiting", "waiting")


class Odd(RuntimeError):
    """What nobody has thought of."""


@pytest.fixture
def _short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look tries few rows alone, so that few are many."""
    monkeypatch.setattr(set_aside, "_MOST_ALONE", 5)
    monkeypatch.setattr(dispatcher_flows, "_BATCH", 5)


def looks_until(is_over: Callable[[], bool], look: Callable[[], object], *, most: int) -> None:
    """Looks until then, whatever looks raise."""
    for _ in range(most):
        with suppress(DatabaseError, TooManyFailed, Odd):
            look()
        if is_over():
            return
    raise AssertionError(f"Not after {most} looks.")


def is_moved(job: Job) -> bool:
    """Whether it has left its state."""
    return state_of(job.pk) != job.state


@pytest.mark.usefixtures("_odd_jobs_stay")
@pytest.mark.parametrize("what", ["due", variant("expiry")])
def test_a_thousand_before_it_that_cannot_be_moved_keep_no_job_waiting(what: str) -> None:
    fields: dict[str, Any] = {"state": "delayed", "run_at": Now() - 60 * MINUTE}
    later: dict[str, Any] = {"state": "delayed", "run_at": Now() - MINUTE}
    if what == "expiry":
        fields = {"state": "waiting", "expires_at": Now() - 60 * MINUTE}
        later = {"state": "waiting", "expires_at": Now() - MINUTE}
    Job.objects.bulk_create([Job(task="odd", queue="default", **fields) for _ in range(1000)])
    neighbour = make_job(**later)
    delayed, expiring = SetAside("due"), SetAside("expiry")

    def look() -> None:
        run_once(delayed=delayed, expiring=expiring)

    looks_until(partial(is_moved, neighbour), look, most=11)
    assert Job.objects.filter(task="odd", state=fields["state"]).count() == 1000
    # From then on, they are in nobody's way.
    for _ in range(3):
        looks_until(partial(is_moved, make_job(**later)), look, most=1)


@pytest.mark.usefixtures("_odd_jobs_stay", "_short_pages")
def test_of_many_that_cannot_be_moved_ten_are_failed_and_the_duty_says_so_as_long_as_there_are_more() -> None:
    Job.objects.bulk_create(
        [Job(task="odd", queue="default", state="delayed", run_at=Now() - 60 * MINUTE) for _ in range(20)]
    )
    delayed = SetAside("due")
    failed = Job.objects.filter(task="odd", state="failed")

    def look() -> None:
        neighbour = make_job(state="delayed", run_at=Now() - MINUTE)
        try:
            run_once(delayed=delayed)
        finally:
            assert number_known < 20 or state_of(neighbour.pk) == "waiting"

    number_known = 0
    looks_until(lambda: len(delayed.known()) == 20, look, most=6)
    number_known = 20
    looks_until(lambda: failed.count() == 10, look, most=30)
    for _ in range(10):
        with pytest.raises(TooManyFailed, match=r"10 jobs were failed within a minute, and .* more"):
            look()
    assert failed.count() == 10


@pytest.mark.usefixtures("_odd_jobs_stay", "_short_pages")
def test_beyond_those_that_are_remembered_looks_go_on_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_aside, "_MOST_ASIDE", 5)
    Job.objects.bulk_create(
        [Job(task="odd", queue="default", state="delayed", run_at=Now() - 60 * MINUTE) for _ in range(40)]
    )
    delayed = SetAside("due")
    for _ in range(3):
        neighbour = make_job(state="delayed", run_at=Now() - MINUTE)
        looks_until(partial(is_moved, neighbour), lambda: run_once(delayed=delayed), most=10)


@pytest.mark.usefixtures("_odd_jobs_stay")
def test_one_that_has_left_its_state_meanwhile_is_forgotten() -> None:
    odd, other = (make_job(task="odd", state="delayed", run_at=Now() - MINUTE) for _ in range(2))
    delayed = SetAside("due")
    for _ in range(2):
        with pytest.raises(DatabaseError, match="odd row"):
            run_once(delayed=delayed)
    Job.objects.filter(pk=odd.pk).update(state="failed", finished_at=Now())
    with pytest.raises(DatabaseError, match="odd row"):
        run_once(delayed=delayed)
    assert delayed.known() == [other.pk]


@pytest.mark.usefixtures("_odd_jobs_stay")
def test_while_it_waits_it_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(set_aside, "_FIRST_WAIT_SECONDS", 60.0)
    delayed = SetAside("due")
    odd = make_job(task="odd", state="delayed", run_at=Now() - MINUTE)
    make_job(state="delayed", run_at=Now() - MINUTE)
    run_once(delayed=delayed)
    assert f"id={odd.pk} cannot be processed" in caplog.text
    caplog.clear()
    neighbour = make_job(state="delayed", run_at=Now() - MINUTE)
    run_once(delayed=delayed)
    assert caplog.text == ""
    assert state_of(neighbour.pk) == "waiting"


def fail_all_but(good: UUID) -> Any:
    def act(job_id: UUID) -> None:
        if job_id != good:
            raise ValueError("odd")

    return act


def test_a_duty_fails_ten_jobs_a_minute_and_then_itself() -> None:
    good, odd = make_job().pk, [make_job().pk for _ in range(12)]
    aside = SetAside("due")
    for _ in range(4):
        aside.each([good, *odd], fail_all_but(good))
    with pytest.raises(TooManyFailed, match="10 jobs were failed within a minute"):
        aside.each([good, *odd], fail_all_but(good))
    assert Job.objects.filter(state="failed").count() == 10


def test_an_outage_counts_for_nobody() -> None:
    good, odd = make_job().pk, make_job().pk
    aside = SetAside("due")

    def act(job_id: UUID) -> None:
        if job_id == odd:
            raise OperationalError("gone")

    for _ in range(10):
        with pytest.raises(OperationalError):
            aside.each([good, odd], act)
    assert state_of(odd) == "waiting"


def test_one_that_somebody_holds_keeps_no_other_and_the_duty_says_so() -> None:
    held, good, odd = make_job().pk, make_job().pk, make_job().pk
    aside = SetAside("due")
    done: list[UUID] = []

    def act(job_id: UUID) -> None:
        if job_id == held:
            raise OperationalError("canceling statement due to lock timeout") from LockNotAvailable("held")
        if job_id == odd:
            raise ValueError("odd")
        done.append(job_id)

    for _ in range(5):
        with pytest.raises(OperationalError, match="lock timeout"):
            aside.each([held, odd, good], act)
    assert done == [good] * 5
    assert (state_of(held), state_of(odd)) == ("waiting", "failed")


def test_where_somebody_holds_many_not_all_are_waited_for() -> None:
    tried: list[UUID] = []

    def act(job_id: UUID) -> None:
        tried.append(job_id)
        raise OperationalError("canceling statement due to lock timeout") from LockNotAvailable("held")

    with pytest.raises(OperationalError):
        SetAside("due").each([uuid4() for _ in range(100)], act)
    assert len(tried) == 3


def test_a_job_that_exceeds_a_limit_of_postgresqls_is_no_outage() -> None:
    good, odd = make_job().pk, make_job().pk
    aside = SetAside("due")

    def act(job_id: UUID) -> None:
        if job_id == odd:
            raise OperationalError("too large") from ProgramLimitExceeded("too large")

    for _ in range(5):
        assert aside.each([good, odd], act) == 1
    assert state_of(odd) == "failed"


def test_what_succeeds_in_between_begins_anew() -> None:
    good, odd = make_job().pk, make_job().pk
    aside = SetAside("due")
    for _ in range(5):
        for _ in range(4):
            aside.each([good, odd], fail_all_but(good))
        assert aside.each([good, odd], lambda _: None) == 2
    assert state_of(odd) == "waiting"


@pytest.mark.parametrize("state", ["waiting", "delayed", "active"])
def test_a_failure_of_the_dispatchers_is_undone_as_any_other(state: str) -> None:
    job = make_job(state="waiting" if state == "active" else state)
    if state == "active":
        claim_job(job, make_worker())
    assert set_aside.fail(job.pk, "odd")
    assert state_of(job.pk) == "failed"
    assert Attempt.objects.count() == (state == "active")
    assert not set_aside.fail(job.pk, "odd")
    assert not set_aside.fail(uuid4(), "odd")
    services.retry_job(job_id=job.pk, actor="ann")
    assert state_of(job.pk) == "waiting"


def test_no_more_are_remembered_than_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_aside, "_MOST_ASIDE", 5)
    good = uuid4()
    aside = SetAside("due")
    with pytest.raises(TooManyFailed, match="More than 5 jobs"):
        aside.each([good, *(uuid4() for _ in range(7))], fail_all_but(good))


def make_lost(worker: Worker, **fields: Any) -> Job:
    """A job that a dead worker has left."""
    return make_job(
        **{"state": "active", "worker_id": worker.pk, "claim_token": "t", "started_at": Now() - MINUTE, **fields}
    )


@pytest.mark.usefixtures("_odd_jobs_stay")
def test_a_job_that_cannot_be_rescued_keeps_no_other_and_fails_after_five_tries() -> None:
    worker = make_worker(dead_at=Now())
    odd = make_lost(worker, task="odd")
    rescuer = Rescuer()
    for number in range(5):
        assert state_of(odd.pk) == "active", number
        neighbour = make_lost(worker)
        rescuer.run_once()
        assert state_of(neighbour.pk) == "waiting"
    odd.refresh_from_db()
    assert odd.state == "failed"
    assert odd.error.startswith("It could not be processed by the dispatcher's duty rescue: ")
    assert Attempt.objects.filter(job=odd).count() == 1


@pytest.mark.usefixtures("_odd_jobs_stay")
def test_where_no_job_can_be_rescued_the_duty_fails_and_no_job() -> None:
    odd = make_lost(make_worker(dead_at=Now()), task="odd")
    rescuer = Rescuer()
    for _ in range(10):
        with pytest.raises(DatabaseError, match="odd row"):
            rescuer.run_once()
    assert state_of(odd.pk) == "active"


@pytest.fixture
def pacer(empty_redis: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacer]:
    """A pacer that cannot read the limits of one lane."""
    read = Limits.of

    def of(queue: Queue, own: Mapping[str, Any]) -> Limits:
        if own["rate_key"] == "odd":
            raise Odd("odd limits")
        return read(queue, own)

    monkeypatch.setattr(Limits, "of", of)
    monkeypatch.setattr(pacing, "CIRCUMSTANCES_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "TOP_UP_SECONDS", 0.0)
    monkeypatch.setattr(levels, "WALK_SECONDS", 0.0)
    make_worker(queues=["default", "crm"], concurrency=20)
    pacer = Pacer()
    yield pacer
    pacer.close()


@pytest.mark.parametrize("queue", ["default", "crm"])
def test_a_job_whose_limits_cannot_be_read_keeps_no_other_and_fails_after_five_looks(pacer: Pacer, queue: str) -> None:
    odd, next_odd = (make_job(rate_key="odd", rate_limit="5/s") for _ in range(2))
    given = set()
    for number in range(5):
        assert state_of(odd.pk) == "waiting", number
        neighbour = make_job(queue=queue, concurrency_key=f"{number}", concurrency_limit=1)
        given.add(neighbour.pk)
        pacer.look()
        assert given == {job_id for ids in pacer._doorbell.granted(QUEUES).values() for job_id in ids}
    odd.refresh_from_db()
    assert odd.state == "failed"
    assert odd.error == "It could not be processed by the dispatcher's duty pacing: Odd: odd limits"
    assert state_of(next_odd.pk) == "waiting"


def test_where_no_limits_can_be_read_pacing_fails_and_no_job(pacer: Pacer) -> None:
    odd = make_job(rate_key="odd", rate_limit="5/s")
    for _ in range(10):
        with pytest.raises(Odd):
            pacer.look()
    assert state_of(odd.pk) == "waiting"


def test_a_flow_that_cannot_be_closed_fails_its_job_after_five_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    def fan() -> UUID:
        result = flows.fan_out(None, [sample_tasks.add.s(1, 2)], then=sample_tasks.add.s(1))
        Job.objects.filter(flow_id__isnull=False, state="waiting").update(
            state="completed", result=3, finished_at=Now()
        )
        return UUID(result.id)

    odd = fan()
    odd_flow = Job.objects.get(pk=odd).awaited_flow_id
    close = flows.close_if_ended

    def close_or_raise(flow_id: UUID) -> bool:
        if flow_id == odd_flow:
            raise Odd("odd flow")
        return close(flow_id)

    monkeypatch.setattr(flows, "close_if_ended", close_or_raise)
    ends = Ends()
    for number in range(5):
        assert state_of(odd) == "delayed", number
        neighbour = fan()
        ends.run_once()
        assert state_of(neighbour) == "waiting"
    job = Job.objects.get(pk=odd)
    assert (job.state, Flow.objects.filter(closed_at=None).exists()) == ("failed", False)
    assert "the dispatcher's duty flows: Odd: odd flow" in job.error
    assert AuditEntry.objects.get(thing_id=str(odd)).actor_name == "the dispatcher"


@pytest.mark.usefixtures("_short_pages")
def test_many_flows_that_cannot_be_closed_keep_no_other_open(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {Flow.objects.create().pk for _ in range(20)}
    for flow_id in odd:
        make_job(task="then", state="delayed", is_held=True, awaited_flow_id=flow_id)
    neighbour = flows.fan_out(None, [], then=sample_tasks.add.s(1))
    close = flows.close_if_ended

    def close_or_raise(flow_id: UUID) -> bool:
        if flow_id in odd:
            raise Odd("odd flow")
        return close(flow_id)

    monkeypatch.setattr(flows, "close_if_ended", close_or_raise)
    looks_until(lambda: state_of(neighbour.id) == "waiting", Ends().run_once, most=5)


def test_where_no_flow_can_be_closed_the_duty_fails_and_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = flows.fan_out(None, [], then=sample_tasks.add.s(1))

    def refuse(flow_id: UUID) -> bool:
        raise Odd("odd flow")

    monkeypatch.setattr(flows, "close_if_ended", refuse)
    ends = Ends()
    for _ in range(10):
        with pytest.raises(Odd):
            ends.run_once()
    assert state_of(odd.id) == "delayed"
