"""What comes after a job, written by the transaction that ends it: Celery's `link`, `chain` and `link_error`.

The ids of what follows a completion are derived from the job's, so that neither a crash nor a run that lost its job
loses or doubles it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from celery import current_app
from celery.app.task import Context
from celery.canvas import Signature, maybe_signature
from celery.exceptions import NotRegistered
from django.db import router, transaction
from django.db.models.functions import Now

from jobs import canvas, chains, commits, correlation
from jobs.ids import derived_id, new_id, parse_id
from jobs.models import Job
from jobs.patience import DATABASE_AWAY
from jobs.payloads import in_a_message

logger = logging.getLogger(__name__)

# What comes of reading something as a chain that is none, because somebody has written it by hand.
_NO_CHAIN = (AttributeError, KeyError, TypeError, ValueError)


def insert(job: Job, follow_ups: Mapping[str, Any], root_id: UUID | None, result: Any) -> None:
    """Enqueues the links and the next step of the chain of a job that completes in the current transaction.

    A follow-up that cannot be enqueued never stops the end of its job: it is rolled back alone, logged and noted.
    The slot that a job holds in a flow goes on to the next step of its chain.
    """
    for number, link in enumerate(follow_ups.get("link", [])):
        own_id = _own_id(link) or derived_id(job.pk, "link", number)
        _enqueue(job.pk, root_id, link, (result,), {"task_id": str(own_id)})
    chain = follow_ups.get("chain", [])
    if not chain:
        return
    is_cut = chains.is_cut(follow_ups)
    options: dict[str, Any] = {"rest_of": str(job.pk)} if is_cut else {"chain": chain[:-1]}
    if is_cut and not _is_called_as_ours(chain[-1]):
        options = {"chain": chains.rest_of(job.pk)}
    if not _own_id(chain[-1]):
        options["task_id"] = str(derived_id(job.pk, "chain"))
    if job.flow_id is not None:
        options.update(canvas.hand_on(canvas.Place(job.flow_id, job.flow_path or []), chain[-1]))
    refusal = _enqueue(job.pk, root_id, chain[-1], (result,), options)
    if refusal is not None:
        _fail_next(job, [*chains.rest_of(job.pk), chain[-1]] if is_cut else chain, result, refusal)
    elif job.flow_id is not None:
        Job.objects.filter(pk=job.pk).update(flow_id=None, flow_path=None)


def _fail_next(job: Job, chain: list[Any], result: Any, refusal: Exception) -> None:
    """The next step of a chain cannot be enqueued: what somebody may wait for is stored as failed under its id, its
    errbacks are called, and what would have come after it is stored as cancelled."""
    step = chain[-1]
    error = in_a_message(f"It could not be enqueued after job {job.pk}. {type(refusal).__name__}: {refusal}")
    exception = current_app.backend.prepare_exception(refusal)
    for one, task_id in _named_steps([step]):
        failed = _ended_step(job, one, task_id, "failed", error)
        links = (one.get("options") or {}).get("link_error") or []
        failed.follow_ups = {"link_error": [links] if isinstance(links, Mapping) else list(links)}
        failed.exception = exception
        if one is step:
            # An operator may run it again, once what stood in its way is gone.
            failed.args = failed.args if step.get("immutable") else [result, *failed.args]
            failed.follow_ups["chain"] = chain[:-1]
        Job.objects.bulk_create([failed], ignore_conflicts=True)
        after_failure(failed, error=error, traceback="", exception=exception, cause=refusal)
    if not _own_id(step):
        _abandon(job, f"An earlier step of its chain failed: {error}", chain[:-1])


def _is_called_as_ours(step: Mapping[str, Any]) -> bool:
    """Whether no class of its own reads the options with which a step's task is called."""
    task = current_app.tasks.get(step["task"])
    return getattr(type(task), "apply_async", None) is current_app.Task.apply_async


def _own_id(step: Mapping[str, Any]) -> Any:
    return (step.get("options") or {}).get("task_id")


def after_failure(job: Job, *, error: str, traceback: str, exception: Any, cause: BaseException | None) -> None:
    """A job fails for good in the current transaction: its chain ends here, and its errbacks are called.

    An errback with one argument gets the job's id and is a job itself, inserted here. Celery's newer kind, with three
    arguments, is called in place once the failure is committed; a process that dies in that instant calls none.
    """
    _abandon(job, f"An earlier step of its chain failed: job {job.pk}.", job.follow_ups.get("chain", []))
    backend: Any = current_app.backend
    for errback in job.follow_ups.get("link_error", []):
        signature = maybe_signature(errback, app=current_app)
        try:
            in_place = _takes_the_exception(backend, signature)
        except NotRegistered:
            logger.error("id=%s failed, and its errback %s is no task of this project", job.pk, signature.task)
            continue
        if in_place:
            raised = cause or backend.exception_to_python(exception) or RuntimeError(error)
            commits.then(partial(_call_in_place, signature, job, raised, traceback))
        else:
            own = {"task_id": str(_id_of_errback(errback)), "correlation_id": job.correlation_id}
            _enqueue(job.pk, job.root_id, errback, (str(job.pk),), own)


def _id_of_errback(errback: Mapping[str, Any]) -> Any:
    """The id that its caller has given it. Without one, or where the failure before an operator's retry has used it, a
    fresh one: each failure is written once, and the next is another."""
    own_id = _own_id(errback)
    return new_id() if own_id is None or Job.objects.filter(pk=parse_id(own_id)).exists() else own_id


def after_stop(job: Job) -> None:
    """A job ends in the current transaction neither well nor badly (cancelled, expired, ignored): so does its chain.

    As in Celery, no errbacks are called.
    """
    _abandon(job, f"An earlier step of its chain did not complete: job {job.pk}.", job.follow_ups.get("chain", []))


def after_replacement(job: Job) -> None:
    """A newer call takes a job's place before it has started: what was to follow the older one comes no more."""
    try:
        reason = f"The first step of its chain was replaced by a newer call: job {job.pk}."
        _abandon(job, reason, job.follow_ups.get("chain", []))
    except _NO_CHAIN:
        logger.exception("id=%s is replaced; what was to follow it is no chain.", job.pk)


def reopen(job: Job) -> None:
    """An operator runs a job again: the steps after it, stored as cancelled when it failed, are to come once more."""
    _later_steps(job).delete()


def is_later_step(job: Job) -> bool:
    """Whether a cancelled job is what is left of a chain whose earlier step, its parent, did not complete."""
    parent = Job.objects.filter(pk=job.parent_id).first() if job.parent_id else None
    return parent is not None and _later_steps(parent).filter(pk=job.pk).exists()


def failure_before(job: Job) -> Job | None:
    """The job whose failure has ended the chain of a cancelled one; None where that was cancelled otherwise."""
    parent = Job.objects.filter(pk=job.parent_id, state="failed").first() if job.parent_id else None
    return parent if parent is not None and _later_steps(parent).filter(pk=job.pk).exists() else None


def _later_steps(job: Job) -> Any:
    try:
        ids = [parse_id(task_id) for _, task_id in _named_steps(job.follow_ups.get("chain", []))]
    except _NO_CHAIN:
        logger.exception("id=%s: what follows it is no chain.", job.pk)
        ids = []
    ended = ["cancelled", "failed"]
    return Job.objects.filter(pk__in=ids, state__in=ended, parent_id=job.pk, started_at__isnull=True)


def _abandon(job: Job, reason: str, chain: Iterable[Any]) -> None:
    """The rest of a chain is stored as cancelled under its ids, so that nobody waits for it for ever."""
    Job.objects.bulk_create(
        [_ended_step(job, step, task_id, "cancelled", reason) for step, task_id in _named_steps(chain)],
        ignore_conflicts=True,
    )


def _ended_step(job: Job, step: Any, task_id: str, state: str, error: str) -> Job:
    return Job(
        id=parse_id(task_id),
        task=step["task"],
        queue=job.queue,
        state=state,
        args=list(step.get("args") or ()),
        kwargs=dict(step.get("kwargs") or {}),
        finished_at=Now(),
        error=error,
        parent_id=job.pk,
        root_id=job.root_id or job.pk,
        owner_id=job.owner_id,
        correlation_id=job.correlation_id,
    )


def _named_steps(steps: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """Every task of a chain that somebody may wait for, those inside of groups, chains and chords too, with its id."""
    for step in steps:
        if step.get("subtask_type") in ("group", "chain"):
            yield from _named_steps(step["kwargs"].get("tasks", []))
        elif step.get("subtask_type") == "chord":
            # Its own id is that of its header; whoever waits for it waits for its body.
            header = step["kwargs"]["header"]
            yield from _named_steps(header if isinstance(header, list) else [header])
            yield from _named_steps([step["kwargs"]["body"]])
        elif task_id := step.get("options", {}).get("task_id"):
            yield step, task_id


def _enqueue(
    job_id: UUID, root_id: UUID | None, step: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> Exception | None:
    """Enqueues what follows; returns what stood in the way of that."""
    try:
        with transaction.atomic(using=router.db_for_write(Job)):
            signature = maybe_signature(step, app=current_app)
            signature.apply_async(args, parent_id=str(job_id), root_id=str(root_id or job_id), follows=True, **options)
            return None
    except DATABASE_AWAY:
        # Then the job's end is not written either, and is tried again as a whole.
        raise
    except Exception as error:  # whatever a signature raises, the job's own end stands
        logger.exception("id=%s ended, but what should follow it could not be enqueued", job_id)
        Job.objects.filter(pk=job_id, error="").update(
            error=in_a_message(f"Completed, but a follow-up could not be enqueued: {error}")
        )
        return error


def _takes_the_exception(backend: Any, signature: Signature) -> bool:
    """Celery's own rule for telling the two kinds of errback apart."""
    header: Callable[..., Any] | None = getattr(signature.type, "__header__", None)
    if header is None or isinstance(header, partial):
        return False
    return bool(backend._errback_arity_greater(signature, 1))


def _call_in_place(signature: Signature, job: Job, raised: BaseException, traceback: str) -> None:
    request = Context(
        id=str(job.pk),
        task=job.task,
        args=job.args,
        kwargs=job.kwargs,
        retries=job.attempt - 1,
        root_id=str(job.root_id or job.pk),
        parent_id=job.parent_id and str(job.parent_id),
        correlation_id=job.correlation_id,
    )
    with correlation.assumed(job.correlation_id):
        signature(request, raised, traceback)
