"""Tasks as a reusable app declares them, which knows of Django's API alone. No worker is told of this module."""

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
from django.contrib.auth.models import Group
from django.db import connection

from jobs import fenced
from jobs.errors import Permanent, RateLimited
from jobs.models import Job

if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django.tasks import TaskContext, task
else:
    from django_tasks import TaskContext, task


@task
def add(x: int, y: int) -> int:
    return x + y


@task(priority=60, queue_name="crm", takes_context=True)
def tell_attempt(context: "TaskContext[Any, Any]") -> list[Any]:
    result = context.task_result
    return [context.attempt, result.id, result.status, len(result.errors)]


@task
async def add_later(x: int, y: int) -> int:
    return x + y


@task
def echo(*args: Any, **kwargs: Any) -> Any:
    return [*args, kwargs]


@task
def return_what_is_no_json() -> object:
    return object()


class OutOfPaper(Exception):
    pass


@task
def fail(kind: str) -> None:
    raise {"own": OutOfPaper, "builtin": ValueError, "permanent": Permanent}[kind](f"{kind} error")


@task(takes_context=True)
def die_at_first(context: "TaskContext[Any, Any]", times: int) -> int:
    """Kills its pool process in its first runs."""
    if context.attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return context.attempt


@task
def append_line(path: str, seconds: float) -> str:
    """Leaves a line in a file before and after its work."""
    with Path(path).open("a") as file:
        file.write(f"begin {os.getpid()}\n")
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write(f"end {os.getpid()}\n")
    return "done"


@task
def database_of_the_run() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return int(cursor.fetchone()[0])


@task
def be_told_to_wait() -> None:
    raise RateLimited(retry_after_seconds=600)


@task(takes_context=True)
def write_without_the_job(context: "TaskContext[Any, Any]") -> None:
    """Its job is given to another run, as when its worker was given up."""
    Job.objects.filter(pk=context.task_result.id).update(claim_token="another run's")
    with fenced():
        Group.objects.create(name="written by a run that has lost its job")
