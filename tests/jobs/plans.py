"""How much a query reads, as PostgreSQL says it."""

import json

from django.db import connection


def rows_read(sql: str) -> int:
    """The most rows that any step of a query goes through."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        (plans,) = cursor.fetchone()
    most = 0
    steps = [json.loads(plans)[0]["Plan"] if isinstance(plans, str) else plans[0]["Plan"]]
    while steps:
        step = steps.pop()
        removed = step.get("Rows Removed by Filter", 0) + step.get("Rows Removed by Index Recheck", 0)
        most = max(most, (step["Actual Rows"] + removed) * step["Actual Loops"])
        steps += step.get("Plans", [])
    return most
