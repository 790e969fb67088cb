"""Claims and ends of runs, and the dispatcher's bulk moves, as raw SQL.

Above each statement stands what it locks, which index serves it, and why two of them at once are safe. States are
literals, so that the planner may use the partial indexes. Where the primary key must serve, they stand in a CASE, which
no partial index can answer: with statistics from before a burst, the planner takes the index of all waiting jobs for
the shorter way, and each claim would read the whole backlog.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections, router

from jobs.below import Position
from jobs.bounds import LEAST_URGENT
from jobs.limited_claims import Candidate, claim_limited, sorted_out
from jobs.models import Job
from jobs.payloads import as_json, readable, readable_mapping
from jobs.queues import PACED_QUEUES
from jobs.statements import CLAIMED, rows_of

# What a claim writes, but for its moment.
_TAKEN = """state = 'active', worker_id = %(worker_id)s,
    progress_percent = NULL, progress_message = '', custom_state = '', custom_meta = NULL"""
_WORKER_LIVES = "EXISTS (SELECT FROM jobs_worker AS worker WHERE worker.id = %(worker_id)s AND worker.dead_at IS NULL)"

# One moment for all of a claim: not before the jobs were written that it sees, as that of the statement may be.
_CLOCK = """, clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM (SELECT count(*) FROM next) AS counted
)"""
_TAKE_NEXT = f"""UPDATE jobs_job AS job
SET {_TAKEN}, claim_token = %(token)s || '.' || job.id, started_at = clock.now
FROM next CROSS JOIN clock WHERE job.id = next.id
RETURNING {CLAIMED}"""  # noqa: S608
_QUEUE_MAY_START = f"""{_WORKER_LIVES}
      AND NOT EXISTS (
          SELECT FROM jobs_queuecontrol AS control
          WHERE control.name = %(queue)s
            AND (control.paused_at IS NOT NULL OR control.rate_limited_until > statement_timestamp()
                 OR num_nonnulls(control.rate_limit, control.concurrency_limit, control.quiet_hours) > 0))"""

# The next jobs of a queue that have no limits, the most urgent first.
# Locks: the jobs' rows, for the length of this statement; those that others hold are passed over.
# Index: job_waiting, from the head. It walks over what died there since the oldest snapshot that somebody holds.
# Two at once: SKIP LOCKED gives each job to one of them. Where all that the second finds are being claimed by the
# first, it gets none although more may wait: its caller asks again. Each job's token is its own, made of the caller's
# and its id, so a claim whose answer was lost is found again by CLAIMED_BEFORE.
CLAIM_NEXT = f"""
WITH next AS (
    SELECT id FROM jobs_job
    WHERE state = 'waiting' AND queue = %(queue)s AND lane = '' AND priority <= %(least_urgent)s
      AND task = ANY (%(tasks)s::text[])
      AND (expires_at IS NULL OR expires_at > statement_timestamp())
      AND {_QUEUE_MAY_START}
    ORDER BY priority, run_at, id LIMIT %(count)s FOR UPDATE SKIP LOCKED
) {_CLOCK}
{_TAKE_NEXT}
"""  # noqa: S608

# The same, above floors: first of each priority the first job that waits there, whoever holds it, and from there on
# those that nobody holds, priority by priority, until there are enough.
# Locks, index and two at once: as above, but that nothing below the floors is walked over.
CLAIM_ABOVE = f"""
WITH head AS MATERIALIZED (
    SELECT level.priority, first.run_at, first.id
    FROM unnest(%(priorities)s::smallint[], %(floors)s::timestamptz[], %(floor_ids)s::uuid[])
        AS level (priority, floor, floor_id)
    CROSS JOIN LATERAL (
        SELECT run_at, id FROM jobs_job
        WHERE state = 'waiting' AND queue = %(queue)s AND lane = '' AND priority = level.priority
          AND (run_at, id) >= (level.floor, level.floor_id) AND task = ANY (%(tasks)s::text[])
          AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY run_at, id LIMIT 1) AS first
), next AS (
    SELECT job.id
    FROM (SELECT priority, run_at, id FROM head WHERE {_QUEUE_MAY_START} ORDER BY priority) AS level
    CROSS JOIN LATERAL (
        SELECT id FROM jobs_job
        WHERE state = 'waiting' AND queue = %(queue)s AND lane = '' AND priority = level.priority
          AND (run_at, id) >= (level.run_at, level.id) AND task = ANY (%(tasks)s::text[])
          AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY run_at, id LIMIT %(count)s FOR UPDATE SKIP LOCKED) AS job
    LIMIT %(count)s
){_CLOCK}, taken AS (
{_TAKE_NEXT})
SELECT heads.priorities, heads.moments, heads.ids, taken.*
FROM (SELECT array_agg(priority) AS priorities, array_agg(run_at) AS moments, array_agg(id) AS ids FROM head) AS heads
LEFT JOIN taken ON TRUE
"""  # noqa: S608

# The jobs of a queue that have waited longest, and longer than a while: first those of the priority that has the oldest
# of all. Else as CLAIM_ABOVE.
CLAIM_OLDEST = CLAIM_ABOVE.replace(
    "AND (run_at, id) >=", "AND run_at <= statement_timestamp() - %(age)s AND (run_at, id) >="
).replace("ORDER BY priority) AS level", "ORDER BY run_at) AS level")

# Locks: nothing. Index: job_waiting, one entry per queue.
# Two at once: they read.
QUEUES_WITH_WAITING = """
SELECT queue FROM unnest(%(queues)s::text[]) AS queue
WHERE EXISTS (SELECT FROM jobs_job WHERE state = 'waiting' AND jobs_job.queue = queue.queue AND lane = '')
"""

# The first waiting job of a lane and priority within a span of its order.
# Locks: nothing. Index: job_waiting, the entries of that span.
# Two at once: they read.
FIRST_DUE = """
SELECT run_at, id FROM jobs_job
WHERE state = 'waiting' AND queue = %(queue)s AND lane = %(lane)s AND priority = %(priority)s
  AND (run_at, id) >= (%(begin)s, %(begin_id)s) AND (run_at, id) < (%(end)s, %(end_id)s)
  AND (%(tasks)s::text[] IS NULL OR task = ANY (%(tasks)s::text[]))
  AND (expires_at IS NULL OR expires_at > statement_timestamp())
ORDER BY run_at, id LIMIT 1
"""

# The same, of those that nobody holds.
# Locks: that job's row, for the length of this statement. Index: as above.
# Two at once: the second passes over what the first has locked, and may find none; both ask again.
FIRST_FREE = f"{FIRST_DUE} FOR UPDATE SKIP LOCKED"

# Locks: nothing. Index: job_active.
# Two at once: they read, and what one worker claimed only it asks for.
CLAIMED_BEFORE = f"""
SELECT {CLAIMED} FROM jobs_job AS job
WHERE state = 'active' AND worker_id = %(worker_id)s AND claim_token LIKE %(token)s || '.%%'
"""  # noqa: S608

# Locks: nothing. Index: primary key.
# Two at once: as above.
CLAIMED_AS = f"""
SELECT {CLAIMED}
FROM unnest(%(job_ids)s::uuid[], %(tokens)s::text[]) AS wanted (job_id, token) JOIN jobs_job AS job ON job.id = job_id
WHERE CASE job.state WHEN 'active' THEN job.claim_token = wanted.token ELSE FALSE END
"""  # noqa: S608

# Locks: the jobs' rows, for the length of this statement; those that others hold are passed over. Index: primary key.
# Two at once: SKIP LOCKED gives the job to one of them, and one that comes later sees that the state is no longer
# 'waiting'. A claim whose answer was lost is sent again with repeated = true and finds itself by its token, as one of
# CLAIM_LIMITED does.
# A token never claims twice in a row, so a grant that is taken twice gives one run. A worker that was given up (its
# row is dead) claims nothing. Jobs with limits are left to CLAIM_LIMITED.
CLAIM = f"""
WITH free AS (
    SELECT job.id, wanted.token
    FROM unnest(%(job_ids)s::uuid[], %(tokens)s::text[]) AS wanted (job_id, token)
    JOIN jobs_job AS job ON job.id = wanted.job_id
    WHERE (CASE job.state WHEN 'active' THEN %(repeated)s AND job.claim_token = wanted.token ELSE FALSE END
       OR CASE job.state WHEN 'waiting' THEN job.claim_token <> wanted.token
                                             AND job.lane = '' AND job.queue <> ALL (%(paced_queues)s::text[])
                         ELSE FALSE END
          AND (%(tasks)s::text[] IS NULL OR job.task = ANY (%(tasks)s::text[]))
          AND (job.expires_at IS NULL OR job.expires_at > statement_timestamp())
          AND {_WORKER_LIVES}
          AND NOT EXISTS (
              SELECT FROM jobs_queuecontrol AS control
              WHERE control.name = job.queue
                AND (control.paused_at IS NOT NULL OR control.rate_limited_until > statement_timestamp()
                     OR num_nonnulls(control.rate_limit, control.concurrency_limit, control.quiet_hours) > 0)))
    FOR UPDATE OF job SKIP LOCKED
)
UPDATE jobs_job AS job
SET {_TAKEN}, claim_token = free.token,
    started_at = CASE job.state WHEN 'active' THEN job.started_at ELSE statement_timestamp() END
FROM free WHERE job.id = free.id
RETURNING {CLAIMED}
"""  # noqa: S608

# Locks: the jobs' rows, for the length of this statement. Index: primary key.
# Two at once: the second finds the state changed. The token fences: a run that lost its job finds no row. A job whose
# end brings another one about (a successor) is left to `jobs.settle`, which needs a transaction for that.
COMPLETE = """
UPDATE jobs_job AS job
SET state = 'completed', finished_at = statement_timestamp(), result = run.result::jsonb, progress_percent = 100,
    error = '', exception = NULL, traceback = ''
FROM unnest(%(job_ids)s::uuid[], %(tokens)s::text[], %(results)s::text[]) AS run (job_id, token, result)
WHERE job.id = run.job_id
  AND CASE job.state WHEN 'active' THEN job.claim_token = run.token ELSE FALSE END
  AND job.successor IS NULL
RETURNING job.id
"""

# Locks: the rows that it moves; it skips rows that others hold. Index: job_delayed, from `since` on.
# Two at once: SKIP LOCKED gives each row to one of them, and the state is checked again when the row is updated.
PROMOTE_DUE = """
WITH due AS (
    SELECT id FROM jobs_job
    WHERE state = 'delayed' AND NOT is_held AND run_at BETWEEN %(since)s AND statement_timestamp()
      AND id <> ALL (%(left_out)s::uuid[])
    ORDER BY run_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE jobs_job AS job SET state = 'waiting'
FROM due WHERE job.id = due.id
RETURNING job.id, job.queue, job.priority, job.lane
"""

# The earliest of both kinds within some seconds: what lies beyond is asked for later. Beside an old snapshot, the index
# entries of jobs that have left these states stay, on both sides of that time.
# Locks: nothing. Index: job_delayed and job_expiring, from a moment each to the next seconds.
# Two at once: they read.
NEXT_DUE = """
SELECT
    (SELECT run_at FROM jobs_job
     WHERE state = 'delayed' AND NOT is_held AND run_at BETWEEN %(due_since)s AND horizon.at
     ORDER BY run_at LIMIT 1),
    (SELECT expires_at FROM jobs_job
     WHERE state IN ('waiting', 'delayed') AND expires_at BETWEEN %(expired_since)s AND horizon.at
     ORDER BY expires_at LIMIT 1),
    clock_timestamp()
FROM (SELECT statement_timestamp() + make_interval(secs => %(seconds)s) AS at) AS horizon
"""

# The first delayed job, and the first job that expires, within a span of time.
# Locks: nothing. Index: job_delayed or job_expiring, the entries of that span.
# Two at once: they read.
FIRST_DELAYED = """
SELECT run_at FROM jobs_job
WHERE state = 'delayed' AND NOT is_held AND run_at >= %(begin)s AND run_at < %(end)s ORDER BY run_at LIMIT 1
"""
FIRST_EXPIRING = """
SELECT expires_at FROM jobs_job
WHERE state IN ('waiting', 'delayed') AND expires_at >= %(begin)s AND expires_at < %(end)s
ORDER BY expires_at LIMIT 1
"""

EXPIRED = "It expired before a worker could start it."

# Locks: the rows that it cancels; it skips rows that others hold. Index: job_expiring, from `since` on.
# Two at once: as above.
CANCEL_EXPIRED = f"""
WITH expired AS (
    SELECT id FROM jobs_job
    WHERE state IN ('waiting', 'delayed') AND expires_at BETWEEN %(since)s AND statement_timestamp()
      AND id <> ALL (%(left_out)s::uuid[])
    ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE jobs_job AS job
SET state = 'cancelled', finished_at = statement_timestamp(), error = '{EXPIRED}'
FROM expired WHERE job.id = expired.id
RETURNING job.id
"""  # noqa: S608

# Locks: nothing but the new rows, and waits for whoever is inserting one with the same dedup key.
# Index: primary key, job_one_live_per_dedup_key.
# Two at once: one of two jobs with a key is inserted. Both insert in the order of their keys: no deadlock.
INSERT_MANY = """
INSERT INTO jobs_job (id, args, kwargs, dedup_key, flow_path, rate_key, concurrency_key, lane, {columns})
SELECT item.id, item.args::jsonb, item.kwargs::jsonb, item.dedup_key, item.flow_path::int[],
    item.rate_key, item.concurrency_key, item.lane, {values}
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
    WITH ORDINALITY AS item (id, args, kwargs, dedup_key, flow_path, rate_key, concurrency_key, lane, place)
ORDER BY item.place
ON CONFLICT DO NOTHING
RETURNING id
"""

NOW = "SELECT statement_timestamp()"


@dataclass(frozen=True)
class Claim:
    """A run's right to its job, with what the job says: valid until the job is settled or taken away.

    It travels from the worker's main process to the pool process that runs it, and payloads travel as they are kept.
    """

    job_id: UUID
    token: str
    task: str
    queue: str
    priority: int
    run_at: datetime
    started_at: datetime
    args_json: str
    kwargs_json: str
    follow_ups_json: str
    headers_json: str
    attempt: int
    max_attempts: int | None
    time_limit_seconds: float | None
    soft_time_limit_seconds: float | None
    ignore_result: bool
    correlation_id: str
    root_id: UUID | None
    parent_id: UUID | None
    flow_id: UUID | None
    group_id: str
    created_at: datetime
    redelivered: bool

    @property
    def eta(self) -> str | None:
        """When it was due, as Celery writes it, where that was later than its call."""
        return self.run_at.isoformat() if self.run_at > self.created_at else None

    @cached_property
    def args(self) -> list[Any]:
        """The arguments by position."""
        return readable(self.args_json)

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        """The arguments by name."""
        return readable(self.kwargs_json)

    @cached_property
    def follow_ups(self) -> dict[str, Any]:
        """Celery's links and the rest of a chain, or of a long one the next step: see `jobs.chains`."""
        return readable_mapping(self.follow_ups_json)

    @cached_property
    def headers(self) -> dict[str, Any]:
        """The caller's own message headers."""
        return readable_mapping(self.headers_json)


class Found(list[Claim]):
    """What a claim has found, in the order in which the jobs are to start."""

    def __init__(self, claims: Iterable[Claim] = (), *, heads: Mapping[int, Position | None] | None = None) -> None:
        super().__init__(claims)
        # Whether nothing else could have been claimed in the queue at that moment.
        self.is_all = False
        # Of a claim above floors, for each priority that it has looked at: the first job that waited above the floor
        # at that moment, claimed by this claim, by another one, or not. None where none waited.
        self.heads = heads or {}


_NO_FLOOR = Position(datetime(1970, 1, 1, tzinfo=UTC))


def claim_next(
    queue: str,
    *,
    count: int,
    token: str,
    tasks: Sequence[str],
    worker_id: UUID,
    least_urgent: int = LEAST_URGENT,
    floors: Mapping[int, Position] | None = None,
) -> Found:
    """Claims the most urgent waiting jobs of a queue that have no limits, at most `count`, for a worker that knows
    these tasks. Durably committed; call it outside of any transaction.

    The most urgent first, then those that were due first; none that is less urgent than `least_urgent`. `token` is good
    for one call. Of a priority that has a floor, none before it are looked at. Nothing is claimed from a
    queue that is paused or has limits.
    """
    parameters: dict[str, Any] = {
        "queue": queue,
        "count": count,
        "token": token,
        "tasks": tasks,
        "worker_id": worker_id,
    }
    if queue in PACED_QUEUES:
        return Found()
    if floors:
        found = _above(CLAIM_ABOVE, floors, parameters, least_urgent=least_urgent)
    else:
        found = Found(_in_order(rows_of(CLAIM_NEXT, {**parameters, "least_urgent": least_urgent})))
    found.is_all = len(found) < count
    return found


def claim_oldest(
    queue: str,
    *,
    age: timedelta,
    count: int = 1,
    token: str,
    tasks: Sequence[str],
    worker_id: UUID,
    floors: Mapping[int, Position] | None = None,
) -> Found:
    """As `claim_next`: those that have waited longest, and longer than `age`; first of the priority that has the
    oldest."""
    if queue in PACED_QUEUES:
        return Found()
    parameters: dict[str, Any] = {
        "queue": queue,
        "count": count,
        "token": token,
        "tasks": tasks,
        "worker_id": worker_id,
        "age": age,
    }
    return _above(CLAIM_OLDEST, floors or {}, parameters)


def _above(
    statement: str,
    floors: Mapping[int, Position],
    parameters: Mapping[str, Any],
    *,
    least_urgent: int = LEAST_URGENT,
) -> Found:
    priorities = list(range(least_urgent + 1))
    floor_of_each = [floors.get(priority, _NO_FLOOR) for priority in priorities]
    places = {
        "floors": [floor.run_at for floor in floor_of_each],
        "floor_ids": [floor.job_id for floor in floor_of_each],
    }
    rows = rows_of(statement, {**parameters, "priorities": priorities, **places})
    occupied, moments, ids, *_ = rows[0]
    firsts = map(Position, moments or (), ids or ())
    heads = {**dict.fromkeys(priorities), **dict(zip(occupied or (), firsts, strict=True))}
    return Found(_in_order(row[3:] for row in rows if row[3] is not None), heads=heads)


def _in_order(rows: Iterable[Any]) -> list[Claim]:
    return sorted((Claim(*row) for row in rows), key=lambda one: (one.priority, one.run_at, one.job_id))


def queues_with_waiting(queues: Sequence[str]) -> list[str]:
    """Those of these queues in which jobs without limits wait."""
    names = [name for name in queues if name not in PACED_QUEUES]
    return [row[0] for row in rows_of(QUEUES_WITH_WAITING, {"queues": names})] if names else []


def first_due(
    queue: str,
    *,
    lane: str = "",
    priority: int,
    begin: Position,
    end: Position,
    tasks: Collection[str] | None,
    is_free: bool = False,
) -> Position | None:
    """The first of the waiting jobs of a lane from `begin` on, and before `end`. `tasks` is None for all. `is_free`
    leaves out those that others hold."""
    found = rows_of(
        FIRST_FREE if is_free else FIRST_DUE,
        {
            "queue": queue,
            "lane": lane,
            "priority": priority,
            "begin": begin.run_at,
            "begin_id": begin.job_id,
            "end": end.run_at,
            "end_id": end.job_id,
            "tasks": None if tasks is None else list(tasks),
        },
    )
    return Position(*found[0]) if found else None


def claimed_before(*, token: str, worker_id: UUID) -> list[Claim]:
    """What a call of `claim_next` or `claim_oldest` has claimed whose answer was lost."""
    return _in_order(rows_of(CLAIMED_BEFORE, {"token": token, "worker_id": worker_id}))


def claimed_as(wanted: Mapping[UUID, str]) -> list[Claim]:
    """Those of these jobs that run under these tokens."""
    return [Claim(*row) for row in rows_of(CLAIMED_AS, {"job_ids": list(wanted), "tokens": list(wanted.values())})]


def claim(
    wanted: dict[UUID, str],
    *,
    worker_id: UUID,
    tasks: Collection[str] | None = None,
    repeated: bool = False,
) -> list[Claim]:
    """Claims these jobs for a worker: maps job ids to claim tokens. Returns those it got, durably committed.

    A job that is not waiting, has expired, stands in a paused queue or was claimed with that token before is left out;
    so is one that a limit keeps from starting (G11), which then is as it was. So is one of another task than `tasks`,
    where these are named. Call it outside of any transaction. `repeated` says that an earlier answer to the same call
    may have been lost.
    """
    parameters: dict[str, Any] = {
        "job_ids": list(wanted),
        "tokens": list(wanted.values()),
        "worker_id": worker_id,
        "tasks": None if tasks is None else list(tasks),
        "repeated": repeated,
        "paced_queues": PACED_QUEUES,
    }
    # What was claimed before is to be found first; else limits are asked first, which most of these jobs have.
    rows = rows_of(CLAIM, parameters) if repeated else []
    found = {row[0] for row in rows}
    limited, free = sorted_out({job_id: token for job_id, token in wanted.items() if job_id not in found})
    if limited:
        rows += claim_limited(limited, worker_id=worker_id, tasks=tasks)
    if free:
        rows += rows_of(CLAIM, {**parameters, "job_ids": free, "tokens": [wanted[job_id] for job_id in free]})
    return [Claim(*row) for row in rows]


def claim_granted(
    candidates: Sequence[Candidate], *, worker_id: UUID, tasks: Collection[str] | None = None
) -> list[Claim]:
    """Claims those of these jobs that their limits let start, as `claim` does."""
    return [Claim(*row) for row in claim_limited(candidates, worker_id=worker_id, tasks=tasks)]


def complete(ends: dict[UUID, tuple[str, Any]]) -> set[UUID]:
    """Completes jobs whose bodies returned: `ends` maps job ids to claim tokens and results, None for no result.

    Returns those that were still their run's own and have no successor; the others are as they were.
    """
    parameters: dict[str, Any] = {
        "job_ids": list(ends),
        "tokens": [token for token, _ in ends.values()],
        "results": [None if result is None else as_json(result, wrapped=2) for _, result in ends.values()],
    }
    with connections[router.db_for_write(Job)].cursor() as cursor:
        cursor.execute(COMPLETE, parameters)
        return {row[0] for row in cursor.fetchall()}


_OWN_COLUMNS = ("id", "args", "kwargs", "dedup_key", "flow_path", "rate_key", "concurrency_key", "lane")


class NewRow(NamedTuple):
    """What one of many jobs has for itself; `args` and `kwargs` are JSON, `flow_path` as PostgreSQL writes an array."""

    job_id: UUID
    args: str
    kwargs: str
    dedup_key: str | None
    flow_path: str | None
    rate_key: str | None
    concurrency_key: str | None
    lane: str


def insert_many(like: Job, rows: Sequence[NewRow]) -> set[UUID]:
    """Inserts jobs that are as `like` in all but these; returns the ids of those whose dedup key was not taken."""
    connection = connections[router.db_for_write(Job)]
    own = {*_OWN_COLUMNS, "created_at"}
    fields = [field for field in Job._meta.concrete_fields if field.column not in own]
    values = [field.get_db_prep_save(getattr(like, field.attname), connection) for field in fields]
    statement = INSERT_MANY.format(
        columns=", ".join(f'"{field.column}"' for field in fields),
        # A cast to varchar(n) would cut off what is too long, instead of refusing it.
        values=", ".join(f"%s::{str(field.db_type(connection)).partition('varchar')[0] or 'text'}" for field in fields),
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [*values, *(list(column) for column in zip(*rows, strict=True))] if rows else None)
        return {row[0] for row in cursor.fetchall()}


def now() -> datetime:
    """The database's time."""
    with connections[router.db_for_write(Job)].cursor() as cursor:
        cursor.execute(NOW)
        moment: datetime = cursor.fetchone()[0]
    return moment


class Due(NamedTuple):
    """A job that was delayed and waits now."""

    job_id: UUID
    queue: str
    priority: int
    lane: str


def promote_due(*, since: datetime, limit: int, left_out: Collection[UUID] = ()) -> list[Due]:
    """Moves delayed jobs whose time has come, at `since` or later, to waiting, but for some; returns them."""
    parameters = {"since": since, "limit": limit, "left_out": list(left_out)}
    return [Due(*row) for row in rows_of(PROMOTE_DUE, parameters)]


class Next(NamedTuple):
    """When the next delayed job is due and the next job expires, and the time now, by the database's clock."""

    due_at: datetime | None
    expires_at: datetime | None
    now: datetime


def next_due(*, due_since: datetime, expired_since: datetime, seconds: float) -> Next:
    """The earliest moments from these on, at most so many seconds ahead."""
    parameters = {"due_since": due_since, "expired_since": expired_since, "seconds": seconds}
    return Next(*rows_of(NEXT_DUE, parameters)[0])


def first_between(statement: str, begin: datetime, end: datetime) -> datetime | None:
    """The answer of FIRST_DELAYED or FIRST_EXPIRING."""
    found = rows_of(statement, {"begin": begin, "end": end})
    return found[0][0] if found else None


def cancel_expired(*, since: datetime, limit: int, left_out: Collection[UUID] = ()) -> list[UUID]:
    """Cancels jobs that expired, at `since` or later, before they were started, but for some; returns their ids."""
    parameters = {"since": since, "limit": limit, "left_out": list(left_out)}
    return [row[0] for row in rows_of(CANCEL_EXPIRED, parameters)]
