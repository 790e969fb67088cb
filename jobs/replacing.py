"""A running job that goes on as what a signature says, under its own id: what changes in its row, and what stays."""

from typing import Any

from celery import current_app
from celery.canvas import Signature
from django.db.models.functions import Now

from jobs import enqueue, publish, settle
from jobs.app import UnknownTask
from jobs.limits import COLUMNS
from jobs.models import Job
from jobs.payloads import as_json, from_json
from jobs.states import Cause
from jobs.task import JobTask
from jobs.transitions import transition
from jobs.worker.requests import REPRS, nesting_of, stamps_of

_CHANGED = ("task", "queue", "args", "kwargs", "soft_time_limit_seconds", "time_limit_seconds", *COLUMNS, "lane")
# What a job has once and for all. It has an id as well: Celery gives one to signatures that it has looked at.
_ONCE_AND_FOR_ALL = (
    "chain",
    "correlation_id",
    "dedup_key",
    "dedup_latest",
    "dedup_seconds",
    "expires",
    "headers",
    "ignore_result",
    "owner_id",
)


def replace(run: settle.Run, signature: Signature) -> bool:
    """The job goes on at once as what a signature of one task says; False where the run does not own it any more.

    Raises what enqueueing the signature would raise, and NotSupported as `changes` does; then nothing was written.
    """
    with settle.atomic():
        job = run.row().select_for_update().first()
        if job is None:
            return False
        _refuse(signature, "countdown", "eta")
        changed = changes(job, signature, tuple(signature.args))
        transition(run.row(), Cause.REPLACED, run_at=Now(), **changed)
        publish.after_commit(publish.Ring.for_waiting(changed["queue"], changed["priority"], changed["lane"]))
    return True


def changes(job: Job, signature: Signature, args: tuple[Any, ...], **options: Any) -> dict[str, Any]:
    """The columns of a locked job that goes on as a signature of one task, with these arguments and further options.

    Queue, limits and time limits are those that a call of the signature would have, and the priority, where it or its
    task says one. Attempts go on counting, and the job gets as many as that call. What is to follow comes with what
    followed the job already. Raises NotSupported for an option that cannot change, and what enqueueing raises.
    """
    _refuse(signature, *_ONCE_AND_FOR_ALL)
    said = {name: value for name, value in (signature.options or {}).items() if name != "task_id"}
    app = current_app._get_current_object()
    task = task_named(app, signature.task)
    new = enqueue.job_of(app, task, args, dict(signature.kwargs), {**said, **options})
    says_priority = said.get("priority", task.priority) is not None
    return {
        **{name: getattr(new, name) for name in _CHANGED},
        "priority": new.priority if says_priority else job.priority,
        "max_attempts": None if new.max_attempts is None else new.max_attempts + job.attempt - 1,
        "redelivered": False,
        "headers": _headers(job.headers, new.headers),
        "follow_ups": joined(job.follow_ups, new.follow_ups),
    }


def task_named(app: Any, name: str) -> JobTask:
    """The task whose jobs are the ledger's; raises UnknownTask or NotSupported where there is none of that name."""
    task = app.tasks.get(name)
    if task is None:
        raise UnknownTask(name, sorted(known for known in app.tasks if not known.startswith("celery.")))
    if not isinstance(task, JobTask):
        raise enqueue.NotSupported(
            f"{name} has a base class of its own: its runs are no jobs, so no flow sees them end."
        )
    return task


def _refuse(signature: Signature, *names: str) -> None:
    given = [name for name in names if (signature.options or {}).get(name)]
    if given:
        raise enqueue.NotSupported(
            f"{signature.task}: {', '.join(given)}= cannot be given to a job that is running and goes on as this."
        )


def _headers(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The headers of a job that goes on as another task: its own, but for what is said of arguments, and those of that,
    with the stamps of both."""
    stamps = {**stamps_of(before), **stamps_of(after)}
    stamped = {**stamps, "stamped_headers": list(stamps)} if stamps else {}
    kept = {name: value for name, value in before.items() if name not in REPRS}
    return {**kept, **after, **stamped, "replaced_task_nesting": nesting_of(before) + 1}


def joined(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What follows in the end, the same once: Celery's `replace` links so, and a job that goes on as itself again and
    again would have its links more and more often."""
    # As it comes out of the row, so that the same is equal.
    after = from_json(as_json(after))
    joined = {**before, **after}
    for name in ("link", "link_error"):
        steps = [*before.get(name, ()), *after.get(name, ())]
        if steps:
            joined[name] = [one for place, one in enumerate(steps) if one not in steps[:place]]
    return joined
