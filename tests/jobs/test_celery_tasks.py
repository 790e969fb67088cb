"""What a run of Celery's knows and may say on the ledger: its request, its handlers, its retries."""

from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest
from celery import group, shared_task
from celery.signals import task_postrun, task_prerun
from django.utils import timezone

from jobs.ids import new_id
from jobs.models import Job
from jobs.task import JobTask
from jobs.testing import run_due_jobs
from tests import sample_tasks

pytestmark = pytest.mark.django_db

CALLED: list[Any] = []
SEEN = (
    *("id", "args", "kwargs", "retries", "parent_id", "root_id", "correlation_id", "headers", "delivery_info", "group"),
    *("tenant", "callbacks", "errbacks", "chain", "group_index", "eta", "expires"),
)


@shared_task(bind=True, queue="default")
def look_at_the_request(self: Any, _: Any) -> None:
    CALLED.append({name: self.request.get(name) for name in SEEN})


MOMENT = timezone.now() + timedelta(days=3)
RETRIES: dict[str, dict[str, Any]] = {
    "eta": {"eta": MOMENT},
    "exc": {"exc": KeyError("away"), "countdown": 60},
    "too often": {"max_retries": 0},
    "too often by exc": {"exc": KeyError("away"), "max_retries": 0},
    "throw": {"throw": False, "countdown": 60},
    "args and kwargs": {"args": ("args and kwargs",), "kwargs": {"unit": "day"}, "countdown": 60},
    "expires": {"expires": 5, "countdown": 60},
    "limits": {"time_limit": 5, "soft_time_limit": 4, "rate_limit": "1/h", "concurrency_key": "k", "countdown": 60},
    "headers": {"headers": {"tenant": "south"}, "countdown": 60},
    "follow-ups": {"link": sample_tasks.ignore.si(), "link_error": sample_tasks.ignore.si(), "countdown": 60},
}


@shared_task(bind=True, queue="default", max_retries=5)
def retry_so(self: Any, how: str, unit: str = "hour") -> str:
    if self.request.retries == 0:
        said = self.retry(**RETRIES[how])
        assert said.when == 60
        return "no result yet"
    return unit


def payload_seen(name: str) -> Any:
    def handler(self: Any, *args: Any) -> None:
        # As it is at this moment: it is filled in later.
        CALLED.append((name, *deepcopy([arg for arg in args if isinstance(arg, (list, tuple, dict))])))

    return handler


class Watching(JobTask):
    """What each of a task's handlers is given."""

    abstract = True
    on_success = payload_seen("on_success")
    on_failure = payload_seen("on_failure")
    on_retry = payload_seen("on_retry")
    after_return = payload_seen("after_return")

    def before_start(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        payload_seen("before_start")(self, args, kwargs)


class WatchingBeside(Watching):
    """It calls what is above it."""

    abstract = True

    def before_start(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        super().before_start(task_id, args, kwargs)
        JobTask.before_start(self, task_id, args, kwargs)


def _end_so(self: Any, end: str, *, factor: int) -> None:
    payload_seen("body")(self, [end], {"factor": factor})
    if end == "on_failure":
        raise ValueError(end)
    if end == "on_retry":
        raise self.retry(countdown=60)


WATCHED = [
    shared_task(bind=True, base=base, queue="default", name=f"tests.watched_by_{base.__name__}")(_end_so)
    for base in (Watching, WatchingBeside)
]


def test_a_run_knows_itself_and_its_group_and_nothing_of_what_comes_after_it() -> None:
    CALLED.clear()
    follow = {"link": sample_tasks.add.si(1, 1), "link_error": sample_tasks.ignore.si()}
    options = {"priority": 3, "expires": 600, "headers": {"tenant": "south"}, "parent_id": str(new_id()), **follow}
    alone = look_at_the_request.apply_async((0,), root_id=str(new_id()), eta=timezone.now(), **options)
    members = group(look_at_the_request.s(1), look_at_the_request.s(2)).apply_async()
    run_due_jobs()
    seen = {request["args"][0]: request for request in CALLED}
    job = Job.objects.get(pk=alone.id)
    known = {name: value for name, value in seen[0].items() if value is not None}
    assert known == {
        "id": alone.id,
        "args": [0],
        "kwargs": {},
        "retries": 0,
        "correlation_id": job.correlation_id,
        "parent_id": str(job.parent_id),
        "root_id": str(job.root_id),
        "tenant": "south",
        "headers": {"tenant": "south"},
        "delivery_info": {"exchange": "", "routing_key": "default", "priority": 3, "redelivered": False},
    }
    for number in (1, 2):
        request = seen[number]
        assert request["group"] == members.id
        assert [request[name] for name in ("group_index", "chain", "callbacks", "errbacks")] == [None] * 4


@pytest.mark.parametrize("task", WATCHED, ids=lambda task: task.name)
@pytest.mark.parametrize("end", ["on_success", "on_failure", "on_retry"])
def test_the_signal_before_a_run_sees_no_arguments_and_all_that_come_after_it_see_those_of_the_row(
    task: Any, end: str
) -> None:
    CALLED.clear()
    before, after = payload_seen("task_prerun"), payload_seen("task_postrun")
    receivers = {
        task_prerun: lambda args, kwargs, **_: before(task, args, kwargs),
        task_postrun: lambda args, kwargs, **_: after(task, args, kwargs),
    }
    for signal, receiver in receivers.items():
        signal.connect(receiver, sender=task)
    task.delay(end, factor=5)
    run_due_jobs()
    for signal, receiver in receivers.items():
        signal.disconnect(receiver, sender=task)
    # As in Celery, a retry is no return.
    later = ["before_start", "body", end, *([] if end == "on_retry" else ["after_return"]), "task_postrun"]
    expected = [("task_prerun", [], {}), *((name, [end], {"factor": 5}) for name in later)]
    assert expected == CALLED


def retried_so(how: str, **options: Any) -> Job:
    """The job after the run that has asked for another."""
    result = retry_so.apply_async((how,), **options)
    run_due_jobs()
    return Job.objects.get(pk=result.id)


def test_a_retry_may_say_a_moment_a_reason_and_how_often_and_need_not_raise() -> None:
    assert retried_so("eta").run_at == MOMENT
    assert retried_so("exc").error == "KeyError: 'away'"
    assert retried_so("too often").error.startswith("MaxRetriesExceededError: ")
    assert retried_so("too often by exc").error == "KeyError: 'away'"
    job = retried_so("throw")
    assert (job.state, job.attempt, job.result) == ("delayed", 2, None)
    job = retried_so("args and kwargs")
    assert (job.state, job.args, job.kwargs) == ("delayed", ["args and kwargs"], {"unit": "day"})
    ahead = run_due_jobs(ahead=timedelta(days=4))
    assert sorted(job.result for job in ahead) == ["day", "hour", "hour", "hour"]


@pytest.mark.parametrize("how", ["expires", "limits", "headers", "follow-ups"])
def test_whatever_else_a_retry_says_stays_as_it_was_called(how: str) -> None:
    options = {"expires": 6000, "headers": {"tenant": "north"}, "link": sample_tasks.add.si(1, 1)}
    retried, untouched = retried_so(how, **options), retry_so.apply_async((how,), **options)
    kept = (
        *("queue", "priority", "headers", "follow_ups", "soft_time_limit_seconds", "time_limit_seconds", "lane"),
        *("rate_key", "rate_limit", "concurrency_key", "concurrency_limit"),
    )
    assert (retried.state, retried.attempt) == ("delayed", 2)
    found = Job.objects.get(pk=untouched.id)
    assert {name: getattr(retried, name) for name in kept} == {name: getattr(found, name) for name in kept}
    assert retried.expires_at is not None
    assert retried.expires_at - retried.created_at == timedelta(seconds=6000)
