"""Who may enqueue from where: a job that would block its caller, or that its caller could not roll back, is refused."""

from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
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
