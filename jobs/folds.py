"""Events of runs that ended become counts per minute, as arrivals do, and minutes become days.

Above each statement stands what it locks, which index serves it, and why two of them at once are safe.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import connections, router

from jobs.models import JobEvent
from jobs.statements import rows_of
from jobs.statistics import BOUNDS_SECONDS

# Put together from constants alone.
_BUCKETS = range(len(BOUNDS_SECONDS) + 1)

_STAT_COLUMNS = """queue, task, minute, arrived_count, completed_count, failed_count, retried_count, stalled_count,
    cancelled_count, wait_seconds_sum, run_seconds_sum, wait_buckets, run_buckets"""

_ADD_TO_STAT = """ON CONFLICT (queue, task, minute) DO UPDATE SET
    arrived_count = stat.arrived_count + EXCLUDED.arrived_count,
    completed_count = stat.completed_count + EXCLUDED.completed_count,
    failed_count = stat.failed_count + EXCLUDED.failed_count,
    retried_count = stat.retried_count + EXCLUDED.retried_count,
    stalled_count = stat.stalled_count + EXCLUDED.stalled_count,
    cancelled_count = stat.cancelled_count + EXCLUDED.cancelled_count,
    wait_seconds_sum = stat.wait_seconds_sum + EXCLUDED.wait_seconds_sum,
    run_seconds_sum = stat.run_seconds_sum + EXCLUDED.run_seconds_sum,
    wait_buckets = ARRAY(SELECT one + other FROM unnest(stat.wait_buckets, EXCLUDED.wait_buckets)
                         WITH ORDINALITY AS pair (one, other, place) ORDER BY place),
    run_buckets = ARRAY(SELECT one + other FROM unnest(stat.run_buckets, EXCLUDED.run_buckets)
                        WITH ORDINALITY AS pair (one, other, place) ORDER BY place)"""

# Locks: the events it takes, skipping those that others hold, the rows it adds to, and the keys of the events' owners,
# until its end. An event whose owner is locked, to be deleted perhaps, is left for the next time: nobody waits.
# Index: the primary keys and the unique constraints of the four tables.
# Two at once: SKIP LOCKED gives each event to one of them, which deletes and counts it, or neither. Where both add to
# one row, the second waits for the first and adds to its sum; both take rows in the order of their keys.
FOLD_EVENTS = f"""
WITH batch AS (
    SELECT id, owner_id FROM jobs_jobevent WHERE id > %(after)s ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), owner AS (
    SELECT {{key}} AS id FROM {{users}} WHERE {{key}} IN (SELECT owner_id FROM batch) FOR KEY SHARE SKIP LOCKED
), taken AS (
    DELETE FROM jobs_jobevent WHERE id IN (
        SELECT id FROM batch
        WHERE owner_id IS NULL OR owner_id IN (SELECT id FROM owner)
           OR NOT EXISTS (SELECT FROM {{users}} AS one WHERE one.{{key}} = batch.owner_id))
    RETURNING *, width_bucket(wait_seconds, %(bounds)s::double precision[]) AS wait_bucket,
              width_bucket(run_seconds, %(bounds)s::double precision[]) AS run_bucket
), owned AS (
    INSERT INTO jobs_ownerstat AS stat
        (owner_id, quarter, task, completed_count, failed_count, cancelled_count, error)
    SELECT owner_id, date_bin('15 minutes', at, TIMESTAMPTZ 'epoch') AS quarter, task,
        count(*) FILTER (WHERE kind = 'completed'), count(*) FILTER (WHERE kind = 'failed'),
        count(*) FILTER (WHERE kind = 'cancelled'),
        COALESCE((array_agg(error ORDER BY at DESC) FILTER (WHERE kind = 'failed'))[1], '')
    FROM taken
    WHERE kind IN ('completed', 'failed', 'cancelled') AND owner_id IN (SELECT id FROM owner)
    GROUP BY owner_id, quarter, task ORDER BY owner_id, quarter, task
    ON CONFLICT (owner_id, quarter, task) DO UPDATE SET
        completed_count = stat.completed_count + EXCLUDED.completed_count,
        failed_count = stat.failed_count + EXCLUDED.failed_count,
        cancelled_count = stat.cancelled_count + EXCLUDED.cancelled_count,
        error = CASE EXCLUDED.failed_count WHEN 0 THEN stat.error ELSE EXCLUDED.error END
), counted AS (
    INSERT INTO jobs_stat AS stat ({_STAT_COLUMNS})
    SELECT queue, task, date_trunc('minute', at) AS minute, 0,
        count(*) FILTER (WHERE kind = 'completed'), count(*) FILTER (WHERE kind = 'failed'),
        count(*) FILTER (WHERE kind = 'retried'), count(*) FILTER (WHERE kind = 'stalled'),
        count(*) FILTER (WHERE kind = 'cancelled'),
        COALESCE(sum(wait_seconds), 0), COALESCE(sum(run_seconds), 0),
        ARRAY[{", ".join(f"count(*) FILTER (WHERE wait_bucket = {bucket})" for bucket in _BUCKETS)}],
        ARRAY[{", ".join(f"count(*) FILTER (WHERE run_bucket = {bucket})" for bucket in _BUCKETS)}]
    FROM taken GROUP BY queue, task, minute ORDER BY queue, task, minute
    {_ADD_TO_STAT}
)
SELECT count(*), max(id), array_agg(DISTINCT flow_id) FILTER (WHERE flow_id IS NOT NULL) FROM taken
"""  # noqa: S608

# Locks: the rows that it writes, until its end. Index: job_created, of which it reads the span.
# Two at once: the second waits for the first, and writes nothing where it has counted no more.
COUNT_ARRIVALS = f"""
WITH arrived AS (
    SELECT queue, task, date_trunc('minute', created_at) AS minute, count(*) AS number
    FROM jobs_job WHERE created_at >= %(start_at)s AND created_at < %(end_at)s GROUP BY queue, task, minute
)
INSERT INTO jobs_stat AS stat ({_STAT_COLUMNS})
SELECT queue, task, minute, number, 0, 0, 0, 0, 0, 0, 0,
    array_fill(0, ARRAY[{len(_BUCKETS)}]), array_fill(0, ARRAY[{len(_BUCKETS)}])
FROM arrived ORDER BY queue, task, minute
ON CONFLICT (queue, task, minute) DO UPDATE SET arrived_count = EXCLUDED.arrived_count
    WHERE stat.arrived_count < EXCLUDED.arrived_count
"""  # noqa: S608

# Locks: the rows of minutes that it takes, and those of the days that it adds to, until its end. Index: stat_minute.
# Two at once: the second waits for the first, and finds the minutes gone. A late event may still be folded into such a
# minute: that row is then another one, and is taken the next time.
FOLD_DAYS = f"""
WITH taken AS (
    DELETE FROM jobs_stat
    WHERE minute < date_trunc('day', statement_timestamp() - %(age)s, 'UTC')
      AND minute <> date_trunc('day', minute, 'UTC')
    RETURNING *, date_trunc('day', minute, 'UTC') AS day
)
INSERT INTO jobs_stat AS stat ({_STAT_COLUMNS})
SELECT queue, task, day, sum(arrived_count), sum(completed_count), sum(failed_count), sum(retried_count),
    sum(stalled_count), sum(cancelled_count), sum(wait_seconds_sum), sum(run_seconds_sum),
    ARRAY[{", ".join(f"sum(wait_buckets[{bucket + 1}])" for bucket in _BUCKETS)}],
    ARRAY[{", ".join(f"sum(run_buckets[{bucket + 1}])" for bucket in _BUCKETS)}]
FROM taken GROUP BY queue, task, day ORDER BY queue, task, day
{_ADD_TO_STAT}
"""  # noqa: S608


class Folded(NamedTuple):
    """What a fold has taken: how many events, the last one's id, and the flows of whose members they tell."""

    event_count: int
    last_id: int | None
    flow_ids: list[UUID]


def fold_events(*, limit: int, after: int = 0) -> Folded:
    """Takes a batch of events away and adds them to the statistics.

    One statement: an event is counted once, or still there. Those up to the id `after` are not looked at.
    """
    users: Any = get_user_model()._meta
    statement = FOLD_EVENTS.format(users=users.db_table, key=users.pk.column)
    row = rows_of(statement, {"limit": limit, "bounds": list(BOUNDS_SECONDS), "after": after})[0]
    return Folded(row[0], row[1], row[2] or [])


def count_arrivals(start_at: datetime, end_at: datetime) -> None:
    """Counts the jobs that were made in a span of time, by minute, queue and task; both ends are whole minutes.

    Counted again, a minute may only gain: those that were removed since have arrived.
    """
    with connections[router.db_for_write(JobEvent)].cursor() as cursor:
        cursor.execute(COUNT_ARRIVALS, {"start_at": start_at, "end_at": end_at})


def fold_days(*, age: timedelta) -> None:
    """Makes one row of the minutes of each UTC day that ended longer ago than `age`."""
    parameters: dict[str, Any] = {"age": age}
    with connections[router.db_for_write(JobEvent)].cursor() as cursor:
        cursor.execute(FOLD_DAYS, parameters)
