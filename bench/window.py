"""What a backlog costs in Redis: the ledger keeps the queue, Redis only a window of hints."""

from typing import Any

import psycopg
import redis

from bench.processes import worker
from bench.sides import Side
from devstack.throwaway import Servers

# A worker of another queue leads the dispatcher and tops every window up, but takes nothing.
_IDLE_QUEUE = "crm"
_BACKLOG = """
INSERT INTO jobs_job (
    id, task, queue, priority, args, kwargs, headers, follow_ups, state, attempt, max_attempts, stalled_count,
    refused_count, run_alone, claim_token, progress_message, custom_state, ignore_result, error, traceback, group_id,
    correlation_id, is_held)
SELECT gen_random_uuid(), 'bench.tasks.noop', %s, 5, '[]', '{}', '{}', '{}', 'waiting', 1, 3, 0,
    0, false, '', '', '', false, '', '', '', '', false
FROM generate_series(1, %s)
"""


def insert_backlog(connection: "psycopg.Connection[Any]", queue: str, count: int) -> None:
    """So many waiting jobs in one statement."""
    connection.execute(_BACKLOG, [queue, count])


def redis_bytes(side: Side, servers: Servers, *, backlog: int) -> int:
    """The memory of Redis's data while `backlog` jobs wait, once the window is full."""
    assert servers.redis
    side.empty()
    with (
        redis.Redis.from_url(side.environment["REDIS_URL"]) as client,
        side.connect() as connection,
        worker(side, servers.folder, f"--queues={_IDLE_QUEUE}") as running,
    ):
        client.flushall()
        running.wait_until(running.is_ready, 1)
        insert_backlog(connection, "default", backlog)
        wanted = min(backlog, int(side.environment.get("JOBS_WINDOW", "500")))
        running.wait_until(lambda: int(client.llen("default:5")), wanted)
        return int(client.info("memory")["used_memory_dataset"])
