"""Raw SQL on the ledger's database. Each statement says what it locks, which index serves it, and why two of them at
once are safe; states are literals there, so that the planner may use the partial indexes."""

from typing import Any

from django.db import connections, router

from jobs.models import Job


def rows_of(statement: str, parameters: dict[str, Any]) -> list[Any]:
    """What a statement answers."""
    with connections[router.db_for_write(Job)].cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()
