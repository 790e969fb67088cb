"""Who may enqueue from where: a job that would block its caller, or that its caller could not roll back, is refused. So
is a wait for a job that cannot start before its caller goes on."""

from uuid import UUID

from celery.exceptions import TimeoutError
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, router
from django.utils.asyncio import async_unsafe

from jobs import sessions
from jobs.models import Job


class CalledFromAsyncCode(SynchronousOnlyOperation):
    """`delay()` or `apply_async()` in a running event loop, which would stand still until the row is written."""

    def __init__(self, task_name: str) -> None:
        name = task_name.rpartition(".")[2]
        super().__init__(
            f"{task_name} was enqueued from async code. Use `await {name}.adelay(…)` or "
            f"`await {name}.aapply_async(…)`; for a chain or a group, `await sync_to_async(signature.apply_async)()`."
        )


class OutsideOfTheTransaction(RuntimeError):
    """The caller's transaction is on another database than the ledger, so the job would not be part of it."""

    def __init__(self, task_name: str, *, ledger: str, other: str) -> None:
        super().__init__(
            f"{task_name} was enqueued in a transaction on the database {other!r}, but jobs are in {ledger!r}: the job "
            f"would stay when that transaction is rolled back. Enqueue it by transaction.on_commit(…, "
            f"using={other!r}), or in a transaction.atomic(using={ledger!r}) of its own if it is meant to stay."
        )


class LedgerHidden(RuntimeError):
    """The caller has changed its connection's session, and the ledger's tables are not to be seen any more."""

    def __init__(self, task_name: str) -> None:
        super().__init__(
            f"{task_name} was enqueued while the search_path of its connection hides the table {Job._meta.db_table}. "
            "Set it back first, or let it name the ledger's schema as well."
        )


class NotCommitted(TimeoutError):
    """A caller waits for the result of a job that its own open transaction has written."""

    def __init__(self, job_id: UUID) -> None:
        super().__init__(
            f"Job {job_id} was written by the transaction that waits for its result: no worker sees it before that has "
            "committed. Wait after the `transaction.atomic()` block; under ATOMIC_REQUESTS, mark the view with "
            "`@transaction.non_atomic_requests`, or answer with the job's id and let the client ask."
        )


# Whether a job that has not started was written by this very transaction, which alone sees what is in progress. Ids of
# transactions in rows are those of PostgreSQL without their upper half, here put back from the next one.
# Locks: nothing. Index: primary key. Two at once: they read.
WRITTEN_HERE = """
SELECT FROM jobs_job CROSS JOIN (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xid) AS following
WHERE id = %(job_id)s AND CASE WHEN state IN ('waiting', 'delayed') THEN
    pg_xact_status((xid - (xid - jobs_job.xmin::text::bigint) %% 4294967296)::text::xid8) = 'in progress' ELSE FALSE END
"""


def refuse_to_wait(job_id: UUID) -> None:
    """Raises NotCommitted; costs no query outside of a transaction."""
    connection = connections[router.db_for_write(Job)]
    if not connection.in_atomic_block:
        return
    with connection.cursor() as cursor:
        cursor.execute(WRITTEN_HERE, {"job_id": job_id})
        if cursor.fetchone() is not None:
            raise NotCommitted(job_id)


def refuse_unsafe(task_name: str, *, ledger: str) -> None:
    """Raises CalledFromAsyncCode, OutsideOfTheTransaction or LedgerHidden; costs no query, but for the last where the
    caller has changed its session."""
    try:
        _block()
    except SynchronousOnlyOperation:
        raise CalledFromAsyncCode(task_name) from None
    if sessions.is_changed(connections[ledger]):
        _refuse_hidden(task_name, ledger)
    if connections[ledger].in_atomic_block:
        return
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            raise OutsideOfTheTransaction(task_name, ledger=ledger, other=connection.alias)


def _refuse_hidden(task_name: str, ledger: str) -> None:
    with connections[ledger].cursor() as cursor:
        cursor.execute("SELECT pg_catalog.to_regclass(%s) IS NULL", [Job._meta.db_table])
        [is_hidden] = cursor.fetchone()
    if is_hidden:
        raise LedgerHidden(task_name)


@async_unsafe
def _block() -> None:
    """What Django's own queries ask before they block, `DJANGO_ALLOW_ASYNC_UNSAFE` included."""
