"""JobTask: the base class of every task in the project. Its API is Celery's."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from celery import Task
from celery.canvas import Signature, _chain
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, ImproperlyConfigured, Reject, Retry, SoftTimeLimitExceeded
from celery.result import AsyncResult
from django.db import connections

from jobs import canvas, edge, enqueue, sessions, settle
from jobs.errors import Interrupted, JobCancelled, LeaseLost, Permanent
from jobs.options import check
from jobs.patience import DATABASE_AWAY, is_away, patiently
from jobs.payloads import as_json, storable
from jobs.queues import QUEUES, Queue
from jobs.worker import surroundings
from jobs.worker.notes import own_notes

logger = logging.getLogger(__name__)

_ASK_SECONDS = 0.5
# As for an end: see `jobs.backend`.
_COMMIT_PATIENCE_SECONDS = 600
# Read through properties, so that a running job's own limits come before the task's, and the queue's come last.
_DECLARED = ("queue", "priority", "max_retries", "retry_backoff")
# A job is the worker's until its end is written. Celery would call the slot free when the run begins.
_NOT_DECLARED = ("acks_late",)


class JobTask(DjangoTask):
    """A Celery task whose jobs are rows of the ledger.

    Beyond Celery: `progress()`, `check_cancelled()`, `aapply_async()`, `adelay()`, the declaration `atomic=True`, and,
    of `apply_async()`, the options `rate_key`, `rate_limit`, `concurrency_key`, `concurrency_limit`, `quiet_hours`,
    `dedup_key`, `dedup_seconds`, `dedup_latest`, `owner_id`, `max_attempts` and `correlation_id`. Limits may be
    declared as well. Jitter is off unless asked for.
    """

    abstract = True
    # How the worker takes its messages, and what Celery knows of a claimed job.
    Strategy = "jobs.worker.arrivals:strategy"
    Request = "jobs.worker.requests:JobRequest"
    acks_late = True
    retry_jitter = False
    # Celery keeps it only where a task declares it; a retry after a hard time limit asks for it.
    retry_backoff_max = 600
    # `atomic=True`: the body and the job's completion are one transaction (G15).
    atomic = False
    # Limits of its jobs over all workers together, as Celery's own `rate_limit` is here. Keys may name arguments, as in
    # "tenant:{tenant_id}"; where none is declared, the task is the key.
    rate_key: str | None = None
    concurrency_key: str | None = None
    concurrency_limit: int | None = None
    quiet_hours: str | None = None
    # Expected failures: one line in the log, no traceback.
    throws = (Permanent, JobCancelled)
    _declared: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._take_declared()
        edge.keep_outermost(cls)

    @classmethod
    def annotate(cls) -> None:
        """Celery's `task_annotations`, which set attributes of the class."""
        super().annotate()
        cls._take_declared()

    @classmethod
    def _take_declared(cls) -> None:
        declared = {name: cls.__dict__[name] for name in _DECLARED if name in cls.__dict__}
        for name in (*declared, *(name for name in _NOT_DECLARED if name in cls.__dict__ and cls is not JobTask)):
            delattr(cls, name)
        cls._declared = {**cls._declared, **declared}

    def _declare(self, name: str, value: Any) -> None:
        """An assignment to the task itself: for jobs that this process enqueues from now on."""
        self.__dict__["_declared"] = {**self._declared, name: value}

    # -- What the task declares, what its queue adds ---------------------------------------------------------------
    @property
    def queue(self) -> str | None:
        """The queue that the task declares; None sends it where `task_routes` say, else to the default queue."""
        return self._declared.get("queue")

    @queue.setter
    def queue(self, value: str | None) -> None:
        self._declare("queue", value)

    @property
    def priority(self) -> int | None:
        """The priority that the task declares."""
        return self._declared.get("priority")

    @priority.setter
    def priority(self, value: int | None) -> None:
        self._declare("priority", value)

    @property
    def max_retries(self) -> int | None:
        """Retries that the running job may have, else what the task declares, else what its queue allows."""
        claim = getattr(self.request, "claim", None)
        if claim is not None and "own_max_retries" in vars(self.request):
            own: int | None = self.request.own_max_retries
            return own
        allowed = (
            claim.max_attempts if claim is not None else self.attempts_allowed(QUEUES.get(self.queue or "default"))
        )
        return None if allowed is None else allowed - 1

    @max_retries.setter
    def max_retries(self, value: int | None) -> None:
        if getattr(self.request, "claim", None) is not None:
            # A body says so of its own run.
            self.request.own_max_retries = value
        else:
            self._declare("max_retries", value)

    @property
    def override_max_retries(self) -> int | None:
        """What the body has said by `retry(max_retries=…)`: Celery notes it in the task, here it is the run's own."""
        try:
            said: int | None = vars(self.request)["override_max_retries"]
        except KeyError:
            raise AttributeError("override_max_retries") from None
        return said

    @override_max_retries.setter
    def override_max_retries(self, value: int | None) -> None:
        self.request.override_max_retries = value

    @override_max_retries.deleter
    def override_max_retries(self) -> None:
        del self.request.override_max_retries

    @property
    def retry_backoff(self) -> Any:
        """Seconds before the first automatic retry: the task's, else the queue's. Doubles with each retry.

        A task that says otherwise how long its retries wait, by `retry_kwargs` or `default_retry_delay`, has none.
        """
        if "retry_backoff" in self._declared:
            return self._declared["retry_backoff"]
        says_otherwise = self.default_retry_delay != Task.default_retry_delay
        if says_otherwise or {"countdown", "eta"} & set(getattr(self, "retry_kwargs", None) or {}):
            return False
        queue = QUEUES.get(self.queue or "default")
        return queue.backoff_seconds if queue else False

    @retry_backoff.setter
    def retry_backoff(self, value: Any) -> None:
        self._declare("retry_backoff", value)

    def attempts_allowed(self, queue: Queue | None) -> int | None:
        """How many runs a job of this task has in a queue; None is without end."""
        if "max_retries" in self._declared:
            retries = self._declared["max_retries"]
            return None if retries is None else max(0, int(retries)) + 1
        return queue.max_attempts if queue else 1

    # -- Enqueueing ------------------------------------------------------------------------------------------------
    def apply_async(self, args: Any = None, kwargs: Any = None, *others: Any, **options: Any) -> AsyncResult:
        """Celery's, which looks at the arguments more than once: those of an iterator are read here."""
        return super().apply_async(tuple(args) if isinstance(args, Iterator) else args, kwargs, *others, **options)

    async def aapply_async(self, *args: Any, **options: Any) -> AsyncResult:
        """`apply_async` for asynchronous callers."""
        return await sync_to_async(partial(self.apply_async, *args, **options))()

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """`delay` for asynchronous callers."""
        return await self.aapply_async(args, kwargs)

    # -- Running ---------------------------------------------------------------------------------------------------
    @property
    def scheduled_for(self) -> datetime | None:
        """The moment of the tick, in UTC, for which the running job was made; None where no schedule made it.

        It stays the same in retries, and however late the job runs.
        """
        moment = self.request.get("scheduled_for")
        return datetime.fromisoformat(moment) if moment else None

    def before_start(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Before the body; the run has begun, and the arguments are the job's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function: for a run of a job, or in place when somebody calls the task like a function."""
        in_place = super().__call__
        return edge.call(self.request, lambda: self.run(*args, **kwargs), otherwise=lambda: in_place(*args, **kwargs))

    def run_claimed(self, body: Callable[[], Any]) -> Any:
        """The run of a claimed job: its body, and what the ledger does around that."""
        request = self.request
        if getattr(request, "claim", None) is None:
            raise Ignore("not claimed")
        before = sessions.mark()
        try:
            return self._run_atomically(body, before) if self.atomic else edge.enter(request, body)
        except (Ignore, Reject) as error:
            self._clean(before)
            # Celery's tracer tells the backend nothing of these two.
            self.backend.mark_as_left(request.id, error, request)
            raise
        except SoftTimeLimitExceeded:
            # It may have struck in the middle of a query: a connection in that state is of no more use.
            connections.close_all()
            raise
        except MemoryError as error:
            # Celery ends the whole worker on MemoryError; it is this job's failure alone.
            raise RuntimeError(f"Out of memory: {error}") from error
        except Exception as error:
            if isinstance(error, Retry) or not isinstance(error.__context__, SoftTimeLimitExceeded):
                raise
            # Leaving a transaction whose query the time limit has interrupted is an error of its own, and hides it.
            connections.close_all()
            raise error.__context__ from error
        finally:
            self._clean(before)

    def _clean(self, before: dict[str, sessions.Mark]) -> None:
        """Nothing that the body has left reaches the end of its run, or the next job."""
        surroundings.let_the_ledger_log()
        for what in sessions.clean(before):
            logger.warning("id=%s has left %s open: it was rolled back.", self.request.id, what)

    def _run_atomically(self, body: Callable[[], Any], before: dict[str, sessions.Mark]) -> Any:
        """The body, and the completion of its job, in one fenced transaction: its database effects happen exactly once.

        Raises LeaseLost, with everything rolled back, where the run no longer owns its job. Where the connection breaks
        around the body, the ledger is asked what became of the commit; a run that left nothing is handed back.
        """
        request = self.request
        result: Any = None
        raised: BaseException | None = None
        replaced: Ignore | None = None
        written = False
        depth = len(connections[settle.ledger()].atomic_blocks) + 1
        try:
            with settle.atomic():
                try:
                    with sessions.guarded(connections[settle.ledger()]):
                        result = edge.enter(request, body)
                    sessions.whole(connections[settle.ledger()], depth=depth, before=before)
                except BaseException as error:
                    if not isinstance(error, Ignore) or getattr(request, "replacement", None) is None:
                        raised = error
                        raise
                    # The job goes on as another, and what its body wrote stands with that.
                    replaced = error
                with own_notes().progress_written(request.run):
                    if replaced is not None:
                        owned = written = self.backend.replace(request.run, request.replacement)
                    elif request.retry_signature is not None:
                        owned = request.run.row().select_for_update().exists()
                    else:
                        owned = written = self.backend.complete(request, result)
                if not owned:
                    raise request.run.loss("its effects are rolled back")
        except Exception as error:
            if raised is not None:
                # What the body raised, a Retry for example, and not what rolling back on a broken connection raised.
                raise raised from raised.__cause__
            states = ["completed"] if replaced is None else ["waiting", "delayed"]
            if written and self._has_landed(states, error):
                logger.exception("id=%s completed, but a callback after its commit failed", request.id)
            elif is_away(error):
                raise Interrupted("the connection to PostgreSQL broke; nothing of this run was kept") from error
            else:
                raise
        request.settled = written
        if replaced is not None:
            raise replaced
        return result

    def _has_landed(self, states: list[str], error: Exception) -> bool:
        """Whether a commit of this run that raised was made all the same, waiting until PostgreSQL says so."""
        try:
            return patiently(lambda _: self.request.run.landed(state__in=states), seconds=_COMMIT_PATIENCE_SECONDS)
        except DATABASE_AWAY:
            # Nobody knows. Where it was not made, the job waits again; where it was, that is refused.
            raise Interrupted("PostgreSQL went away at the commit, and did not come back") from error

    def progress(self, done: float, total: float = 100, message: str = "") -> None:
        """Says how far the job is: `done` of `total`, with a short message. Cheap: at most two writes a second.

        What comes too soon is written a moment later, unless something newer is; the last one always is. Raises
        JobCancelled when somebody cancelled the job, LeaseLost when this run has lost it otherwise. Does nothing in a
        direct or eager call.
        """
        request = self.request
        run = getattr(request, "run", None)
        if run is None:
            return
        part = done / total if total > 0 else 1.0
        percent = int(100 * max(0.0, min(1.0, part))) if math.isfinite(part) else 0
        changes: dict[str, Any] = {"progress_percent": percent, "progress_message": storable(str(message))[:255]}
        if own_notes().may_write(request, **changes) and not settle.report(run, **changes):
            request.is_lost = True
        if request.is_lost:
            raise run.loss("this run is to stop")

    def check_cancelled(self) -> None:
        """Raises as `progress()` does where the job is no longer this run's, and tells nobody anything otherwise.

        For tasks that cannot say how far they are. Cheap: asks at most twice a second. Does nothing in a direct or
        eager call.
        """
        request = self.request
        run = getattr(request, "run", None)
        now = time.monotonic()
        if run is None or now - request.asked_at < _ASK_SECONDS:
            return
        request.asked_at = now
        if not run.owns():
            raise run.loss("this run is to stop")

    def retry(self, *args: Any, exc: BaseException | None = None, **options: Any) -> Any:
        """Celery's `retry`, except that what no retry cures fails at once, also under `autoretry_for=(Exception,)`."""
        if isinstance(exc, (Permanent, LeaseLost)):
            raise exc
        return super().retry(*args, exc=exc, **options)

    def replace(self, sig: Signature) -> Any:
        """Celery's `replace`, once the body has unwound: the job becomes another task's under its id.

        In the place of a chain, a group or a chord it is held until that has ended, and ends with its result.
        """
        if getattr(self.request, "claim", None) is None:
            return super().replace(sig)
        if isinstance(sig, _chain) and not sig.tasks:
            raise ImproperlyConfigured("Cannot replace with an empty chain")
        return self.on_replace(sig)

    def on_replace(self, sig: Signature) -> Any:
        """Celery's: what a class of tasks does to whatever replaces them."""
        if getattr(self.request, "claim", None) is None:
            return super().on_replace(sig)
        if type(sig) is Signature:
            as_json([sig.args, sig.kwargs], wrapped=2)
        self.request.replacement = sig if type(sig) is Signature else canvas.FanOut(children=[sig])
        raise Ignore(f"replaced by {sig.task}")

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Signature:
        """Celery's signature of the next run; enqueueing it only notes it, for `LedgerBackend.mark_as_retry` to write.

        A write in the body would be rolled back together with the body's transaction.
        """
        request = self.request if request is None else request
        signature = super().signature_from_request(request, *args, **options)
        if getattr(request, "claim", None) is not None:
            # Here the body can be told; at its end nobody would listen.
            check(self.name, signature.options)
            enqueue.check_size(self.name, as_json([signature.args, signature.kwargs], wrapped=2))
            signature.apply_async = partial(_note_retry, request, signature)
        return signature


def _note_retry(request: Any, signature: Signature, *_: Any, **__: Any) -> None:
    request.retry_signature = signature


edge.keep_outermost(JobTask)
