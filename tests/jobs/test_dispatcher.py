"""The dispatcher's duties, one look at a time, on real PostgreSQL and Redis."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from celery import current_app
from django.conf import settings
from django.db.models.functions import Now

from jobs import publish
from jobs.dispatcher import due, leader
from jobs.dispatcher.rescue import Rescuer
from jobs.dispatcher.topup import TopUp
from jobs.models import Duty, Job, QueueControl, Worker
from jobs.worker import identity
from tests.jobs.factories import claim_job, make_job, make_worker, state_of


@pytest.fixture
def broker(empty_redis: None) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        yield client


@pytest.fixture
def top_up(broker: "redis.Redis") -> Iterator[TopUp]:
    top_up = TopUp(current_app)
    yield top_up
    top_up.close()


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Callable[[UUID], None]:
    """Makes this process the worker of an id, for the length of the test."""
    return partial(monkeypatch.setattr, identity, "_incarnation")


def hinted(broker: "redis.Redis", queue: str = "default") -> int:
    return publish.queue_lengths(broker)[queue]


@pytest.mark.django_db
def test_a_waiting_job_without_a_hint_gets_one_at_the_second_look(top_up: TopUp, broker: "redis.Redis") -> None:
    make_job()
    lengths = []
    for _ in range(4):
        top_up.run_once()
        lengths.append(hinted(broker))
    assert lengths == [0, 1, 1, 1]


@pytest.mark.django_db
def test_a_job_that_just_became_due_is_hinted_at_once(top_up: TopUp, broker: "redis.Redis") -> None:
    make_job(state="delayed", run_at=Now() - timedelta(seconds=1))
    top_up.run_once(due.run_once())
    assert hinted(broker) == 1


@pytest.mark.django_db
def test_redis_holds_no_more_than_a_window_of_hints(top_up: TopUp, broker: "redis.Redis") -> None:
    Job.objects.bulk_create(Job(task="t", queue="default", state="waiting") for _ in range(settings.JOBS_WINDOW + 300))
    for _ in range(4):
        top_up.run_once()
    assert hinted(broker) == settings.JOBS_WINDOW


@pytest.mark.django_db
def test_the_most_urgent_jobs_are_hinted_first(top_up: TopUp, broker: "redis.Redis", settings: Any) -> None:
    settings.JOBS_WINDOW = 5
    Job.objects.bulk_create(Job(task="t", queue="default", state="waiting", priority=9) for _ in range(50))
    urgent = make_job(priority=0)
    for _ in range(2):
        top_up.run_once()
    (message,) = broker.lrange(publish.hint_lists("default")[0], 0, -1)
    assert str(urgent.pk).encode() in message


@pytest.mark.django_db
def test_a_paused_queue_gets_no_hints(top_up: TopUp, broker: "redis.Redis") -> None:
    QueueControl.objects.create(name="default", paused_at=Now())
    make_job()
    for _ in range(3):
        top_up.run_once()
    assert hinted(broker) == 0


@pytest.mark.django_db
def test_a_foreign_message_in_the_queue_is_passed_over(top_up: TopUp, broker: "redis.Redis") -> None:
    broker.lpush("default", b"not json", b"[]", b'{"headers": {"id": 7}}')
    make_job()
    for _ in range(2):
        top_up.run_once()
    assert hinted(broker) == 4


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
