"""Raw SQL on the ledger's database. Each statement says what it locks, which index serves it, and why two of them at
once are safe; states are literals there, so that the planner may use the partial indexes."""

import time
from typing import Any

from django.db import connections, router

from jobs.chains import CLAIMED_FOLLOW_UPS
from jobs.models import Job

# What a claim returns.
CLAIMED = f"""job.id, job.claim_token, job.task, job.queue, job.priority, job.run_at, job.started_at,
          job.args::text, job.kwargs::text, {CLAIMED_FOLLOW_UPS},
          job.headers::text, job.attempt, job.max_attempts,
          job.time_limit_seconds, job.soft_time_limit_seconds, job.ignore_result, job.correlation_id, job.root_id,
          job.parent_id, job.flow_id, job.group_id, job.created_at, job.redelivered"""


def rows_of(statement: str, parameters: dict[str, Any]) -> list[Any]:
    """What a statement answers."""
    with connections[router.db_for_write(Job)].cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()


def round_trip_seconds() -> float:
    """How long a question takes that reads nothing: the machine and the way to the database alone."""
    began = time.monotonic()
    rows_of("SELECT 1", {})
    return time.monotonic() - began
