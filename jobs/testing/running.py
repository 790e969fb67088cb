"""Runs jobs in this process, as a worker would: claimed, traced by Celery, ended by the backend.

Also inside of `django.test.TestCase`, where all is one transaction that is rolled back: nobody else sees its jobs, and
Django calls no `on_commit` callbacks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial, update_wrapper
from typing import Any
from uuid import UUID, uuid4

from celery import current_app
from celery.app.trace import build_tracer
from django.db import connections, transaction
from django.db.models.functions import Now
from psycopg.pq import TransactionStatus

from jobs import claims, limits, publish, selectors, settle
from jobs.app import UnknownTask
from jobs.dispatcher import due, flows
from jobs.models import Job, Worker
from jobs.worker import identity, lease, surroundings
from jobs.worker.notes import own_notes
from jobs.worker.requests import delivery_of, headers_of

_NODE = "run_due_jobs@test"


class EndlessJobs(AssertionError):
    """Jobs were due again and again: a task retries or enqueues itself without end."""


def run_due_jobs(*, ahead: timedelta = timedelta(0), at_most: int = 100) -> list[Job]:
    """Runs every job that is due, and those that they enqueue, one after the other in a worker's order.

    With `ahead`, also what comes due within that time, retries included, as if the time had passed: `run_at` of a
    delayed job is moved to now when its turn comes, and what expires before that is cancelled. Nothing is waited for.

    Returns a Job for each run, in order, as it was after that run: a job that was retried appears again. An error of a
    task is in its job's row (`state`, `error`, `traceback`), as in a worker, and not raised. Raises EndlessJobs after
    `at_most` runs. Jobs of paused queues stay, also of those that `RateLimited` pauses. There are no time
    limits, and neither rates nor quiet hours hold.

    Inside a transaction, callbacks registered by `on_commit` in a body are called after its run; where a query fails in
    a body, all that the body wrote is undone, not that one query alone.
    """
    ran: list[Job] = []
    refused: set[UUID] = set()
    with _a_worker():
        until = _now() + ahead
        while (job := _next(until, refused)) is not None:
            if len(ran) == at_most:
                raise EndlessJobs(f"More than {at_most} runs, and {job} is due. The last ones: {_listed(ran[-5:])}.")
            if _run(job):
                ran.append(Job.objects.get(pk=job.pk))
            else:
                refused.add(job.pk)
    return ran


def _next(until: datetime, refused: set[UUID]) -> Job | None:
    """The next job in a worker's order; time passes only when nothing waits."""
    runnable = Job.objects.exclude(queue__in=selectors.halted_queues()).exclude(pk__in=refused)
    while True:
        flows.run_once()
        due.run_once()
        job = runnable.filter(state="waiting").order_by("priority", "run_at", "id").first()
        later = runnable.filter(state="delayed", is_held=False, run_at__lte=until).order_by("run_at", "id").first()
        if job is not None or later is None:
            return job
        Job.objects.filter(state__in=["waiting", "delayed"], expires_at__lte=later.run_at).update(expires_at=Now())
        Job.objects.filter(pk=later.pk).update(run_at=Now())


def _run(job: Job) -> bool:
    """One run, claimed as a worker claims it; False where the claim was refused."""
    app: Any = current_app._get_current_object()
    task = app.tasks.get(job.task)
    if task is None:
        raise UnknownTask(job.task, sorted(app.tasks))
    token = identity.new_token()
    with limits.without_clocks():
        claimed = claims.claim({job.pk: token}, worker_id=identity.incarnation(), tasks=[job.task])
    if not claimed:
        return False
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    request = {
        **headers_of(claimed[0]),
        "args": args,
        "kwargs": kwargs,
        "hostname": _NODE,
        "properties": {},
        "delivery_info": delivery_of(claimed[0]),
    }
    with _on_commit_called(), _failed_queries_undone(task):
        build_tracer(task.name, task, app=app, hostname=_NODE)(str(job.pk), args, kwargs, request)
    own_notes().flush()
    return True


@contextmanager
def _a_worker() -> Iterator[None]:
    """A living worker's row, and this process as that worker; nothing of it is left."""
    worker_id = uuid4()
    facts: dict[str, Any] = {"node": _NODE, "host": "test", "pid": 0, "pool": "solo", "concurrency": 1}
    Worker.objects.create(pk=worker_id, lease_expires_at=lease.lease_end() + timedelta(days=1), **facts)
    try:
        with identity.assumed(worker_id), settle.reporting_inside(), own_notes().by_caller(), surroundings.kept():
            yield
    finally:
        Worker.objects.filter(pk=worker_id).delete()


@contextmanager
def _on_commit_called() -> Iterator[None]:
    """Inside a transaction: calls what a run wants called after a commit, but for rings, which nobody would hear."""
    connection = connections[settle.ledger()]
    begun = len(connection.run_on_commit)
    yield
    while connection.in_atomic_block and len(connection.run_on_commit) > begun:
        _, callback, *_ = connection.run_on_commit.pop(begun)
        if not (isinstance(callback, partial) and callback.func is publish.soon):
            callback()


@contextmanager
def _failed_queries_undone(task: Any) -> Iterator[None]:
    """Inside a transaction: what follows a body whose query has failed finds a transaction that still works."""
    using = settle.ledger()
    if not connections[using].in_atomic_block:
        yield
        return
    own = vars(task).get("run")
    # With its signature, which the keys of limits are made by.
    task.run = update_wrapper(partial(_in_a_savepoint, task.run, using), task.run)
    try:
        yield
    finally:
        if own is None:
            del task.run
        else:
            task.run = own


def _in_a_savepoint(body: Callable[..., Any], using: str, /, *args: Any, **kwargs: Any) -> Any:
    connection: Any = connections[using]
    savepoint = transaction.savepoint(using)
    try:
        return body(*args, **kwargs)
    finally:
        if connection.needs_rollback or connection.connection.info.transaction_status == TransactionStatus.INERROR:
            connection.needs_rollback = False
            transaction.savepoint_rollback(savepoint, using)
        else:
            transaction.savepoint_commit(savepoint, using)


def _now() -> datetime:
    """By the database's clock, as everything in the ledger."""
    (now,) = Worker.objects.filter(pk=identity.incarnation()).values_list(Now(), flat=True)
    return now


def _listed(jobs: list[Job]) -> str:
    return ", ".join(f"{job} {job.state}" for job in jobs)
