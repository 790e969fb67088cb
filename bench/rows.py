"""Rows of this project's ledger by the thousand, each kind by one statement: backlogs, and a past."""

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

# How long a job of a backlog takes.
NAP_SECONDS = 0.02
# As an enqueue leaves them in a row: of the queue `default`, without a call's own options.
_COMMON = {
    "priority": "5",
    "args": "'[]'",
    "kwargs": "'{}'",
    "headers": "'{}'",
    "follow_ups": "'{}'",
    "attempt": "1",
    "max_attempts": "3",
    "stalled_count": "0",
    "run_alone": "false",
    "progress_message": "''",
    "custom_state": "''",
    "ignore_result": "false",
    "error": "''",
    "traceback": "''",
    "group_id": "''",
    "correlation_id": "''",
    "is_held": "false",
    "soft_time_limit_seconds": "60",
    "time_limit_seconds": "75",
}
# What it takes to have happened within an hour, so that retention leaves it alone.
_PAST = "40 minutes"


@dataclass(frozen=True, kw_only=True)
class Limited:
    """The limits of a backlog's own: its jobs take the keys in turns."""

    name: str
    key_count: int = 1
    rate: str | None = None
    concurrency: int | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The columns that keep them, as expressions of `number`; the lane is that of `jobs.limits.lane_of`."""
        key = f"'bench' || number % {self.key_count}"
        rate, concurrency = self.rate is not None, self.concurrency is not None
        if not (rate or concurrency):
            return {"lane": "''"}
        part = f"""'"' || {key} || '"'"""
        parts = [
            part if rate else "'null'",
            f"""'"{self.rate}"'""" if rate else "'null'",
            part if concurrency else "'null'",
            f"'{self.concurrency}'" if concurrency else "'null'",
            "'null'",
        ]
        return {
            "rate_key": key if rate else "NULL",
            "rate_limit": f"'{self.rate}'" if rate else "NULL",
            "concurrency_key": key if concurrency else "NULL",
            "concurrency_limit": str(self.concurrency) if concurrency else "NULL",
            "lane": f"concat('[', concat_ws(',', {', '.join(parts)}), ']')",
        }


UNPACED = Limited(name="unpaced")


def insert_waiting(
    connection: "psycopg.Connection[Any]",
    count: int,
    *,
    queues: tuple[str, ...] = ("default",),
    task: str = "bench.tasks.nap",
    limited: Limited = UNPACED,
) -> None:
    """So many waiting jobs, which take the queues in turns."""
    listed = ", ".join(f"'{queue}'" for queue in queues)
    values = {"queue": f"(ARRAY[{listed}])[1 + number % {len(queues)}]", "state": "'waiting'", "claim_token": "''"}
    _insert(connection, count, {**values, "task": f"'{task}'", **limited.columns})


def insert_ended(connection: "psycopg.Connection[Any]", count: int) -> None:
    """So many completed jobs, evenly over the last forty minutes."""
    moment = f"now() - number * interval '{_PAST}' / {count}"
    values = {
        "queue": "'default'",
        "state": "'completed'",
        "task": "'bench.tasks.noop'",
        "lane": "''",
        "claim_token": "'bench'",
        "worker_id": "gen_random_uuid()",
        "progress_percent": "100",
        **dict.fromkeys(("created_at", "run_at", "started_at", "finished_at"), moment),
    }
    _insert(connection, count, values)


def _insert(connection: "psycopg.Connection[Any]", count: int, values: dict[str, str]) -> None:
    # Ids follow the time, as those of the ledger do, where the server can make such.
    new_id = "uuidv7()" if connection.info.server_version >= 180_000 else "gen_random_uuid()"
    values = {"id": new_id, **_COMMON, **values}
    statement = sql.SQL("INSERT INTO jobs_job ({}) SELECT {} FROM generate_series(1, {}) AS number").format(
        sql.SQL(", ").join(map(sql.Identifier, values)),
        # Constants of this module.
        sql.SQL(", ").join(sql.SQL(value) for value in values.values()),
        sql.Literal(count),
    )
    connection.execute(statement)
