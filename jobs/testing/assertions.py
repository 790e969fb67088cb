"""What a piece of code has enqueued."""

import inspect
from typing import Any

from celery import current_app

from jobs.app import UnknownTask
from jobs.models import Job
from jobs.payloads import as_json, from_json

_LISTED = 20


def assert_enqueued(task: Any, /, **kwargs: Any) -> Job:
    """Asserts that a job of a task, given as itself or by name, was enqueued with these arguments; returns the newest.

    Arguments are compared by the names in the task's signature, however they were passed, defaults included; those that
    are not named here may be anything. It does not matter whether the job has run. The failure lists what was enqueued.
    Raises TypeError for an argument that the task does not have, and UnknownTask.
    """
    task = _task(task)
    found = _matching(task, kwargs)
    if not found:
        raise AssertionError(f"No job of {_call(task.name, kwargs)} was enqueued. {_what_was_enqueued()}")
    return found[-1]


def assert_not_enqueued(task: Any, /, **kwargs: Any) -> None:
    """Asserts that no such job was enqueued; arguments as in `assert_enqueued`."""
    task = _task(task)
    if _matching(task, kwargs):
        raise AssertionError(f"A job of {_call(task.name, kwargs)} was enqueued. {_what_was_enqueued()}")


def _task(task: Any) -> Any:
    if not isinstance(task, str):
        return task
    if task not in current_app.tasks:
        raise UnknownTask(task, sorted(name for name in current_app.tasks if not name.startswith("celery.")))
    return current_app.tasks[task]


def _matching(task: Any, wanted: dict[str, Any]) -> list[Job]:
    signature = inspect.signature(task.run)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = [] if takes_any else sorted(wanted.keys() - signature.parameters.keys())
    if unknown:
        raise TypeError(f"{task.name} has no argument {', '.join(unknown)}: it is called as {task.name}{signature}.")
    # As they come out of the ledger: a tuple, for example, as a list.
    wanted = from_json(as_json(wanted))
    jobs = Job.objects.filter(task=task.name).order_by("created_at", "id")
    return [job for job in jobs if {**_arguments(signature, job), **wanted} == _arguments(signature, job)]


def _arguments(signature: inspect.Signature, job: Job) -> dict[str, Any]:
    """The arguments of a job by name. The first ones of a later step of a chain are not known before the step comes."""
    bound = signature.bind_partial(*job.args, **job.kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name))
    return arguments


def _what_was_enqueued() -> str:
    jobs = list(Job.objects.order_by("-created_at", "-id")[: _LISTED + 1])
    if not jobs:
        return "Nothing was enqueued at all."
    lines = [f"  {_call(job.task, job.kwargs, job.args)}, {job.state} in {job.queue}" for job in jobs[:_LISTED]]
    more = "\n  and earlier ones" if len(jobs) > _LISTED else ""
    return "Enqueued were, newest first:\n" + "\n".join(lines) + more


def _call(name: str, kwargs: dict[str, Any], args: list[Any] | None = None) -> str:
    values = [*(f"{value!r}" for value in args or ()), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return f"{name}({', '.join(values)})"
