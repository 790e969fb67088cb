"""Enqueueing: everything about a job is checked first, then its row is written in the caller's transaction."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery.result import AsyncResult
from celery.utils.time import maybe_iso8601, maybe_make_aware
from django.conf import settings
from django.db import router
from django.db.models.functions import Now
from django.utils import timezone
from kombu import Queue as KombuQueue

from jobs import canvas, chains, correlation, own_limits, publish, steps
from jobs import options as call_options
from jobs.bounds import MOST_ATTEMPTS
from jobs.callers import refuse_unsafe
from jobs.dedup import Dedup, place
from jobs.ids import new_id, parse_id
from jobs.models import Job
from jobs.options import NotSupported as NotSupported
from jobs.payloads import NotKept, as_json
from jobs.queues import Queue, queue_named
from jobs.states import State
from jobs.together import calls_of_thread

if TYPE_CHECKING:
    from celery import Celery

    from jobs.task import JobTask


class PayloadNotJSON(TypeError):
    """The arguments of a job cannot be kept as JSON."""


class PayloadTooLarge(ValueError):
    """The arguments of a job are larger than `JOBS_PAYLOAD_MAX_BYTES`."""


def enqueue(
    app: "Celery", task: "JobTask", args: tuple[Any, ...], kwargs: dict[str, Any], options: Mapping[str, Any]
) -> AsyncResult:
    """Writes the job's row and, once the caller's transaction has committed, rings for a worker.

    Options: Celery's (`countdown`, `eta`, `expires`, `priority`, `queue`, `link`, `chain`, time limits, `task_id` …)
    and `rate_key`, `rate_limit`, `concurrency_key`, `concurrency_limit`, `quiet_hours`, `dedup_key`, `dedup_seconds`,
    `dedup_latest`, `owner_id`, `max_attempts`, `correlation_id`. Everything wrong with a call raises before anything is
    written. Rolled back, nothing is left; committed, the job will run even when this process dies before it rings.

    With `dedup_key`, or a `task_id` that exists, the result may be that of a job which is already there, or will be
    there when another ends: see `jobs.dedup`. Another caller's uncommitted job with the same key is waited for.
    """
    using = router.db_for_write(Job)
    refuse_unsafe(task.name, ledger=using)
    options = dict(options)
    dedup = Dedup.taken_from(options)
    if dedup.key is not None and options.get("rest_of") is not None:
        # It may be kept as a successor, and that is JSON.
        options["chain"] = chains.rest_of(parse_id(options.pop("rest_of")))
    job = job_of(app, task, args, kwargs, dict(options))
    job.dedup_key = dedup.key
    job_id, is_written = job.pk, True
    calls = calls_of_thread()
    # Of a canvas, which has given it an id. What a generator of members calls beside it is written at once.
    if calls is not None and dedup.key is None and options.get("task_id") is not None:
        calls.add(job, _ring(job, options), partial(_refuse_other, job, job_id, options, using))
    else:
        if dedup.key is None and options.get("task_id") is None:
            job.save(using=using, force_insert=True)
        else:
            job_id, is_written = place(job, dedup, using)
        ring = _ring(job, options) if is_written else None
        if not is_written:
            _refuse_other(job, job_id, options, using)
        elif ring is not None:
            publish.after_commit(ring)
    result_class = options.get("result_cls") or app.AsyncResult
    return result_class(str(job_id))


def _ring(job: Job, options: Mapping[str, Any]) -> publish.Ring | None:
    """What is to be told after the commit: of a delayed job nothing, unless it is due before the leader looks again."""
    if job.state == State.WAITING:
        return publish.Ring.of(job)
    soonest, countdown = settings.JOBS_DISPATCH_SECONDS, options.get("countdown")
    is_soon = countdown is not None and countdown <= soonest
    if isinstance(job.run_at, datetime):
        is_soon = (job.run_at - timezone.now()).total_seconds() <= soonest
    return publish.Ring.of_due(job) if is_soon and not job.is_held else None


def check_arguments(task: "JobTask", args: Any, kwargs: Any, job: Job) -> None:
    """Checks other arguments for a job as if it were enqueued with them.

    Raises TypeError where they do not fit the task, PayloadNotJSON or PayloadTooLarge where they cannot be kept.
    """
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TypeError("Positional arguments are a JSON list, arguments by name a JSON object.")
    task.__header__(*args, **kwargs)
    check_size(task.name, checked_json(task.name, [args, kwargs, job.headers, job.follow_ups], wrapped=2))


def job_of(
    app: "Celery", task: "JobTask", args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
) -> Job:
    """An unsaved job from a call, or an error that says what is wrong with the call."""
    if options.pop("task_type", None) is None:
        # Called by name: what `Task.apply_async` would have done.
        task.__header__(*args, **kwargs)
        options = over_declared(task, options)
    call_options.check(task.name, options)
    # Of a step whose turn has come: it was checked with the first call, and has a result among its arguments.
    follows = options.pop("follows", False)
    place_in_flow = canvas.take_place(options)
    awaited_flow_id = options.pop("awaited_flow_id", None)
    headers = _headers(options)
    queue = _queue(app, task, options, args, kwargs)
    soft_seconds, hard_seconds = _time_limits(task, queue, options)
    parent = app.current_worker_task
    request = parent.request if parent else None
    job_id = options.pop("task_id", None)
    # What is held is due when it is released, and then as the call says.
    due = {} if awaited_flow_id is None else _when_released(options)
    run_at, state = run_at_of(app, options) if awaited_flow_id is None else (Now(), State.DELAYED)
    priority = options.pop("priority", None)
    max_attempts = options.pop("max_attempts", None)
    limits = own_limits.taken_from(options, task, args, kwargs)
    root_id = options.pop("root_id", None) or (request and (request.root_id or request.id))
    parent_id = options.pop("parent_id", None) or (request and request.id)
    own_id = parse_id(job_id) if job_id is not None else new_id()
    job = Job(
        id=own_id,
        task=task.name,
        queue=queue.name,
        priority=app.conf.task_default_priority if priority is None else priority,
        args=list(args),
        kwargs=kwargs,
        headers=headers,
        follow_ups=_follow_ups(options, due, follows=follows),
        state=str(state),
        run_at=run_at,
        expires_at=expires_at_of(app, options.pop("expires", None)),
        max_attempts=_declared_attempts(task, queue) if max_attempts is None else max_attempts,
        soft_time_limit_seconds=soft_seconds,
        time_limit_seconds=hard_seconds,
        # A member's result is wanted, whatever the task says.
        ignore_result=bool(options.pop("ignore_result", None)) and place_in_flow is None,
        owner_id=options.pop("owner_id", None),
        parent_id=parse_id(parent_id) if parent_id else None,
        root_id=parse_id(root_id) if root_id else None,
        group_id=options.pop("group_id", None) or "",
        flow_id=place_in_flow and place_in_flow.flow_id,
        flow_path=place_in_flow and place_in_flow.path,
        awaited_flow_id=awaited_flow_id and parse_id(awaited_flow_id),
        is_held=awaited_flow_id is not None,
        correlation_id=options.pop("correlation_id", None) or correlation.current() or own_id.hex,
        **limits,
    )
    _check_payload(app, task, job, follows=follows)
    unknown = [name for name, value in options.items() if name not in call_options.IRRELEVANT and value is not None]
    if unknown:
        raise TypeError(f"{task.name}: unknown options {', '.join(sorted(map(str, unknown)))}.")
    if job.owner_id is not None:
        call_options.check_owner(task.name, job.owner_id, using=router.db_for_write(Job))
    return job


def _headers(options: dict[str, Any]) -> dict[str, Any]:
    """The call's own headers, and those of Celery's message that the call says: its stamps, and how its arguments are
    to be shown."""
    headers = dict(options.pop("headers", None) or {})
    shown = {name: options.pop(name, None) for name in ("argsrepr", "kwargsrepr")}
    headers.update((name, text) for name, text in shown.items() if text is not None)
    stamps = options.pop("stamped_headers", None)
    if stamps:
        headers.update({name: options.pop(name, None) for name in stamps}, stamped_headers=list(stamps))
    return headers


def over_declared(task: "JobTask", options: Mapping[str, Any]) -> dict[str, Any]:
    """A call's options, over those that the task declares.

    `celery call` names every option, with None for those that nobody gave.
    """
    return {**task._get_exec_options(), **{name: value for name, value in options.items() if value is not None}}


def _queue(
    app: "Celery", task: "JobTask", options: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Queue:
    """The queue of the call, else of the task, else of `task_routes`, else the default one."""
    for name in ("exchange", "exchange_type", "routing_key"):
        if options.pop(name, None):
            raise NotSupported(f"{task.name}: {name}= is not supported; jobs go to a queue, by queue=.")
    queue = options.pop("queue", None)
    if queue is None:
        route = app.amqp.router.route({}, task.name, args, kwargs, task)
        queue = route["queue"]
        if options.get("priority") is None and route.get("priority") is not None:
            call_options.check(task.name, {"priority": route["priority"]})
            options["priority"] = route["priority"]
    return queue_named(queue.name if isinstance(queue, KombuQueue) else queue)


def run_at_of(app: "Celery", options: dict[str, Any]) -> tuple[Any, State]:
    """When the job is due, by the database's clock where the call names a delay."""
    countdown, eta = options.pop("countdown", None), options.pop("eta", None)
    if countdown is not None and countdown > 0:
        return Now() + timedelta(seconds=countdown), State.DELAYED
    if eta is not None:
        due_at = _moment(app, eta)
        if due_at > timezone.now():
            return due_at, State.DELAYED
    return Now(), State.WAITING


def _when_released(options: dict[str, Any]) -> dict[str, Any]:
    """What counts from when a held job is released, as Celery counts it from when it sends the body of a chord."""
    names = ["countdown", "eta"]
    if isinstance(options.get("expires"), (int, float)):
        names.append("expires")
    found = {name: options.pop(name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def expires_at_of(app: "Celery", expires: Any) -> Any:
    """When the job expires, by the database's clock where the call names seconds."""
    if expires is None:
        return None
    if isinstance(expires, (int, float)):
        return Now() + timedelta(seconds=expires)
    return _moment(app, expires)


def _moment(app: "Celery", value: datetime | str) -> datetime:
    moment = maybe_iso8601(value)
    if not isinstance(moment, datetime):
        raise TypeError(f"{value!r} is not a datetime.")
    return maybe_make_aware(moment, app.timezone)


def _time_limits(task: "JobTask", queue: Queue, options: dict[str, Any]) -> tuple[float, float]:
    """Soft and hard limit in seconds: the call's, else the task's, else the queue's."""
    hard = options.pop("time_limit", None) or task.time_limit
    soft = options.pop("soft_time_limit", None) or task.soft_time_limit
    hard = float(hard or max(queue.time_limit_seconds, soft or 0))
    soft = float(soft or min(queue.soft_time_limit_seconds, hard))
    if soft > hard:
        raise ValueError(f"{task.name}: soft_time_limit={soft:g} s is longer than time_limit={hard:g} s.")
    return soft, hard


def _follow_ups(options: dict[str, Any], due: dict[str, Any], *, follows: bool) -> Any:
    """Celery's links and the rest of a chain, as JSON: they stay in the row until the job ends."""
    found: dict[str, Any] = {"due": due} if due else {}
    for name in ("link", "link_error", "chain"):
        value = options.pop(name, None)
        if value:
            found[name] = list(value) if isinstance(value, (list, tuple)) else [value]
    # For everybody else, it is no option.
    before = options.pop("rest_of", None) if follows else None
    return found if before is None else chains.with_rest(found, before=parse_id(before))


def _refuse_other(job: Job, job_id: UUID, options: Mapping[str, Any], using: str) -> None:
    """Another job stands for this one: refuses that where something would wait for this one, or come after it, in
    vain."""
    if job.flow_id or job.is_held:
        _refuse_shared(job, job_id, using)
    elif job.dedup_key is None and options.get("follows"):
        _refuse_taken(job, using)


def _refuse_shared(job: Job, job_id: UUID, using: str) -> None:
    """A job of a flow that would be one with another: that one belongs elsewhere, and the flow would wait in vain."""
    same = Job.objects.using(using).filter(pk=job_id)
    wanted = (job.pk, job.flow_id, job.flow_path, job.awaited_flow_id)
    if wanted not in same.values_list("pk", "flow_id", "flow_path", "awaited_flow_id"):
        raise NotSupported(
            f"{job.task}: job {job_id} is there already, by dedup_key={job.dedup_key!r} or by its id, so it cannot "
            "belong to this flow. Leave the key out of the members of a chord or a flow."
        )


def _refuse_taken(job: Job, using: str) -> None:
    """A step of a canvas whose id another job has: nothing would come after it. The same step made twice is one."""
    there = Job.objects.using(using).filter(pk=job.pk).values_list("parent_id", flat=True)
    if list(there) != [job.parent_id]:
        raise NotSupported(f"{job.task}: job {job.pk} is there already, and is no step of this canvas.")


def _declared_attempts(task: "JobTask", queue: Queue) -> int | None:
    attempts = task.attempts_allowed(queue)
    if attempts is not None and attempts > MOST_ATTEMPTS:
        raise ValueError(f"{task.name}: it declares {attempts:,} runs of a job: expected at most {MOST_ATTEMPTS:,}.")
    return attempts


def _check_payload(app: "Celery", task: "JobTask", job: Job, *, follows: bool) -> None:
    # What follows a step came with the first call, and was checked then.
    payload = [job.args, job.kwargs, job.headers, {} if follows else job.follow_ups]
    text = checked_json(task.name, payload, wrapped=2)
    check_size(task.name, text, more_bytes=settings.JOBS_RESULT_MAX_BYTES if follows else 0)
    if not follows:
        steps.Steps(app, task.name, job.pk, job_of).check(job.follow_ups)


def checked_json(name: str, payload: Any, *, wrapped: int) -> str:
    """The payload as JSON. Refuses what PostgreSQL could not keep, before anything is written."""
    try:
        return as_json(payload, wrapped=wrapped)
    except NotKept as error:
        raise PayloadNotJSON(
            f"{name}: the arguments cannot be kept: {error}. Pass ids, and load objects in the task."
        ) from error


def check_size(name: str, *texts: str, more_bytes: int = 0) -> None:
    """Raises PayloadTooLarge where these parts of a call are too large together."""
    size, limit = sum(len(text.encode()) for text in texts), settings.JOBS_PAYLOAD_MAX_BYTES + more_bytes
    if size > limit:
        raise PayloadTooLarge(f"{name}: the arguments are {size} bytes, more than {limit}. Pass ids, not contents.")
