"""A job that goes on as another task's, or as itself with other arguments: whatever that one says holds for it."""

from datetime import timedelta
from typing import Any

import pytest
from celery import chain, chord, group, shared_task
from django.utils import timezone

from jobs.flows import fan_out
from jobs.limits import COLUMNS
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests.jobs.test_flows import total
from tests.sample_tasks import add, remember_failed_id

pytestmark = pytest.mark.django_db

LIMITS = (*COLUMNS, "lane")


@shared_task(bind=True, queue="default", rate_limit="5/s", rate_key="host:{host}", concurrency_key="host:{host}")
def fetch(self: Any, host: str, elsewhere: str = "") -> str:
    if elsewhere:
        self.retry(args=[elsewhere], kwargs={}, countdown=0)
    return host


@shared_task(queue="crm", priority=2, max_retries=6, time_limit=33, rate_limit="5/s", concurrency_limit=1)
def be_careful(*_: Any) -> str:
    return "careful"


@shared_task(queue="default", max_retries=0)
def fail(*_: Any) -> None:
    raise ValueError("not careful")


@shared_task(bind=True, queue="default", rate_limit="1/h")
def become(self: Any, signature: Any, flows: bool = False) -> Any:
    as_what = self.app.signature(signature)
    return fan_out(self, [add.s(1, 2)], then=as_what) if flows else self.replace(as_what)


@pytest.fixture(params=[True, False], ids=["after a flow", "at once"])
def flows(request: pytest.FixtureRequest) -> bool:
    return request.param


def values(job_id: str, *names: str) -> dict[str, Any]:
    return Job.objects.values(*names).get(pk=job_id)


@pytest.mark.parametrize("options", [{}, {"rate_key": "k", "queue": "email", "priority": 7, "max_attempts": 7}])
def test_a_job_keeps_to_the_limits_and_the_queue_of_what_it_has_become(options: dict[str, Any], flows: bool) -> None:
    wanted = (*LIMITS, "queue", "priority", "time_limit_seconds", "max_attempts")
    result = become.delay(be_careful.si().set(**options), flows)
    run_due_jobs()
    assert values(result.id, "result") == {"result": "careful"}
    assert values(result.id, *wanted) == values(be_careful.si().apply_async(**options).id, *wanted)


def test_a_job_keeps_its_priority_where_what_it_becomes_says_nothing_of_one(flows: bool) -> None:
    result = become.apply_async((add.si(1, 2), flows), priority=1)
    run_due_jobs()
    assert values(result.id, "result", "priority", "lane") == {"result": 3, "priority": 1, "lane": ""}


def test_a_job_that_ends_as_a_canvas_has_no_limits_of_its_own_any_more() -> None:
    result = become.delay(group(add.si(1, 2), add.si(3, 4)))
    run_due_jobs()
    assert values(result.id, "result", "lane", "rate_key") == {"result": [3, 7], "lane": "", "rate_key": None}


def test_what_is_to_follow_comes_with_what_followed_already(flows: bool) -> None:
    links = {"link": add.s(10), "link_error": remember_failed_id.si("first")}
    followed = add.si(1, 2).set(link=[add.s(20)])
    become.apply_async((followed, flows), **links)
    failing = fail.si().on_error(remember_failed_id.si("second"))
    become.apply_async((failing, flows), **links)
    run_due_jobs()
    assert set(Job.objects.filter(task=add.name, result__gt=9).values_list("result", flat=True)) == {13, 23}
    called = Job.objects.filter(task=remember_failed_id.name).values_list("args", flat=True)
    assert sorted(called) == [["first"], ["second"]]


@shared_task(bind=True, queue="default", max_retries=0)
def count_down(self: Any, number: int) -> None:
    if number == 0:
        raise ValueError("over")
    self.replace(count_down.s(number - 1).on_error(remember_failed_id.si("over")))


def test_what_follows_already_does_not_follow_twice() -> None:
    count_down.delay(3)
    run_due_jobs()
    assert Job.objects.filter(task=remember_failed_id.name).count() == 1


@pytest.mark.parametrize("what", [add.si(1, 2), chain(add.si(1, 0), add.s(2)), chord([add.si(1, 2)], total.s())])
def test_the_same_link_follows_once_whatever_a_job_goes_on_as(what: Any) -> None:
    become.apply_async((what,), link=[add.s(10), add.s(10), add.s(20)])
    run_due_jobs()
    linked = Job.objects.filter(task=add.name, result__gt=9).order_by("result")
    assert list(linked.values_list("result", flat=True)) == [13, 23]


def test_a_job_that_goes_on_after_its_flow_with_a_countdown_waits_so_long() -> None:
    result = become.delay(add.si(1, 2).set(countdown=60), flows=True)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.state, 50 < (job.run_at - timezone.now()).total_seconds() < 61) == ("delayed", True)
    run_due_jobs(ahead=timedelta(minutes=2))
    assert values(result.id, "result") == {"result": 3}


@pytest.mark.parametrize(
    ("option", "value"),
    [("expires", 60), ("owner_id", 1), ("headers", {"a": "b"}), ("ignore_result", True), ("dedup_key", "k")],
)
def test_what_a_running_job_has_once_and_for_all_is_refused(option: str, value: Any, flows: bool) -> None:
    result = become.delay(add.si(1, 2).set(**{option: value}), flows)
    run_due_jobs()
    job = Job.objects.get()
    assert (str(job.pk), job.state) == (result.id, "failed")
    assert f"{option}= cannot be given to a job that is running" in job.error


@pytest.mark.parametrize(("option", "value"), [("countdown", 60), ("eta", "2222-02-22T22:22:22Z")])
def test_a_job_that_is_replaced_at_once_cannot_be_told_to_wait(option: str, value: Any) -> None:
    result = become.delay(add.si(1, 2).set(**{option: value}))
    run_due_jobs()
    assert f"{option}= cannot be given" in values(result.id, "error")["error"]


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        (chain(add.si(1, 2).set(countdown=60), add.s(3)), 6),
        (group(add.si(1, 2), add.si(3, 4).set(countdown=60)), [3, 7]),
        (chord([add.si(1, 2), add.si(3, 4).set(countdown=60)], total.s()), 10),
    ],
    ids=["a chain", "a group", "a chord"],
)
def test_a_job_that_goes_on_as_a_canvas_is_held_until_that_has_ended(canvas: Any, expected: Any) -> None:
    result = become.delay(canvas)
    run_due_jobs()
    assert values(result.id, "state", "is_held") == {"state": "delayed", "is_held": True}
    run_due_jobs(ahead=timedelta(minutes=2))
    assert values(result.id, "state", "result") == {"state": "completed", "result": expected}


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ({"task": "gone.task", "args": [], "kwargs": {}, "immutable": True}, "UnknownTask"),
        (add.si(1, 2, 3), "takes 2 positional arguments but 3 were given"),
    ],
)
def test_a_job_that_cannot_go_on_as_what_it_names_fails(what: Any, error: str, flows: bool) -> None:
    become.delay(what, flows)
    run_due_jobs()
    job = Job.objects.get()
    assert (job.state, job.task, error in job.error) == ("failed", become.name, True)


def test_a_signature_in_its_shortest_form_is_enough(flows: bool) -> None:
    result = become.delay({"task": add.name, "args": [1, 2], "kwargs": {}, "immutable": True}, flows)
    run_due_jobs()
    assert values(result.id, "result") == {"result": 3}


# -- As itself --------------------------------------------------------------------------------------------------------
def test_a_retry_with_other_arguments_keeps_to_their_limits() -> None:
    result = fetch.delay("a", "b")
    run_due_jobs()
    assert values(result.id, "result") == {"result": "b"}
    assert values(result.id, *LIMITS) == values(fetch.delay("b").id, *LIMITS)


def test_a_retry_with_arguments_that_make_no_key_fails() -> None:
    result = fetch.delay("a", "b" * 200)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.state, job.attempt) == ("failed", 1)
    assert "expected a text of 1 to 128 characters" in job.error
