"""Django's task API on the ledger: `django.tasks` in Django 6.0, and its backport `django-tasks` before.

`TASKS = {"default": {"BACKEND": "jobs.django_tasks.LedgerTaskBackend"}}` turns each call of a `@task` into a job of
`jobs.tasks.run_django_task`. Nothing else in the project imports this module.
"""

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any
from uuid import UUID

import django
from django.core.checks import CheckMessage, Error
from django.core.exceptions import SynchronousOnlyOperation
from django.utils.module_loading import import_string

from jobs import settle
from jobs.callers import CalledFromAsyncCode, refuse_unsafe
from jobs.ids import InvalidJobId, parse_id
from jobs.models import Attempt, Job
from jobs.queues import QUEUES, UnknownQueue, queue_named
from jobs.states import State
from jobs.tasks import run_django_task

if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django.tasks import TaskContext, TaskResultStatus
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task, TaskError, TaskResult
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
else:
    from django_tasks import TaskContext, TaskResultStatus
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskError, TaskResult
    from django_tasks.exceptions import InvalidTaskError as InvalidTask
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json

_STATUSES = {
    State.DELAYED: TaskResultStatus.READY,
    State.WAITING: TaskResultStatus.READY,
    State.ACTIVE: TaskResultStatus.RUNNING,
    State.COMPLETED: TaskResultStatus.SUCCESSFUL,
    State.FAILED: TaskResultStatus.FAILED,
    # Django has no word for it: it has ended, and there is no return value.
    State.CANCELLED: TaskResultStatus.FAILED,
}
_CANCELLED = "celery.exceptions.TaskRevokedError"
_ERRORS = {
    Attempt.Outcome.STALLED: "billiard.exceptions.WorkerLostError",
    Attempt.Outcome.CANCELLED: _CANCELLED,
}


def ledger_priority(priority: float) -> int:
    """Django's priority (-100 to 100, higher runs sooner) as the ledger's (9 to 0, lower runs sooner).

    0 is 5, what jobs have of which nobody says anything; whatever is above it runs sooner, whatever is below it later.
    """
    return 5 - ceil(priority / 20) if priority > 0 else 5 + ceil(-priority / 25)


class LedgerTaskBackend(BaseTaskBackend):
    """A task backend whose tasks are jobs. `QUEUES` in its settings narrows the declared queues down; no `OPTIONS`."""

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, {"QUEUES": QUEUES, **params})

    def validate_task(self, task: "Task[..., Any]") -> None:
        """Raises InvalidTask, when the task is declared, for what no worker could run."""
        super().validate_task(task)
        try:
            queue_named(task.queue_name)
        except UnknownQueue as error:
            raise InvalidTask(str(error)) from None

    def enqueue(self, task: "Task[..., Any]", args: Any, kwargs: Any) -> Any:
        """Writes the job in the caller's transaction: rolled back, it is gone; committed, it will run.

        Raises InvalidTask for a function that a worker would not find, TypeError or ValueError for arguments that are
        not JSON, do not fit or are too large, and SynchronousOnlyOperation in async code, all before anything is
        written. Called twice, it is two jobs.
        """
        self.validate_task(task)
        _refuse_hidden(task)
        try:
            refuse_unsafe(task.module_path, ledger=settle.ledger())
        except CalledFromAsyncCode:
            raise SynchronousOnlyOperation(
                f"{task.module_path} was enqueued from async code. Use `await {task.name}.aenqueue(…)`."
            ) from None
        queue = queue_named(task.queue_name)
        sent = run_django_task.apply_async(
            kwargs={
                "function": task.module_path,
                "args": normalize_json(args),
                "kwargs": normalize_json(kwargs),
                "backend": self.alias,
                "priority": task.priority,
                "run_after": task.run_after,
            },
            queue=queue.name,
            priority=ledger_priority(task.priority),
            eta=task.run_after,
            soft_time_limit=queue.soft_time_limit_seconds,
            time_limit=queue.time_limit_seconds,
        )
        result = self.get_result(sent.id)
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> "TaskResult[..., Any]":
        """The job with this id as Django shows a task; raises TaskResultDoesNotExist where this backend has none."""
        try:
            job = Job.objects.get(pk=parse_id(result_id), task=run_django_task.name, kwargs__backend=self.alias)
        except (InvalidJobId, Job.DoesNotExist):
            raise TaskResultDoesNotExist(result_id) from None
        return _result_of(job)

    def check(self, **_: Any) -> list[CheckMessage]:
        """Refuses queues that nobody declared."""
        unknown = ", ".join(sorted(self.queues - QUEUES.keys()))
        if not unknown:
            return []
        return [Error(f"TASKS[{self.alias!r}] names queues that are not declared: {unknown}.", id="jobs.E005")]


def run(claimed: settle.Run) -> Any:
    """Calls the function of a claimed job, and returns what it has returned, as JSON."""
    result = _result_of(Job.objects.get(pk=claimed.job_id))
    task_started.send_robust(type(result.task.get_backend()), task_result=result)
    context = [TaskContext(task_result=result)] if result.task.takes_context else []
    return normalize_json(result.task.call(*context, *result.args, **result.kwargs))


def tell_completed(ended: settle.Run) -> None:
    """Sends `task_finished` for a run that has completed its job; not for one that had lost it before."""
    if ended.landed(state="completed"):
        tell_finished(ended.job_id)


def tell_finished(job_id: UUID) -> None:
    """Sends `task_finished` for a job that has ended, as the ledger's own signals are sent: once, after the commit."""
    result = _result_of(Job.objects.get(pk=job_id))
    task_finished.send_robust(type(result.task.get_backend()), task_result=result)


def _refuse_hidden(task: "Task[..., Any]") -> None:
    """A worker finds the function by its path, which must lead to a task with this very function."""
    try:
        found = import_string(task.module_path)
    except ImportError:
        found = None
    if getattr(found, "func", None) is not task.func:
        raise InvalidTask(f"{task.module_path} is not this task: a worker would not find its function there.")


def _result_of(job: Job) -> "TaskResult[..., Any]":
    call = job.kwargs
    runs = list(job.attempts.all())
    is_counted = job.state in (State.ACTIVE, State.COMPLETED)
    starts = [run.started_at for run in runs] + [job.started_at]
    workers = [run.worker_id for run in runs] + [job.worker_id] * is_counted
    result: Any = TaskResult(
        task=import_string(call["function"]).using(
            priority=call["priority"],
            queue_name=job.queue,
            run_after=call["run_after"],
            backend=call["backend"],
        ),
        id=str(job.pk),
        status=_STATUSES[State(job.state)],
        enqueued_at=job.created_at,
        started_at=next((start for start in starts if start), None),
        last_attempted_at=next((start for start in reversed(starts) if start), None),
        finished_at=job.finished_at,
        args=call["args"],
        kwargs=call["kwargs"],
        backend=call["backend"],
        errors=_errors(job, runs),
        # One for each run that took place: Django counts attempts by them.
        worker_ids=[str(worker_id) for worker_id in workers if worker_id],
    )
    object.__setattr__(result, "_return_value", job.result)
    return result


def _errors(job: Job, runs: list[Attempt]) -> list[TaskError]:
    """One for each run that did not succeed, oldest first. The ledger knows the class of the last exception alone."""
    errors = [
        TaskError(
            exception_class_path=_ERRORS.get(Attempt.Outcome(run.outcome), "builtins.Exception"),
            traceback=run.traceback or run.error,
        )
        for run in runs
    ]
    if job.state == State.CANCELLED and not errors:
        errors = [TaskError(exception_class_path=_CANCELLED, traceback=job.error)]
    if job.exception and errors:
        path = "{exc_module}.{exc_type}".format(**job.exception)
        errors[-1] = replace(errors[-1], exception_class_path=path)
    return errors
