"""The result backend: Celery's tracer tells it how each run ended, and it writes that into the job's row, fenced.

Nothing here may raise in the worker's main process, where lost children and time-outs are settled: an error there would
end the whole worker. What could not be written there is found by the dispatcher, when the lease runs out.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import current_app, states
from celery.exceptions import Ignore, Reject, TimeoutError
from celery.result import ResultBase, ResultSet
from celery.utils.serialization import UnpickleableExceptionWrapper
from celery.utils.time import get_exponential_backoff_interval, maybe_iso8601, maybe_make_aware
from django.db import connections
from django.db.models import QuerySet
from django_celery_results.backends.database import DatabaseBackend

from jobs import callers, canvas, flows, follow_ups, own_limits, replacing, settle
from jobs.bounds import LONGEST_DELAY, MESSAGE_BYTES
from jobs.errors import Interrupted, JobCancelled, LeaseLost, Permanent, RateLimited
from jobs.ids import InvalidJobId, is_id, parse_id
from jobs.models import ENDED, Job
from jobs.patience import DATABASE_AWAY, patiently
from jobs.payloads import NotKept, as_json, in_a_message, in_a_traceback, result_json, storable
from jobs.rates import InvalidLimit
from jobs.results import of_single_jobs
from jobs.runs import log
from jobs.states import State
from jobs.task import JobTask
from jobs.worker import identity, shutdown
from jobs.worker.notes import own_notes

logger = logging.getLogger(__name__)

# An end is worth waiting for: what its run has done would be done once more. Nothing else could run meanwhile. The main
# process must go on serving its children.
_END_PATIENCE_SECONDS = 600
_MAIN_PATIENCE_SECONDS = 1
_MAIN_LOCK_WAIT_MS = 500
# The first pause between two looks for a result that a caller waits for.
_SHORTEST_PAUSE_SECONDS = 0.02
_READ_TOGETHER = 1000

# Their results were each accepted before.
_MADE_OF_RESULTS = frozenset(["celery.accumulate"])

_CELERY_STATES = {
    State.DELAYED: states.PENDING,
    State.WAITING: states.PENDING,
    State.ACTIVE: states.STARTED,
    State.COMPLETED: states.SUCCESS,
    State.FAILED: states.FAILURE,
    State.CANCELLED: states.REVOKED,
}


class LedgerBackend(DatabaseBackend):
    """Results and ends of jobs, in the ledger instead of the tables of django-celery-results."""

    # -- Ends ------------------------------------------------------------------------------------------------------
    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        """The body returned. A retry that was noted with `throw=False` wins over the return value."""
        if getattr(request, "retry_signature", None) is not None:
            self.mark_as_retry(task_id, None, request=request)
            return
        run = _run(task_id, request)
        if run is None:
            return

        def write(repeated: bool) -> bool:
            return self.complete(request, result) or (repeated and run.landed(state="completed"))

        if request.settled or self._written(write, request, "completed"):
            log(logging.INFO, "completed", request.task, request)
            flows.member_ended(request.claim.flow_id)

    def complete(self, request: Any, result: Any) -> bool:
        """Completes the job of a claimed request, together with what follows it; False where it is no longer its own.

        Raises NotKept for a result that is no JSON, none that PostgreSQL can store, or too large.
        """
        if isinstance(result, ResultBase):
            # Of a job that the body has enqueued: as Celery keeps it.
            result = result.as_tuple()
        if result is not None and request.task not in _MADE_OF_RESULTS:
            result_json(result)
        return settle.complete(request.run, result=result, claim=request.claim)

    def mark_as_failure(
        self,
        task_id: str,
        exc: Any,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """The run failed: for good when its body raised; lost workers and hard limits have policies of their own."""
        run = _run(task_id, request)
        if run is None:
            return
        if isinstance(exc, WorkerLostError):
            if shutdown.handing_back():
                return
            self._lost(run, exc, request)
            return
        error = in_a_message(_in_words(exc))
        kept = self._kept(exc)
        traceback = in_a_traceback(traceback)

        event, level = "failed", logging.WARNING

        def write(repeated: bool) -> bool:
            nonlocal event, level
            if isinstance(exc, JobCancelled) and run.landed(state="cancelled"):
                event, level = "cancelled", logging.INFO
                return True
            if isinstance(exc, TimeLimitExceeded) and self._retried_after_time_limit(run, request, error, kept):
                return True
            landed = settle.fail(run, error=error, exception=kept, traceback=traceback, cause=exc)
            return landed or (repeated and run.landed(state="failed"))

        if not self._written(write, request, "failed"):
            return
        if getattr(request, "claim", None) is not None:
            log(level, event, request.task, request, f"error={error}")
            flows.member_ended(request.claim.flow_id)
        else:
            logger.warning("failed id=%s task=%s error=%s", run.job_id, request.task, error)

    def mark_as_retry(
        self,
        task_id: str,
        exc: Any,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> None:
        """The body asked for another run: the row becomes delayed, after the body has unwound."""
        run = _run(task_id, request)
        signature = getattr(request, "retry_signature", None)
        if run is None or signature is None:
            return
        options = signature.options
        delay: Any = options.get("countdown")
        if options.get("eta"):
            delay = self._moment(options["eta"])
        changes: dict[str, Any] = {"args": list(signature.args), "kwargs": dict(signature.kwargs)}
        error = in_a_message(_in_words(exc)) if exc is not None else "It asked for another run."
        kept = self._kept(exc) if isinstance(exc, BaseException) else None
        traceback = in_a_traceback(traceback)

        def write(repeated: bool) -> bool:
            limits = self._moved_limits(run, request, **changes)
            landed = settle.retry(
                run, delay=delay or 0, error=error, exception=kept, traceback=traceback, **changes, **limits
            )
            return landed or (repeated and run.landed(attempt=request.claim.attempt + 1))

        try:
            written = self._written(write, request, "retried")
        except (TypeError, InvalidLimit) as wrong:
            # The other arguments make none of the keys that the task declares.
            self.mark_as_failure(task_id, wrong, request=request)
            return
        if written:
            log(logging.WARNING, "retried", request.task, request, f"in={delay} error={error}")

    def _moved_limits(self, run: settle.Run, request: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The limits of a job that runs again with other arguments, which the keys that its task declares may name."""
        task = self.app.tasks[request.task]
        job = run.row().first() if task.rate_key or task.concurrency_key else None
        return own_limits.moved(task, job, args, kwargs) if job is not None else {}

    def mark_as_left(self, task_id: str, exc: Ignore | Reject, request: Any) -> None:
        """The body raised `Ignore` (the job is completed without a result, replaced, or waits again) or `Reject`.

        `Reject(requeue=True)` is another run at once, and counts; `Reject` is a failure.
        """
        run = _run(task_id, request)
        if run is None:
            return
        replacement = getattr(request, "replacement", None)
        if isinstance(exc, Interrupted):
            # Also where it was to be replaced: what an atomic body wrote is rolled back, and nothing may go on from it.
            written = self._written(lambda _: _interrupted(run, exc), request, "interrupted")
        elif replacement is not None:
            written = request.settled or self._written(lambda _: self._replaced(run, replacement), request, "replaced")
        elif isinstance(exc, RateLimited):
            written = self._written(partial(_paused, run, exc.retry_after_seconds), request, "rate-limited")
        elif isinstance(exc, Ignore):
            written = self._written(lambda _: settle.complete(run, result=None), request, "ignored")
        elif exc.requeue:
            written = self._written(lambda _: self._requeued(run, exc), request, "requeued")
        else:
            written = self._written(lambda _: self._rejected(run, exc), request, "rejected")
        if written:
            log(logging.INFO, "left", request.task, request, _in_words(exc))
            flows.member_ended(request.claim.flow_id)

    def _requeued(self, run: settle.Run, exc: Reject) -> bool:
        job = run.row().values("attempt", "max_attempts").first()
        if job is None:
            return False
        if job["max_attempts"] is not None and job["attempt"] >= job["max_attempts"]:
            return self._rejected(run, exc)
        return settle.retry(run, delay=0, error=in_a_message(_in_words(exc)), redelivered=True)

    def _rejected(self, run: settle.Run, exc: Reject) -> bool:
        return settle.fail(run, error=in_a_message(_in_words(exc)), exception=self._kept(exc), cause=exc)

    def replace(self, run: settle.Run, replacement: Any) -> bool:
        """Lets a running job go on as another task, or as a flow; False where the run does not own it any more.

        Raises what is wrong with that task's call, or with the children of the flow.
        """
        if isinstance(replacement, canvas.FanOut):
            return flows.hold(run, replacement)
        return replacing.replace(run, replacement)

    def _replaced(self, run: settle.Run, replacement: Any) -> bool:
        try:
            return self.replace(run, replacement)
        except DATABASE_AWAY:
            raise
        except Exception as error:  # whatever is wrong with a child is a failure of the body that has named it
            # By name: there may be any number of children, and Celery fails to print some signatures.
            logger.exception("id=%s could not go on as %s", run.job_id, getattr(replacement, "task", "a flow"))
            return settle.fail(run, error=in_a_message(_in_words(error)), exception=self._kept(error), cause=error)

    def _kept(self, exc: BaseException) -> dict[str, Any]:
        """An exception as Celery keeps it, with no more of its arguments than of its message."""
        kept: dict[str, Any] = storable(self.prepare_exception(exc))
        if isinstance(exc, UnpickleableExceptionWrapper):
            kept = {**kept, "exc_type": exc.exc_cls_name, "exc_module": exc.exc_module, "exc_message": [str(exc)]}
        try:
            if len(as_json(kept, wrapped=2)) <= MESSAGE_BYTES:
                return kept
        except NotKept:
            pass
        return {**kept, "exc_message": [in_a_message(str(exc))]}

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """The worker ended the run on somebody's wish."""
        run = _run(task_id, request)
        if run is not None:

            def write(repeated: bool) -> bool:
                # An operator has cancelled the job, and now the worker has ended the run.
                return settle.cancel(run, reason=reason or "Cancelled.") or run.landed(state="cancelled")

            self._written(write, request, "cancelled")

    def store_result(self, task_id: str, result: Any, state: str, **options: Any) -> Any:
        """Custom states from `update_state`; STARTED and the ends are written elsewhere."""
        request = options.get("request")
        if state in states.ALL_STATES:
            return result
        run = _run(task_id, request)
        if run is None:
            # `update_state` passes no request: the current task's own, when it speaks of itself.
            current = self.app.current_worker_task
            run = _run(task_id, current.request) if current and current.request.id == task_id else None
        if run is not None:
            _report(run, state, result)
        return result

    def _lost(self, run: settle.Run, exc: Any, request: Any) -> None:
        evidence = f"{type(exc).__name__}: {exc}"

        def write(repeated: bool) -> bool:
            return sum(settle.lose(run.row(), evidence=evidence)) > 0

        if self._written(write, request, "lost"):
            logger.warning("stalled id=%s task=%s evidence=%s", run.job_id, request.task, evidence)

    def _retried_after_time_limit(self, run: settle.Run, request: Any, error: str, kept: Any) -> bool:
        """A hard limit is a failed attempt: where the task retries by itself and has runs left, it runs again."""
        task = self.app.tasks.get(request.task)
        job = run.row().values("attempt", "max_attempts").first()
        if task is None or not getattr(task, "autoretry_for", None) or job is None:
            return False
        if job["max_attempts"] is not None and job["attempt"] >= job["max_attempts"]:
            return False
        delay = get_exponential_backoff_interval(
            factor=int(task.retry_backoff or 1),
            retries=job["attempt"] - 1,
            maximum=task.retry_backoff_max,
            full_jitter=task.retry_jitter,
        )
        return settle.retry(run, delay=min(delay, LONGEST_DELAY.total_seconds()), error=error, exception=kept)

    def _written(self, write: Callable[[bool], bool], request: Any, what: str) -> bool:
        """Writes an end, waiting for the database; says so where the run no longer owned its job."""
        in_child = getattr(request, "claim", None) is not None

        def write_bounded(repeated: bool) -> bool:
            # The run that holds a lock on its job's row may be waiting for this very process to end it.
            with settle.atomic():
                settle.bound_lock_waits(_MAIN_LOCK_WAIT_MS)
                return write(repeated)

        def write_all(repeated: bool) -> bool:
            with own_notes().progress_written(request.run):
                return write(repeated)

        try:
            landed = patiently(
                write_all if in_child else write_bounded,
                seconds=_END_PATIENCE_SECONDS if in_child else _MAIN_PATIENCE_SECONDS,
            )
        except DATABASE_AWAY as error:
            logger.error("id=%s %s, but PostgreSQL is away (%s); it will be run again", request.id, what, error)
            return False
        finally:
            if not in_child:
                # The main process forks pool processes: it keeps no connection that they would inherit.
                connections.close_all()
        if not landed:
            logger.warning("id=%s %s, but the job was no longer this run's: not kept", request.id, what)
        return landed

    def _moment(self, value: datetime | str) -> datetime:
        return maybe_make_aware(maybe_iso8601(value), self.app.timezone)

    # -- What callers ask -------------------------------------------------------------------------------------------
    # A group's `get()` asks for its members together.
    supports_native_join = True

    def iter_native(
        self, result: Any, timeout: float | None = None, interval: float = 0.5, on_interval: Any = None, **_: Any
    ) -> Iterator[tuple[str, Any]]:
        """The members of a group in their order, each once it has ended. Raises NotCommitted as `wait_for` does."""
        looks = self._looks(timeout, interval, on_interval)
        members = list(of_single_jobs(result.results))
        known_count = 0
        for one in result.results:
            for member in of_single_jobs([one]):
                while member._cache is None:
                    next(looks)
                    self.read_ended(members[known_count : known_count + _READ_TOGETHER])
                    if member._cache is None:
                        _refuse_to_wait(member.id)
                known_count += 1
            yield one.id, one.results if isinstance(one, ResultSet) else one._cache

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = 0.5, on_interval: Any = None, **_: Any
    ) -> Any:
        """What `get()` does. Raises NotCommitted at once for a job of the caller's own open transaction.

        Celery asks between two looks whether what came before has failed, and raises that. The body of a chord fails at
        the moment of its header, so that is asked after the last look as well.
        """
        _refuse_to_wait(task_id)
        looks = self._looks(timeout, interval, on_interval)
        while True:
            next(looks)
            meta = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                break
        if on_interval and meta["status"] in states.PROPAGATE_STATES:
            on_interval()
        return meta

    def _looks(self, timeout: float | None, interval: float, on_interval: Any) -> Iterator[None]:
        """Whoever waits looks at once, soon again, and then more and more seldom, until the pause is `interval`."""
        self._ensure_not_eager()
        began = told_at = time.monotonic()
        while True:
            yield
            now = time.monotonic()
            if on_interval and now - told_at >= interval:
                on_interval()
                told_at = now
            waited = now - began
            if timeout is not None and waited >= timeout:
                raise TimeoutError("The operation timed out.")
            pause = min(interval, max(_SHORTEST_PAUSE_SECONDS, waited / 10))
            time.sleep(pause if timeout is None else min(pause, timeout - waited))

    def read_ended(self, results: Sequence[Any]) -> None:
        """Lets those of these results know what became of their jobs that have ended."""
        unknown = [one for one in results if one._cache is None and is_id(one.id)]
        for begin in range(0, len(unknown), _READ_TOGETHER):
            batch = unknown[begin : begin + _READ_TOGETHER]
            ended = _told().filter(pk__in=[parse_id(one.id) for one in batch], state__in=ENDED).in_bulk()
            for one in batch:
                if (job := ended.get(parse_id(one.id))) is not None:
                    one._maybe_set_cache(self._meta_of(job))

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        """What `AsyncResult` shows."""
        job = _told().filter(pk=parse_id(task_id)).first() if is_id(task_id) else None
        return _pending(task_id) if job is None else self._meta_of(job)

    def _meta_of(self, job: Job) -> dict[str, Any]:
        """Celery's words for the row's state."""
        task_id = str(job.pk)
        status = _CELERY_STATES[State(job.state)]
        result: Any = job.result
        if job.state == State.DELAYED and job.attempt > 1:
            status, result = states.RETRY, job.exception
        elif job.state == State.ACTIVE and job.custom_state:
            status, result = job.custom_state, job.custom_meta
        elif job.state == State.FAILED:
            result = job.exception or {"exc_type": "Exception", "exc_message": [job.error], "exc_module": "builtins"}
        elif job.state == State.CANCELLED:
            failed = follow_ups.failure_before(job)
            if failed is not None:
                # As Celery has it: every later step of a chain has failed as the one before it did.
                return {**self._meta_of(failed), "task_id": task_id}
            result = {"exc_type": "TaskRevokedError", "exc_message": [job.error], "exc_module": "celery.exceptions"}
        return self.meta_from_decoded(
            {
                **_pending(task_id),
                "status": status,
                "result": result,
                "traceback": job.traceback or None,
                "name": job.task,
                "args": job.args,
                "kwargs": job.kwargs,
                "retries": job.attempt - 1,
                "queue": job.queue,
                "date_done": job.finished_at,
            }
        )

    def _forget(self, task_id: str) -> None:
        """`AsyncResult.forget()` lets go of the result, not of the job."""
        Job.objects.filter(pk=parse_id(task_id)).update(result=None)

    def cleanup(self) -> None:
        """Nothing expires here: retention removes rows."""

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """A chord is being enqueued: its body comes first, held until the header has ended."""
        flows.hold_for_chord(header_result_args[0], body)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Nothing is to be counted: the new job is a member by its own row."""


def _told() -> QuerySet[Job]:
    """Jobs as callers are told of them: without what may be long, and is nobody's to know."""
    return Job.objects.defer("follow_ups", "headers", "successor")


def _refuse_to_wait(task_id: str) -> None:
    if is_id(task_id):
        callers.refuse_to_wait(parse_id(task_id))


def _pending(task_id: str) -> dict[str, Any]:
    return {"task_id": task_id, "status": states.PENDING, "result": None, "traceback": None, "children": []}


def _run(task_id: str, request: Any) -> settle.Run | None:
    """The run that a request of Celery's speaks of, or None where it cannot own a job, as with a foreign base class."""
    task = current_app.tasks.get(getattr(request, "task", None))
    if task is not None and not isinstance(task, JobTask):
        return None
    token = identity.token_of(request) if request is not None else None
    if token is None:
        return None
    run = getattr(request, "run", None)
    if run is not None:
        return run
    try:
        return settle.Run(parse_id(task_id), token)
    except InvalidJobId:
        return None


def _paused(run: settle.Run, seconds: float, repeated: bool) -> bool:
    return settle.rate_limit(run, seconds=seconds) or (repeated and run.landed(state="waiting"))


def _report(run: settle.Run, state: str, meta: Any) -> None:
    """A state of the task's own. It is never worth the job: what of it cannot be kept is shown, or left out."""
    for kept in (meta, storable(meta)):
        try:
            result_json(kept)
        except NotKept as error:
            refusal = error
        else:
            settle.report(run, custom_state=storable(state)[:64], custom_meta=kept)
            return
    logger.warning("id=%s reports a state that cannot be kept: %s", run.job_id, refusal)
    settle.report(run, custom_state=storable(state)[:64], custom_meta=None)


def _interrupted(run: settle.Run, exc: Interrupted) -> bool:
    if settle.broke_alone(run):
        return settle.count_broken(run, evidence=_in_words(exc.__cause__ or exc))
    return settle.give_back(run)


def _in_words(exc: Any) -> str:
    """An exception as a person reads it: its message, with its type in front unless that is one of ours."""
    if isinstance(exc, Reject):
        return f"Rejected: {exc.reason}"
    if isinstance(exc, TimeLimitExceeded):
        return f"It ran longer than its time limit of {exc.args[0]:g} seconds, and was ended."
    if isinstance(exc, SoftTimeLimitExceeded):
        return "It ran longer than its time limit, and was ended."
    text = str(exc).strip()
    # One that cannot be pickled comes in a wrapping of Celery's.
    name = exc.exc_cls_name if isinstance(exc, UnpickleableExceptionWrapper) else type(exc).__name__
    if isinstance(exc, (Permanent, LeaseLost)) and text:
        return text
    return f"{name}: {text}" if text else name
