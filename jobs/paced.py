"""Where jobs with limits wait, and which of them may start: what the leader reads to grant them (G11).

Above each statement stands what it locks, which index serves it, and why two of them at once are safe.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from jobs.below import Position
from jobs.limits import COLUMNS, concurrency_key, queue_key
from jobs.rates import Rate
from jobs.statements import rows_of

_LANE_COLUMNS = ", ".join(COLUMNS)

# Where jobs wait between the levels that are known: of each gap the levels from its begin to its end, both left out.
# Locks: nothing. Index: job_waiting, of which it reads one entry per level, however many jobs stand in it.
# Two at once: they read.
UNKNOWN_LEVELS = f"""
WITH RECURSIVE found AS (
    SELECT gap.queue, gap.end_lane, gap.end_priority, following.*
    FROM unnest(%(queues)s::text[], %(lanes)s::text[], %(priorities)s::int[], %(end_lanes)s::text[],
                %(end_priorities)s::int[]) AS gap (queue, lane, priority, end_lane, end_priority)
    CROSS JOIN LATERAL (
        SELECT lane, priority, run_at, {_LANE_COLUMNS} FROM jobs_job
        WHERE state = 'waiting' AND jobs_job.queue = gap.queue AND (lane, priority) > (gap.lane, gap.priority)
          AND (lane, priority) < (gap.end_lane, gap.end_priority)
        ORDER BY lane, priority, run_at, id LIMIT 1) AS following
    UNION ALL
    SELECT found.queue, found.end_lane, found.end_priority, following.*
    FROM found CROSS JOIN LATERAL (
        SELECT lane, priority, run_at, {_LANE_COLUMNS} FROM jobs_job
        WHERE state = 'waiting' AND jobs_job.queue = found.queue AND (lane, priority) > (found.lane, found.priority)
          AND (lane, priority) < (found.end_lane, found.end_priority)
        ORDER BY lane, priority, run_at, id LIMIT 1) AS following
)
SELECT queue, lane, priority, run_at, {_LANE_COLUMNS} FROM found LIMIT %(limit)s
"""  # noqa: S608

# The next jobs of some levels of a queue, of tasks that its workers know.
# Locks: nothing. Index: job_waiting, from the floor of each level.
# Two at once: they read.
NEXT = """
SELECT wanted.number, job.id, job.run_at
FROM unnest(%(lanes)s::text[], %(priorities)s::int[], %(floors)s::timestamptz[], %(floor_ids)s::uuid[])
    WITH ORDINALITY AS wanted (lane, priority, floor, floor_id, number)
CROSS JOIN LATERAL (
    SELECT id, run_at FROM jobs_job
    WHERE state = 'waiting' AND queue = %(queue)s AND lane = wanted.lane AND priority = wanted.priority
      AND (run_at, id) >= (wanted.floor, wanted.floor_id) AND (expires_at IS NULL OR expires_at > statement_timestamp())
      AND id <> ALL (%(without)s::uuid[]) AND (%(tasks)s::text[] IS NULL OR task = ANY (%(tasks)s::text[]))
    ORDER BY run_at, id LIMIT %(limit)s) AS job
ORDER BY wanted.number, job.run_at, job.id
"""

# Locks: nothing. Index: primary key; see the head of `jobs.claims` for the CASE.
# Two at once: they read.
NAMED = f"""
SELECT id, queue, lane, priority, run_at, task, {_LANE_COLUMNS} FROM jobs_job
WHERE id = ANY (%(job_ids)s::uuid[]) AND CASE state WHEN 'waiting' THEN TRUE ELSE FALSE END
"""  # noqa: S608

# Of each rate, the oldest of the starts that count: how many of them do, no more than are of use, and the earliest; and
# until when nothing starts under its key. Where it has no count, only the latter.
# Locks: nothing. Index: primary keys, of jobs_ratestart the last entry of each key and those that are counted.
# Two at once: they read. What they read may have changed when they use it: the claim decides.
FREE_STARTS = """
SELECT CASE WHEN counted.is_used_up THEN 0 ELSE LEAST(rate.count, %(most)s) - counted.number END,
    counted.earliest + rate.period,
    CASE WHEN own.rate_limited_until > statement_timestamp() THEN own.rate_limited_until END
FROM unnest(%(keys)s::text[], %(counts)s::int[], %(periods)s::interval[])
    WITH ORDINALITY AS rate (key, count, period, place)
LEFT JOIN jobs_limit AS own ON own.key = rate.key
LEFT JOIN LATERAL (
    SELECT number FROM jobs_ratestart AS start WHERE start.key = rate.key ORDER BY number DESC LIMIT 1
) AS latest ON TRUE
CROSS JOIN LATERAL (
    SELECT count(*) AS number, min(started_at) AS earliest,
        latest.number >= rate.count AND bool_or(is_oldest) AS is_used_up
    FROM (
        SELECT started_at, row_number() OVER (ORDER BY number) = 1 AS is_oldest
        FROM (
            SELECT number, started_at FROM jobs_ratestart AS start
            WHERE start.key = rate.key AND start.number > latest.number - rate.count
            ORDER BY number LIMIT LEAST(rate.count, %(most)s)) AS following) AS start
    WHERE start.started_at > statement_timestamp() - rate.period) AS counted
ORDER BY rate.place
"""

# Those of some jobs that still wait, and the moment at which they did.
# Locks: nothing. Index: primary key; see the head of `jobs.claims` for the CASE.
# Two at once: they read.
STILL_WAITING = """
SELECT ARRAY(
    SELECT id FROM jobs_job
    WHERE id = ANY (%(job_ids)s::uuid[]) AND CASE state WHEN 'waiting' THEN TRUE ELSE FALSE END
), statement_timestamp()
"""

# From where on running jobs are counted. A clock that was put back is behind it: then, from the beginning.
_SINCE = """CASE WHEN own.running_since <= statement_timestamp() THEN own.running_since ELSE '-infinity' END"""

# How many jobs run under each key, and in each queue.
# Locks: nothing. Index: job_active_of_key and job_active, from the moment before which nothing that runs was started.
# Two at once: they read, as above.
RUNNING = f"""
SELECT wanted.lock, counted.number
FROM unnest(%(locks)s::text[], %(keys)s::text[]) AS wanted (lock, key)
LEFT JOIN jobs_limit AS own ON own.key = wanted.lock
CROSS JOIN LATERAL (SELECT {_SINCE}) AS known (since)
CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM jobs_job
    WHERE state = 'active' AND concurrency_key = wanted.key
      AND started_at >= known.since) AS counted
UNION ALL
SELECT wanted.lock, counted.number
FROM unnest(%(queue_locks)s::text[], %(queues)s::text[]) AS wanted (lock, queue)
LEFT JOIN jobs_limit AS own ON own.key = wanted.lock
CROSS JOIN LATERAL (SELECT {_SINCE}) AS known (since)
CROSS JOIN LATERAL (
    SELECT count(*) AS number
    FROM jobs_worker AS worker
    CROSS JOIN LATERAL (
        SELECT FROM jobs_job
        WHERE state = 'active' AND worker_id = worker.id AND queue = wanted.queue
          AND started_at >= known.since
        OFFSET 0) AS job
    WHERE worker.settled_at IS NULL) AS counted
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Lane:
    """Where jobs wait: a queue, and the limits of their own, which all jobs of a lane have in common."""

    queue: str
    name: str = ""


class Place(NamedTuple):
    """A lane and a priority of a queue: its order is that of the index."""

    queue: str
    lane: str
    priority: int


class Gap(NamedTuple):
    """What lies in a queue between two levels, both left out."""

    queue: str
    lane: str
    priority: int
    end_lane: str
    end_priority: int


class Level(NamedTuple):
    """Where jobs wait, since when the first of them, and the columns that the jobs of a lane have in common."""

    place: Place
    first_at: datetime
    own: dict[str, Any]


class Named(NamedTuple):
    """A waiting job of which the leader was told."""

    job: Position
    level: Level
    task: str


def unknown_levels(gaps: Sequence[Gap], *, limit: int) -> list[Level]:
    """The levels in these gaps in which jobs wait, at most `limit`."""
    columns = [list(column) for column in zip(*gaps, strict=True)] if gaps else [[]] * 5
    names = ("queues", "lanes", "priorities", "end_lanes", "end_priorities")
    rows = rows_of(UNKNOWN_LEVELS, {**dict(zip(names, columns, strict=True)), "limit": limit}) if gaps else []
    return [_level(*row) for row in rows]


def _level(queue: str, lane: str, priority: int, run_at: datetime, *own: Any) -> Level:
    return Level(Place(queue, lane, priority), run_at, {**dict(zip(COLUMNS, own, strict=True)), "lane": lane})


def next_jobs(
    queue: str,
    floors: Mapping[Place, Position],
    *,
    limit: int,
    without: Collection[UUID],
    tasks: Collection[str] | None,
) -> dict[Place, list[Position]]:
    """The next jobs of some levels of a queue, of these tasks, at most `limit` of each; none before the floor of
    their level. `tasks` is None for all."""
    places = list(floors)
    parameters = {
        "queue": queue,
        "lanes": [place.lane for place in places],
        "priorities": [place.priority for place in places],
        "floors": [floor.run_at for floor in floors.values()],
        "floor_ids": [floor.job_id for floor in floors.values()],
        "limit": limit,
        "without": list(without),
        "tasks": None if tasks is None else list(tasks),
    }
    found: dict[Place, list[Position]] = {place: [] for place in places}
    for number, job_id, run_at in rows_of(NEXT, parameters):
        found[places[number - 1]].append(Position(run_at, job_id))
    return found


def named_jobs(job_ids: Collection[UUID]) -> list[Named]:
    """Those of these jobs that wait."""
    rows = rows_of(NAMED, {"job_ids": list(job_ids)}) if job_ids else []
    return [
        Named(Position(run_at, job_id), _level(queue, lane, priority, run_at, *own), task)
        for job_id, queue, lane, priority, run_at, task, *own in rows
    ]


class FreeStarts(NamedTuple):
    """How many starts a rate has left at this moment, and when it has one more; both None where the key has no rate.
    Until when nothing starts under the key; None where nothing keeps it from starting."""

    free: int | None
    more_at: datetime | None
    halted_until: datetime | None


def free_starts(rates: Collection[tuple[str, Rate | None]], *, most: int) -> dict[tuple[str, Rate | None], FreeStarts]:
    """What is left of each of these keys' rates, as far as so many starts."""
    parameters = {
        "most": most,
        "keys": [key for key, _ in rates],
        "counts": [rate and rate.count for _, rate in rates],
        "periods": [rate and rate.period for _, rate in rates],
    }
    rows = rows_of(FREE_STARTS, parameters) if rates else []
    return {rate: FreeStarts(*row) for rate, row in zip(rates, rows, strict=True)}


def still_waiting(job_ids: Collection[UUID]) -> tuple[set[UUID], datetime]:
    """Those of these jobs that wait, and the moment at which they did, by the database's clock."""
    [(waiting, now)] = rows_of(STILL_WAITING, {"job_ids": list(job_ids)})
    return set(waiting), now


def running(*, keys: Collection[str], queues: Collection[str]) -> Counter[str]:
    """How many jobs run with each of these concurrency keys, and in each of these queues; by the keys of `Limit`."""
    parameters = {
        "keys": list(keys),
        "locks": [concurrency_key(key) for key in keys],
        "queues": list(queues),
        "queue_locks": [queue_key(queue) for queue in queues],
    }
    return Counter(dict(rows_of(RUNNING, parameters)) if keys or queues else {})
