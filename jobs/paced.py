"""Where jobs with limits wait, and which of them may start: what the leader reads to grant them (G11).

Above each statement stands what it locks, which index serves it, and why two of them at once are safe.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from jobs.limits import COLUMNS
from jobs.rates import Rate
from jobs.statements import rows_of

_LANE_COLUMNS = ", ".join(COLUMNS)

# Locks: nothing. Index: job_waiting, of which it reads one entry per lane, however many jobs stand in it; of jobs
# without limits of their own those of the queues alone that are granted. Two at once: they read.
WAITING_LANES = f"""
WITH RECURSIVE own AS (
    SELECT following.*
    FROM unnest(%(queues)s::text[], %(lanes)s::text[]) AS wanted (queue, lane) CROSS JOIN LATERAL (
        SELECT queue, lane, {_LANE_COLUMNS} FROM jobs_job
        WHERE state = 'waiting' AND jobs_job.queue = wanted.queue AND lane > wanted.lane
        ORDER BY lane LIMIT 1) AS following
    UNION ALL
    SELECT following.*
    FROM own CROSS JOIN LATERAL (
        SELECT queue, lane, {_LANE_COLUMNS} FROM jobs_job
        WHERE state = 'waiting' AND jobs_job.queue = own.queue AND lane > own.lane
        ORDER BY lane LIMIT 1) AS following
)
SELECT *, statement_timestamp() FROM (
    SELECT * FROM (SELECT * FROM own LIMIT %(limit)s) AS following
    UNION ALL
    SELECT queue, '', NULL, NULL, NULL, NULL, NULL FROM unnest(%(granted)s::text[]) AS queue
    WHERE EXISTS (SELECT FROM jobs_job WHERE state = 'waiting' AND jobs_job.queue = queue.queue AND lane = '')) AS lane
"""  # noqa: S608

# Locks: nothing. Index: primary key.
# Two at once: they read. What they read may have changed when they use it: the claim decides.
FREE_STARTS = """
SELECT rate.key, GREATEST(0, rate.count - counted.number), counted.earliest + rate.period
FROM unnest(%(keys)s::text[], %(counts)s::int[], %(periods)s::interval[])
    WITH ORDINALITY AS rate (key, count, period, place)
LEFT JOIN jobs_limit AS own ON own.key = rate.key
CROSS JOIN LATERAL (
    SELECT count(*) AS number, min(start) AS earliest
    FROM unnest(own.starts) AS start WHERE start > statement_timestamp() - rate.period) AS counted
ORDER BY rate.place
"""

# Locks: nothing. Index: job_waiting, from the head of each lane.
# Two at once: they read.
MOST_URGENT = """
SELECT job.id, wanted.number, job.priority
FROM unnest(%(queues)s::text[], %(lanes)s::text[]) WITH ORDINALITY AS wanted (queue, lane, number)
CROSS JOIN LATERAL (
    SELECT id, priority, run_at FROM jobs_job
    WHERE state = 'waiting' AND queue = wanted.queue AND lane = wanted.lane
      AND (expires_at IS NULL OR expires_at > statement_timestamp()) AND id <> ALL (%(without)s::uuid[])
      AND (%(tasks)s::text[] IS NULL OR task = ANY (%(tasks)s::text[]))
    ORDER BY priority, run_at, id LIMIT %(limit)s) AS job
ORDER BY job.priority, job.run_at, job.id
"""

# Locks: nothing. Index: job_waiting, from the head of each priority of each lane.
# Two at once: they read.
LONGEST_WAITING = """
SELECT id, number, priority FROM (
    SELECT job.id, wanted.number, level.priority, job.run_at,
        row_number() OVER (PARTITION BY wanted.queue ORDER BY job.run_at, job.id) AS place
    FROM unnest(%(queues)s::text[], %(lanes)s::text[], %(below)s::int[])
        WITH ORDINALITY AS wanted (queue, lane, below, number)
    CROSS JOIN LATERAL generate_series(wanted.below + 1, 9) AS level (priority)
    CROSS JOIN LATERAL (
        SELECT id, run_at FROM jobs_job
        WHERE state = 'waiting' AND queue = wanted.queue AND lane = wanted.lane AND priority = level.priority
          AND run_at < statement_timestamp() - %(age)s
          AND (expires_at IS NULL OR expires_at > statement_timestamp()) AND id <> ALL (%(without)s::uuid[])
          AND (%(tasks)s::text[] IS NULL OR task = ANY (%(tasks)s::text[]))
        ORDER BY run_at, id LIMIT %(limit)s) AS job) AS old
WHERE place <= %(limit)s ORDER BY run_at, id
"""


def waiting_lanes(
    *, after: Mapping[str, str], limit: int, granted: Collection[str]
) -> tuple[list[dict[str, Any]], datetime | None]:
    """Lanes in which jobs wait, with the columns that the jobs of a lane have in common, and when it was so.

    Of each queue those of jobs with limits of their own after this one, in the order of the index; `limit` of them at
    most, and fewer when the last was reached. Besides, each time, the lanes of jobs without, of the granted queues. No
    moment where nothing waits.
    """
    names = ("queue", "lane", *COLUMNS, "now")
    parameters = {"queues": list(after), "lanes": list(after.values()), "limit": limit, "granted": list(granted)}
    lanes = [dict(zip(names, row, strict=True)) for row in rows_of(WAITING_LANES, parameters)]
    return lanes, lanes[0]["now"] if lanes else None


class FreeStarts(NamedTuple):
    """How many starts a rate has left at this moment, and when it has one more; None where it has all of them."""

    free: int
    more_at: datetime | None


def free_starts(rates: Collection[tuple[str, Rate]]) -> dict[tuple[str, Rate], FreeStarts]:
    """What is left of each of these keys' rates."""
    parameters = {
        "keys": [key for key, _ in rates],
        "counts": [rate.count for _, rate in rates],
        "periods": [rate.period for _, rate in rates],
    }
    rows = rows_of(FREE_STARTS, parameters) if rates else []
    return {rate: FreeStarts(free, more_at) for rate, (_, free, more_at) in zip(rates, rows, strict=True)}


@dataclass(frozen=True, slots=True)
class Lane:
    """Where jobs wait: a queue, and the limits of their own, which all jobs of a lane have in common."""

    queue: str
    name: str = ""


class Waiting(NamedTuple):
    """A waiting job."""

    job_id: UUID
    lane: Lane
    priority: int


def most_urgent(
    lanes: Sequence[Lane], *, limit: int, without: Collection[UUID], tasks: Collection[str] | None = None
) -> list[Waiting]:
    """The most urgent waiting jobs of some lanes, at most `limit` of each; the most urgent first.

    Of these tasks alone, where they are named.
    """
    named = None if tasks is None else list(tasks)
    return _of_lanes(MOST_URGENT, lanes, {"limit": limit, "without": list(without), "tasks": named})


def longest_waiting(
    below: Mapping[Lane, int],
    *,
    age: timedelta,
    limit: int,
    without: Collection[UUID],
    tasks: Collection[str] | None = None,
) -> list[Waiting]:
    """The jobs of some lanes that have waited longest, and longer than `age`; of each lane, below a priority.

    The oldest first, and at most `limit` of each queue.
    """
    parameters = {
        "below": list(below.values()),
        "age": age,
        "limit": limit,
        "without": list(without),
        "tasks": None if tasks is None else list(tasks),
    }
    return _of_lanes(LONGEST_WAITING, list(below), parameters) if below else []


def _of_lanes(statement: str, lanes: Sequence[Lane], parameters: dict[str, Any]) -> list[Waiting]:
    named = {"queues": [lane.queue for lane in lanes], "lanes": [lane.name for lane in lanes]}
    rows = rows_of(statement, {**named, **parameters})
    return [Waiting(job_id, lanes[number - 1], priority) for job_id, number, priority in rows]
