"""A second connection, for tests of two that meet: each in a transaction of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper


@contextmanager
def another_connection() -> Iterator[BaseDatabaseWrapper]:
    """A connection in a transaction that the test commits, or leaves to be rolled back."""
    other = connections["default"].copy()
    other.set_autocommit(False)
    try:
        yield other
        if other.is_usable():
            other.rollback()
    finally:
        other.close()


@contextmanager
def over(other: BaseDatabaseWrapper) -> Iterator[None]:
    """Whatever is done inside goes over that connection."""
    mine, connections["default"] = connections["default"], other
    try:
        yield
    finally:
        connections["default"] = mine


def kill(other: BaseDatabaseWrapper) -> None:
    """What happens to a transaction whose process dies."""
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        assert cursor.fetchone() == (True,)


@contextmanager
def row_locked_by_somebody_else(job_id: UUID | None) -> Iterator[None]:
    """While the block runs, another transaction holds that job's row; none, where no job is named."""
    with another_connection() as other:
        if job_id is not None:
            with other.cursor() as cursor:
                cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [job_id])
        yield


def somebody_waits_for_a_lock() -> bool:
    """Not by pg_stat_activity, which inside of a transaction never shows more than at the first look."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])
