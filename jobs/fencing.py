"""Database effects that a run may only have while it owns its job."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from celery import current_task
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from jobs import sessions


@contextmanager
def fenced(*, using: str | None = None) -> Iterator[None]:
    """A transaction that commits only if this run still owns its job; otherwise all of it is rolled back (G04).

    Raises LeaseLost at its end when the worker was given up meanwhile or another run has the job, and its subclass
    JobCancelled when somebody cancelled it. Use it in a task around database writes that must not come from a run that
    was given up; twice in one run is two transactions, each whole. What it holds may happen again in another run of the
    job, as everything outside of tasks with `atomic=True` may. Whoever would end it in between, as by `COMMIT`, is
    refused. In a direct or eager call it is a plain transaction. The ledger must be in the same database.
    """
    run = getattr(getattr(current_task, "request", None), "run", None)
    alias = using or DEFAULT_DB_ALIAS
    with transaction.atomic(using=using), nullcontext() if run is None else sessions.guarded(connections[alias]):
        yield
        # Last of all: from here to the commit the row is locked, so that nobody can take the job in between.
        if run is not None and not run.row().select_for_update().exists():
            raise run.loss("what this block wrote is rolled back")
