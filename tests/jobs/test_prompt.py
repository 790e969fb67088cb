"""The leader's prompt duties: delayed jobs become waiting and limited ones are granted at the moment, not at a tick."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.db.models.functions import Now

from devstack.throwaway import Server
from jobs.dispatcher.prompt import PromptThread
from jobs.dispatcher.record import Record
from jobs.doorbell import MOST_TOLD, PACED, Doorbell, Taken
from jobs.ids import new_id
from jobs.queues import QUEUES
from tests.jobs.factories import make_job, make_worker, state_of
from tests.sample_tasks import add
from tests.waiting import wait_until

_FOR_EVER_SECONDS = 3600.0


@pytest.fixture
def start(transactional_db: None, empty_redis: None) -> Iterator[Callable[[], None]]:
    """Starts the thread of a process that leads."""
    make_worker(queues=list(QUEUES))
    prompt = PromptThread(leads=lambda: True, record=Record())
    yield prompt.start
    prompt.stop()
    for thread in (prompt, prompt.bells):
        thread.join()


def granted(*queues: str) -> set[UUID]:
    doorbell = Doorbell.patient()
    try:
        return {job_id for ids in doorbell.granted(queues).values() for job_id in ids}
    finally:
        doorbell.close()


def waits(job_id: UUID | str) -> bool:
    return state_of(job_id) == "waiting"


@pytest.mark.django_db
def test_the_leader_sleeps_until_the_next_delayed_job_is_due(settings: Any, empty_redis: None) -> None:
    settings.JOBS_DISPATCH_SECONDS = _FOR_EVER_SECONDS
    job = make_job(state="delayed", run_at=Now() + timedelta(seconds=0.3))
    held = make_job(state="delayed", is_held=True, run_at=Now() + timedelta(seconds=0.1))
    prompt = PromptThread(leads=lambda: True, record=Record())
    while state_of(job.pk) == "delayed":
        prompt.run_once()
    prompt.pacer.close()
    assert state_of(held.pk) == "delayed"


def test_a_job_that_is_due_before_the_next_look_wakes_the_leader(settings: Any, start: Callable[[], None]) -> None:
    settings.JOBS_DISPATCH_SECONDS = _FOR_EVER_SECONDS
    start()
    for _ in range(3):
        job = add.apply_async((1, 2), countdown=0.05)
        wait_until(partial(waits, job.id))


def test_a_job_with_limits_wakes_the_leader_which_grants_it(settings: Any, start: Callable[[], None]) -> None:
    settings.JOBS_DISPATCH_SECONDS = _FOR_EVER_SECONDS
    start()
    jobs = [add.apply_async((1, 2), queue=queue) for queue in ("email", "crm")]
    wait_until(lambda: granted("email", "crm") == {UUID(job.id) for job in jobs})


def test_without_redis_due_jobs_wait_no_longer_than_for_the_next_look(
    redis_server: Server, start: Callable[[], None]
) -> None:
    start()
    redis_server.freeze()
    job = make_job(state="delayed", run_at=Now() + timedelta(seconds=0.3))
    wait_until(partial(waits, job.pk))
    redis_server.thaw()
    limited = make_job(queue="email")
    wait_until(lambda: granted("email") == {limited.pk})


def test_a_leader_whose_looks_fail_remembers_a_bounded_number_of_jobs_and_grants_them_once_they_succeed(
    settings: Any, monkeypatch: pytest.MonkeyPatch, transactional_db: None, empty_redis: None
) -> None:
    settings.JOBS_DISPATCH_SECONDS = 0.01
    make_worker(queues=list(QUEUES))
    prompt = PromptThread(leads=lambda: True, record=Record())
    counts: list[int] = []

    def fail(named: Collection[UUID]) -> float:
        counts.append(len(named))
        raise ZeroDivisionError

    look = prompt.pacer.look
    monkeypatch.setattr(prompt.pacer, "look", fail)
    for _ in range(20):
        prompt.bells.hear([Taken(PACED, new_id()) for _ in range(MOST_TOLD)])
        with suppress(ZeroDivisionError):
            prompt.run_once()
    job = make_job(queue="email")
    monkeypatch.setattr(prompt.pacer, "look", look)
    for _ in range(20):
        prompt.run_once()
    prompt.pacer.close()
    assert len(counts) > 5
    assert max(counts) <= MOST_TOLD
    assert granted("email") == {job.pk}


@pytest.mark.django_db
def test_a_process_that_does_not_lead_leaves_all_to_the_one_that_does(empty_redis: None) -> None:
    make_worker(queues=list(QUEUES))
    job, limited = make_job(state="delayed", run_at=Now() - timedelta(seconds=1)), make_job(queue="email")
    prompt = PromptThread(leads=lambda: False, record=Record())
    prompt.run_once()
    prompt.pacer.close()
    assert (state_of(job.pk), state_of(limited.pk), granted("email")) == ("delayed", "waiting", set())
