"""How much a query reads, as PostgreSQL says it."""

import json
from typing import Any

from django.db import connection, transaction


def rows_read(sql: str, parameters: dict[str, Any] | None = None) -> int:
    """The most rows that any step of a query goes through."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)
        (plans,) = cursor.fetchone()
    most = 0
    steps = [json.loads(plans)[0]["Plan"] if isinstance(plans, str) else plans[0]["Plan"]]
    while steps:
        step = steps.pop()
        removed = step.get("Rows Removed by Filter", 0) + step.get("Rows Removed by Index Recheck", 0)
        most = max(most, (step["Actual Rows"] + removed) * step["Actual Loops"])
        steps += step.get("Plans", [])
    return most


def pages_read(sql: str, parameters: dict[str, Any] | None = None) -> int:
    """How many pages a query looks at, wherever they lie."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", parameters)
        (plans,) = cursor.fetchone()
    plan = (json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


_ENTRIES = """
SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index WHERE indrelid = 'jobs_job'::regclass
"""


def entries_read(sql: str, parameters: dict[str, Any] | None = None) -> int:
    """How many entries of the job table's indexes a query looks at, those of dead rows included."""
    with transaction.atomic(), connection.cursor() as cursor:
        counts = []
        for statement in (_ENTRIES, sql, _ENTRIES):
            cursor.execute(statement, parameters if statement is sql else None)
            counts.append(cursor.fetchone())
    return int(counts[2][0] - counts[0][0])
