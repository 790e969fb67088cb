"""The dispatcher's duties, one look at a time, on real PostgreSQL and Redis."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db.models.functions import Now

from jobs.dispatcher import due, leader
from jobs.dispatcher.rescue import Rescuer
from jobs.dispatcher.thread import DispatcherThread
from jobs.doorbell import PACED, Doorbell, Taken
from jobs.models import Duty, Job, Worker
from jobs.queues import QUEUES
from jobs.worker import identity
from tests.jobs.factories import claim_job, make_job, make_worker, state_of


@pytest.fixture
def doorbell(empty_redis: None) -> Iterator[Doorbell]:
    doorbell = Doorbell.patient()
    yield doorbell
    doorbell.close()


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Callable[[UUID], None]:
    """Makes this process the worker of an id, for the length of the test."""
    return partial(monkeypatch.setattr, identity, "_incarnation")


@pytest.mark.django_db
def test_a_job_that_just_became_due_is_rung_for_at_once(doorbell: Doorbell) -> None:
    for _ in range(3):
        make_job(state="delayed", run_at=Now() - timedelta(seconds=1))
    assert not due.run_once()
    assert doorbell.take(["default"], 10) == [Taken("default", None)]
    assert set(Job.objects.values_list("state", flat=True)) == {"waiting"}


@pytest.mark.django_db
def test_each_queue_that_has_work_is_rung_for_and_the_leader_where_its_jobs_have_limits(doorbell: Doorbell) -> None:
    for fields in ({"queue": "images"}, {"queue": "video", "priority": 0}, {"queue": "email"}, {"rate_key": "t"}):
        make_job(state="delayed", run_at=Now() - timedelta(seconds=1), **fields)
    due.run_once()
    assert doorbell.message_counts(QUEUES) == {**dict.fromkeys(QUEUES, 0), "images": 1, "video": 1}
    assert doorbell.listen([PACED], 1)


@pytest.mark.django_db
def test_nobody_is_rung_for_where_nothing_is_due(doorbell: Doorbell) -> None:
    make_job(state="delayed", run_at=Now() + timedelta(minutes=1))
    make_job(expires_at=Now() - timedelta(seconds=1))
    assert not due.run_once()
    assert doorbell.message_counts(QUEUES) == dict.fromkeys(QUEUES, 0)
    assert set(Job.objects.values_list("state", flat=True)) == {"delayed", "cancelled"}


@pytest.mark.django_db
def test_where_more_may_be_due_a_look_says_so(doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(due, "_BATCH", 2)
    for _ in range(2):
        make_job(state="delayed", run_at=Now() - timedelta(seconds=1))
    assert [due.run_once() for _ in range(2)] == [True, False]
    assert set(Job.objects.values_list("state", flat=True)) == {"waiting"}


@pytest.mark.django_db
def test_after_a_start_every_worker_has_one_lease_to_show_that_it_lives() -> None:
    worker = make_worker(lease_expires_at=Now() - timedelta(minutes=1))
    job = make_job()
    claim_job(job, worker)
    rescuer = Rescuer()
    rescuer.run_once()
    assert state_of(job.pk) == "active"
    rescuer._not_before = 0
    rescuer.run_once()
    assert state_of(job.pk) == "waiting"
    assert Worker.objects.get().dead_at is not None


def take_time() -> None:
    """A duty that is slow."""
    time.sleep(0.7)


@pytest.mark.django_db(transaction=True)
def test_slow_rounds_do_not_keep_a_silent_worker_from_being_given_up(settings: Any) -> None:
    settings.JOBS_LEASE_SECONDS = 1.0
    worker = make_worker(lease_expires_at=Now() - timedelta(minutes=1))
    job = make_job()
    claim_job(job, worker)
    dispatcher = DispatcherThread()
    dispatcher.own, dispatcher.leading = [], [take_time, dispatcher.rescuer.run_once]
    dispatcher.leads, dispatcher._hold_at = True, time.monotonic() + 60
    for _ in range(3):
        dispatcher.run_once()
    assert state_of(job.pk) == "waiting"


@pytest.mark.django_db
def test_after_a_pause_of_the_machine_every_worker_has_one_lease_to_show_that_it_lives() -> None:
    rescuer = Rescuer()
    rescuer._not_before = 0
    rescuer.look()
    rescuer.rest()
    assert rescuer._not_before == 0
    for name in ("_rested_at", "_ahead"):
        setattr(rescuer, name, getattr(rescuer, name) - 3600)
        rescuer.look()
        assert rescuer._not_before > time.monotonic(), name
        rescuer._not_before = 0
        rescuer.rest()


@pytest.mark.django_db
def test_the_jobs_of_a_living_worker_are_left_alone() -> None:
    worker = make_worker()
    job = make_job()
    claim_job(job, worker)
    rescuer = Rescuer()
    rescuer._not_before = 0
    rescuer.run_once()
    assert state_of(job.pk) == "active"


@pytest.mark.django_db
def test_a_job_claimed_in_the_moment_of_its_workers_death_is_rescued() -> None:
    worker = make_worker()
    job = make_job()
    claim_job(job, worker)
    Worker.objects.update(dead_at=Now())
    Rescuer().run_once()
    assert state_of(job.pk) == "waiting"


@pytest.mark.django_db
def test_one_process_leads_until_its_lease_ends(be: Callable[[UUID], None]) -> None:
    one, other = uuid4(), uuid4()
    held = []
    for incarnation in (one, other, one):
        be(incarnation)
        held.append(leader.hold() or leader.hold())
    assert held == [True, False, True]
    Duty.objects.update(lease_expires_at=Now() - timedelta(seconds=1))
    be(other)
    assert leader.hold()
    assert Duty.objects.get().term == 2


@pytest.mark.django_db
def test_a_leader_that_ends_lets_another_lead_at_once(be: Callable[[UUID], None]) -> None:
    be(uuid4())
    assert leader.hold() or leader.hold()
    leader.let_go()
    be(uuid4())
    assert leader.hold()
