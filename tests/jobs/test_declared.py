"""What a task declares, or its body says, about retries and priority, in the words that Celery has for it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from celery import current_app, shared_task
from celery.app.routes import Router, prepare
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from jobs.errors import Permanent
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests.jobs.factories import state_of

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("empty_redis")]


@shared_task(queue="webhooks", autoretry_for=(ValueError,), retry_kwargs={"countdown": 6})
def waits_by_its_arguments() -> None:
    raise ValueError


@shared_task(queue="webhooks", autoretry_for=(ValueError,), default_retry_delay=6)
def waits_by_default() -> None:
    raise ValueError


@shared_task(queue="webhooks", autoretry_for=(ValueError,), retry_kwargs={"countdown": 6}, retry_backoff=40)
def says_both() -> None:
    raise ValueError


@shared_task(queue="webhooks", autoretry_for=(ValueError,))
def says_nothing() -> None:
    raise ValueError


@shared_task(queue="crm", autoretry_for=(ValueError,), retry_kwargs={"max_retries": 1})
def counts_by_its_arguments() -> None:
    raise ValueError


@shared_task(bind=True, queue="default")
def sets_its_retries(self: Any) -> None:
    self.max_retries = 1
    raise self.retry(countdown=0)


@shared_task(bind=True, queue="default", autoretry_for=(ValueError,), max_retries=1)
def asks_for_more(self: Any, more: bool) -> None:
    if more and self.request.retries < 2:
        raise self.retry(countdown=0, max_retries=5)
    raise ValueError


RAISED: dict[str, BaseException] = {
    "ValueError": ValueError("nothing special"),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "CancelledError": asyncio.CancelledError(),
    "Permanent": Permanent("it cannot succeed"),
}


@shared_task(queue="default", autoretry_for=(Exception,), max_retries=3)
def retries_whatever(name: str) -> None:
    raise RAISED[name]


@shared_task(queue="default", autoretry_for=(ValueError,), retry_backoff=600)
def waits_long() -> None:
    raise ValueError


@shared_task(queue="default", autoretry_for=(ValueError,), retry_backoff=600, retry_jitter=True)
def asks_for_jitter() -> None:
    raise ValueError


JITTER = {"off": waits_long, "on": asks_for_jitter}


class CannotBePickled(Exception):
    """It is made of two arguments, and remembers one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")
        self.tell = lambda: first


@shared_task(queue="default")
def raises_what_cannot_be_pickled() -> None:
    raise CannotBePickled("one", "two")


@shared_task
def is_routed() -> None:
    """Where, `task_routes` say."""


@pytest.mark.parametrize(
    ("task", "seconds"), [(waits_by_its_arguments, 6), (waits_by_default, 6), (says_both, 40), (says_nothing, 5)]
)
def test_a_retry_waits_as_its_task_says_and_else_as_its_queue_does(task: Any, seconds: int) -> None:
    result = task.delay()
    run_due_jobs()
    assert state_of(result.id) == "delayed"
    waits = Job.objects.annotate(seconds=F("run_at") - Now()).get(pk=result.id).seconds
    assert timedelta(seconds=seconds - 3) < waits <= timedelta(seconds=seconds)


def test_the_retries_of_retry_kwargs_count() -> None:
    result = counts_by_its_arguments.delay()
    run_due_jobs(ahead=timedelta(days=1))
    assert (state_of(result.id), Job.objects.get(pk=result.id).attempt) == ("failed", 2)


@pytest.mark.parametrize("name", RAISED)
def test_a_task_that_retries_every_exception_retries_those_that_derive_from_it_and_nothing_permanent(name: str) -> None:
    result = retries_whatever.delay(name)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    is_retried = name == "ValueError"
    assert (job.state, job.attempt) == (("delayed", 2) if is_retried else ("failed", 1)), job.error


def test_waits_vary_only_where_a_task_asks_for_it() -> None:
    tasks = {name: [task.delay() for _ in range(8)] for name, task in JITTER.items()}
    run_due_jobs()
    now = timezone.now()
    for name, results in tasks.items():
        found = Job.objects.filter(pk__in=[result.id for result in results]).values_list("run_at", flat=True)
        waits = [(moment - now).total_seconds() for moment in found]
        assert (name, min(waits) > 590) == (name, name == "off"), waits


def test_a_body_may_set_its_retries_as_celerys_tasks_do() -> None:
    result = sets_its_retries.delay()
    run_due_jobs(ahead=timedelta(days=1))
    job = Job.objects.get(pk=result.id)
    assert (job.state, job.attempt) == ("failed", 2), job.error


def test_what_one_run_says_of_its_retries_holds_for_no_other_job() -> None:
    more, usual = asks_for_more.delay(True), asks_for_more.delay(False)
    run_due_jobs(ahead=timedelta(days=1))
    assert {str(pk): attempt for pk, attempt in Job.objects.values_list("pk", "attempt")} == {more.id: 3, usual.id: 2}


def test_the_type_of_an_error_that_cannot_be_pickled_is_told() -> None:
    result = raises_what_cannot_be_pickled.delay()
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert job.error.startswith("CannotBePickled: ")
    assert "one and two" in job.error
    assert job.exception["exc_type"] == "CannotBePickled"


def test_a_route_may_say_a_priority_and_a_call_another(monkeypatch: pytest.MonkeyPatch) -> None:
    amqp = current_app.amqp
    routes = prepare({is_routed.name: {"queue": "crm", "priority": 1}})
    monkeypatch.setattr(amqp, "_rtable", routes)
    monkeypatch.setattr(amqp, "router", Router(routes, amqp.queues, app=current_app))
    routed, called = is_routed.delay(), is_routed.apply_async(priority=7)
    found = dict(Job.objects.values_list("pk", "priority"))
    assert {str(pk): priority for pk, priority in found.items()} == {routed.id: 1, called.id: 7}
    assert set(Job.objects.values_list("queue", flat=True)) == {"crm"}
