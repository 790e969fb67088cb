"""Tasks whose first run leaves its pool process in an unusual way; a worker loads them with `-I tests.dying_tasks`.

Each run writes an effect in the transaction of its job's end, so that an effect too many can be counted.
"""

import asyncio
import os
import signal
import sys
import time
from typing import Any
from uuid import uuid4

from celery import shared_task
from celery.signals import task_postrun, task_prerun
from django.contrib.auth.models import Group

from jobs.models import Job
from jobs.task import JobTask
from jobs.worker.requests import JobRequest


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_cancelled() -> None:
    raise asyncio.CancelledError("the loop is closed")


# How a run ends its process, or leaves its body past every `except Exception`.
WAYS = {
    "kill": _kill,
    "exit of the interpreter": lambda: os._exit(0),
    "sys.exit": lambda: sys.exit(3),
    "cancelled error": _is_cancelled,
}
PLACES = ("task_prerun", "before_start", "body", "after the body", "on_success", "after_return", "task_postrun")


def is_first_run(job_id: str) -> bool:
    return Job.objects.get(pk=job_id).stalled_count == 0


class Dying(JobTask):
    """Ends its process once, where its job says so. The places after the end find the job completed already."""

    abstract = True

    def reach(self, place: str, *, once: bool = True) -> None:
        headers = self.request.headers or {}
        if self.request.get("dies_at", headers.get("dies_at")) == place and (not once or is_first_run(self.request.id)):
            WAYS[self.request.get("dies_how", headers.get("dies_how"))]()

    def before_start(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        super().before_start(task_id, args, kwargs)
        self.reach("before_start")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = super().__call__(*args, **kwargs)
        self.reach("after the body")
        return result

    def on_success(self, *_: Any) -> None:
        self.reach("on_success")

    def after_return(self, *_: Any) -> None:
        self.reach("after_return")


@shared_task(bind=True, base=Dying, queue="default", atomic=True)
def write_whole(self: Any, name: str) -> str:
    Group.objects.create(name=f"{name} {uuid4()}")
    self.reach("body")
    return name


@shared_task(bind=True, base=Dying, queue="default")
def write_plainly(self: Any, name: str) -> str:
    """Its effect comes after all that may happen in the body."""
    self.reach("body")
    Group.objects.create(name=f"{name} {uuid4()}")
    return name


@task_prerun.connect
def _before(task: Any, **_: Any) -> None:
    if isinstance(task, Dying):
        task.reach("task_prerun")


@task_postrun.connect
def _after(task: Any, **_: Any) -> None:
    if isinstance(task, Dying):
        task.reach("task_postrun")


class HasABadHook(JobTask):
    """What the project calls at a failure fails itself."""

    abstract = True

    def on_failure(self, *_: Any) -> None:
        raise ValueError("the hook is broken")


@shared_task(base=HasABadHook, queue="default")
def sleep_with_a_bad_hook(seconds: float) -> None:
    time.sleep(seconds)


class CannotBeMade(JobRequest):
    """Celery's request for a job of the project's own kind; it fails at its making."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError("there is no such tenant")


@shared_task(queue="default", Request="tests.dying_tasks:CannotBeMade")
def cannot_be_handed_over() -> None:
    """Never runs."""


@shared_task(queue="default", soft_time_limit=0.3, time_limit=30)
def run_by_the_tasks_limit(seconds: float) -> None:
    time.sleep(seconds)


@shared_task(queue="default", atomic=True)
def write_and_run_for(name: str, seconds: float) -> None:
    Group.objects.create(name=f"{name} {uuid4()}")
    time.sleep(seconds)
