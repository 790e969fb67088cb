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
from django.db.models.functions import Now

from jobs.limits import COLUMNS, Limits, in_force, is_granted
from jobs.models import Job, QueueControl
from jobs.payloads import as_json, from_json
from jobs.queues import PACED_QUEUES
from jobs.statements import rows_of

# What a claim writes, but for its moment.
_TAKEN = """state = 'active', worker_id = %(worker_id)s,
    progress_percent = NULL, progress_message = '', custom_state = '', custom_meta = NULL"""
_WORKER_LIVES = "EXISTS (SELECT FROM jobs_worker AS worker WHERE worker.id = %(worker_id)s AND worker.dead_at IS NULL)"
# What every claim asks, whether its job has limits or not.
_MAY_START = f"""(%(tasks)s::text[] IS NULL OR job.task = ANY (%(tasks)s::text[]))
  AND (job.expires_at IS NULL OR job.expires_at > statement_timestamp())
  AND {_WORKER_LIVES}"""
_CLAIMED = """job.id, job.claim_token, job.task, job.queue, job.priority, job.run_at, job.started_at,
          job.args::text, job.kwargs::text, job.follow_ups::text, job.headers::text, job.attempt, job.max_attempts,
          job.time_limit_seconds, job.soft_time_limit_seconds, job.ignore_result, job.correlation_id, job.root_id,
          job.parent_id, job.flow_id, job.group_id"""

# One moment for all of a claim: not before the jobs were written that it sees, as that of the statement may be.
_TAKEN_NEXT = f"""
, clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM (SELECT count(*) FROM next) AS counted
)
UPDATE jobs_job AS job
SET {_TAKEN}, claim_token = %(token)s || '.' || job.id, started_at = clock.now
FROM next CROSS JOIN clock WHERE job.id = next.id
RETURNING {_CLAIMED}
"""  # noqa: S608
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
    WHERE state = 'waiting' AND queue = %(queue)s AND lane = '' AND task = ANY (%(tasks)s::text[])
      AND (expires_at IS NULL OR expires_at > statement_timestamp())
      AND {_QUEUE_MAY_START}
    ORDER BY priority, run_at, id LIMIT %(count)s FOR UPDATE SKIP LOCKED
) {_TAKEN_NEXT}
"""  # noqa: S608

# The same, of one priority: the first in which one waits that was due after its floor.
# Locks, index and two at once: as above, but that nothing below the floors is walked over.
CLAIM_ABOVE = f"""
WITH level AS (
    SELECT level.priority, head.run_at
    FROM unnest(%(priorities)s::smallint[], %(floors)s::timestamptz[]) AS level (priority, floor)
    CROSS JOIN LATERAL (
        SELECT run_at FROM jobs_job
        WHERE state = 'waiting' AND queue = %(queue)s AND lane = '' AND priority = level.priority
          AND run_at >= level.floor AND task = ANY (%(tasks)s::text[])
          AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY run_at, id LIMIT 1) AS head
    WHERE {_QUEUE_MAY_START}
    ORDER BY level.priority LIMIT 1
), next AS (
    SELECT id FROM jobs_job
    WHERE state = 'waiting' AND queue = %(queue)s AND lane = ''
      AND priority = (SELECT priority FROM level) AND run_at >= (SELECT run_at FROM level)
      AND task = ANY (%(tasks)s::text[])
      AND (expires_at IS NULL OR expires_at > statement_timestamp())
    ORDER BY run_at, id LIMIT %(count)s FOR UPDATE SKIP LOCKED
) {_TAKEN_NEXT}
"""  # noqa: S608

# The job of a queue that has waited longest, and longer than a while, whatever its priority. Else as CLAIM_ABOVE.
CLAIM_OLDEST = CLAIM_ABOVE.replace(
    "run_at >= level.floor", "run_at BETWEEN level.floor AND statement_timestamp() - %(age)s"
).replace("ORDER BY level.priority LIMIT 1", "ORDER BY head.run_at LIMIT 1")

# Locks: nothing. Index: job_waiting, one entry per queue.
# Two at once: they read.
QUEUES_WITH_WAITING = """
SELECT queue FROM unnest(%(queues)s::text[]) AS queue
WHERE EXISTS (SELECT FROM jobs_job WHERE state = 'waiting' AND jobs_job.queue = queue.queue AND lane = '')
"""

# The first waiting job of a priority that was due within a span of time.
# Locks: nothing. Index: job_waiting, the entries of that span.
# Two at once: they read.
FIRST_DUE = """
SELECT run_at FROM jobs_job
WHERE state = 'waiting' AND queue = %(queue)s AND lane = '' AND priority = %(priority)s
  AND run_at >= %(begin)s AND run_at < %(end)s AND task = ANY (%(tasks)s::text[])
  AND (expires_at IS NULL OR expires_at > statement_timestamp())
ORDER BY run_at, id LIMIT 1
"""

# Locks: nothing. Index: job_waiting, a few entries of each priority of each queue.
# Two at once: they read.
FIRST_TASKS = """
SELECT DISTINCT wanted.queue, job.task
FROM unnest(%(queues)s::text[]) AS wanted (queue)
CROSS JOIN generate_series(0, 9) AS level (priority)
CROSS JOIN LATERAL (
    SELECT task FROM jobs_job
    WHERE state = 'waiting' AND queue = wanted.queue AND lane = '' AND priority = level.priority
    ORDER BY run_at, id LIMIT %(limit)s) AS job
"""

# Locks: nothing. Index: job_active.
# Two at once: they read, and what one worker claimed only it asks for.
CLAIMED_BEFORE = f"""
SELECT {_CLAIMED} FROM jobs_job AS job
WHERE state = 'active' AND worker_id = %(worker_id)s AND claim_token LIKE %(token)s || '.%%'
"""  # noqa: S608

# Locks: the job's row, for the length of this statement. Index: primary key.
# Two at once: the second waits for the first, sees that the state is no longer 'waiting', and gets no row. A claim
# whose answer was lost is sent again with repeated = true and finds itself by its token, as one of CLAIM_LIMITED does.
# A token never claims twice in a row, so a grant that is taken twice gives one run. A worker that was given up (its
# row is dead) claims nothing. Jobs with limits are left to CLAIM_LIMITED.
CLAIM = f"""
UPDATE jobs_job AS job
SET {_TAKEN}, claim_token = wanted.token,
    started_at = CASE job.state WHEN 'active' THEN job.started_at ELSE statement_timestamp() END
FROM unnest(%(job_ids)s::uuid[], %(tokens)s::text[]) AS wanted (job_id, token)
WHERE job.id = wanted.job_id
  AND (CASE job.state WHEN 'active' THEN %(repeated)s AND job.claim_token = wanted.token ELSE FALSE END
       OR CASE job.state WHEN 'waiting' THEN job.claim_token <> wanted.token
                                             AND job.lane = '' AND job.queue <> ALL (%(paced_queues)s::text[])
                         ELSE FALSE END
          AND {_MAY_START}
          AND NOT EXISTS (
              SELECT FROM jobs_queuecontrol AS control
              WHERE control.name = job.queue
                AND (control.paused_at IS NOT NULL OR control.rate_limited_until > statement_timestamp()
                     OR num_nonnulls(control.rate_limit, control.concurrency_limit, control.quiet_hours) > 0)))
RETURNING {_CLAIMED}
"""  # noqa: S608

# Locks: the job's row, then the rows of its limits in the order of their keys, until its end. Index: primary keys;
# job_active_of_key and job_active for those that run.
# Two at once: the second waits at the first row that both need. So it decides by what the first has left, and by a
# clock that is read after the wait: the starts under a key are in the order of their times. Whoever holds a limit waits
# for no job any more, so none of them waits in a circle. The row is locked, and seldom written: each version of it
# would be in the way of the claims after it as long as somebody holds an old snapshot. All is one message of the simple
# protocol, which PostgreSQL runs as one transaction: a worker that is frozen or dies in the middle of it keeps nobody
# waiting.
CLAIM_LIMITED = f"""
SELECT FROM jobs_job WHERE id = %(job_id)s FOR UPDATE;

INSERT INTO jobs_limit AS own (key, used_at)
SELECT key, statement_timestamp() FROM unnest(%(locks)s::text[]) AS key ORDER BY key
ON CONFLICT (key) DO UPDATE SET used_at = EXCLUDED.used_at WHERE own.used_at < EXCLUDED.used_at - INTERVAL '1 hour';

WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), rate AS MATERIALIZED (
    SELECT * FROM unnest(%(rate_keys)s::text[], %(rate_counts)s::int[], %(rate_periods)s::interval[])
        AS rate (key, count, period)
), claimed AS (
    UPDATE jobs_job AS job
    SET {_TAKEN}, claim_token = %(token)s, started_at = clock.now
    FROM clock
    WHERE job.id = %(job_id)s
      AND CASE job.state WHEN 'waiting' THEN job.claim_token <> %(token)s ELSE FALSE END
      AND job.queue = %(queue)s AND job.lane = %(lane)s
      AND (%(loud_until)s::timestamptz IS NULL OR clock.now < %(loud_until)s)
      AND NOT EXISTS (
          SELECT FROM rate JOIN jobs_limit AS own ON own.key = rate.key
          WHERE own.rate_limited_until > clock.now
             OR own.starts[cardinality(own.starts) + 1 - rate.count] > clock.now - rate.period)
      AND (%(queue_concurrency)s::int IS NULL OR %(queue_concurrency)s > (
          SELECT count(*) FROM jobs_job AS other WHERE other.state = 'active' AND other.queue = %(queue)s))
      AND (%(concurrency)s::int IS NULL OR %(concurrency)s > (
          SELECT count(*) FROM jobs_job AS other
          WHERE other.state = 'active' AND other.concurrency_key = %(concurrency_key)s))
      AND {_MAY_START}
      AND NOT EXISTS (
          SELECT FROM jobs_queuecontrol AS control
          WHERE control.name = %(queue)s
            AND (control.paused_at IS NOT NULL OR control.rate_limited_until > clock.now))
    RETURNING {_CLAIMED}
), counted AS (
    UPDATE jobs_limit AS own
    SET kept_count = GREATEST(own.kept_count, rate.count),
        starts = (own.starts || clock.now)[GREATEST(1, cardinality(own.starts) + 2
                                                       - GREATEST(own.kept_count, rate.count)):]
    FROM rate, clock
    WHERE own.key = rate.key AND rate.count IS NOT NULL AND EXISTS (SELECT FROM claimed)
)
SELECT * FROM claimed
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

# Locks: the rows it moves; rows that others hold are left for the next look. Index: job_delayed.
# Two at once: SKIP LOCKED gives each row to one of them, and the state is checked again when the row is updated.
PROMOTE_DUE = """
WITH due AS (
    SELECT id FROM jobs_job
    WHERE state = 'delayed' AND NOT is_held AND run_at <= statement_timestamp()
    ORDER BY run_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE jobs_job AS job SET state = 'waiting'
FROM due WHERE job.id = due.id
RETURNING job.id, job.queue, job.priority, job.lane
"""

# Locks: nothing. Index: the first entries of job_delayed and job_expiring.
# Two at once: they read.
NEXT_DUE = """
SELECT EXTRACT(EPOCH FROM LEAST(
    (SELECT run_at FROM jobs_job WHERE state = 'delayed' AND NOT is_held ORDER BY run_at LIMIT 1),
    (SELECT expires_at FROM jobs_job
     WHERE state IN ('waiting', 'delayed') AND expires_at IS NOT NULL ORDER BY expires_at LIMIT 1)
) - clock_timestamp())::float8
"""

# Locks: the rows it moves, skipping those that others hold. Index: job_expiring.
# Two at once: as above.
CANCEL_EXPIRED = """
WITH expired AS (
    SELECT id FROM jobs_job
    WHERE state IN ('waiting', 'delayed') AND expires_at <= statement_timestamp()
    ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE jobs_job AS job
SET state = 'cancelled', finished_at = statement_timestamp(), error = 'It expired before a worker could start it.'
FROM expired WHERE job.id = expired.id
RETURNING job.id
"""

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

    @cached_property
    def args(self) -> list[Any]:
        """The arguments by position."""
        return from_json(self.args_json)

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        """The arguments by name."""
        return from_json(self.kwargs_json)

    @cached_property
    def follow_ups(self) -> dict[str, Any]:
        """Celery's links and the rest of a chain."""
        return from_json(self.follow_ups_json)

    @cached_property
    def headers(self) -> dict[str, Any]:
        """The caller's own message headers."""
        return from_json(self.headers_json)


_PRIORITIES = list(range(10))
_NO_FLOOR = datetime(1970, 1, 1, tzinfo=UTC)


def claim_next(
    queue: str,
    *,
    count: int,
    token: str,
    tasks: Sequence[str],
    worker_id: UUID,
    floors: Mapping[int, datetime] | None = None,
) -> list[Claim]:
    """Claims the most urgent waiting jobs of a queue that have no limits, at most `count`, for a worker that knows
    these tasks. Durably committed; call it outside of any transaction.

    The most urgent first, then those that were due first. `token` is good for one call. Of a priority that has a floor,
    none are looked at that were due before it. Nothing is claimed from a queue that is paused or has limits.
    """
    parameters: dict[str, Any] = {
        "queue": queue,
        "count": count,
        "token": token,
        "tasks": tasks,
        "worker_id": worker_id,
    }
    if queue in PACED_QUEUES:
        return []
    if floors:
        return _claimed_next(CLAIM_ABOVE, parameters, floors)
    return _claimed_next(CLAIM_NEXT, parameters, {})


def claim_oldest(
    queue: str,
    *,
    age: timedelta,
    token: str,
    tasks: Sequence[str],
    worker_id: UUID,
    floors: Mapping[int, datetime] | None = None,
) -> list[Claim]:
    """As `claim_next`: the one that has waited longest, whatever its priority, if that is longer than `age`."""
    if queue in PACED_QUEUES:
        return []
    parameters: dict[str, Any] = {
        "queue": queue,
        "count": 1,
        "token": token,
        "tasks": tasks,
        "worker_id": worker_id,
        "age": age,
    }
    return _claimed_next(CLAIM_OLDEST, parameters, floors or {})


def _claimed_next(statement: str, parameters: dict[str, Any], floors: Mapping[int, datetime]) -> list[Claim]:
    parameters["priorities"] = _PRIORITIES
    parameters["floors"] = [floors.get(priority, _NO_FLOOR) for priority in _PRIORITIES]
    return _in_order(rows_of(statement, parameters))


def _in_order(rows: Iterable[Any]) -> list[Claim]:
    return sorted((Claim(*row) for row in rows), key=lambda one: (one.priority, one.run_at, one.job_id))


def queues_with_waiting(queues: Sequence[str]) -> list[str]:
    """Those of these queues in which jobs without limits wait."""
    names = [name for name in queues if name not in PACED_QUEUES]
    return [row[0] for row in rows_of(QUEUES_WITH_WAITING, {"queues": names})] if names else []


def first_due(queue: str, *, priority: int, begin: datetime, end: datetime, tasks: Sequence[str]) -> datetime | None:
    """When the first of the waiting jobs without limits was due that were due from `begin` on, and before `end`."""
    found = rows_of(FIRST_DUE, {"queue": queue, "priority": priority, "begin": begin, "end": end, "tasks": tasks})
    return found[0][0] if found else None


def first_tasks(queues: Sequence[str], *, limit: int = 20) -> list[tuple[str, str]]:
    """Each queue and the tasks of its jobs that wait at the head of one of its priorities."""
    return [(queue, task) for queue, task in rows_of(FIRST_TASKS, {"queues": list(queues), "limit": limit})]


def claimed_before(*, token: str, worker_id: UUID) -> list[Claim]:
    """What a call of `claim_next` or `claim_oldest` has claimed whose answer was lost."""
    return _in_order(rows_of(CLAIMED_BEFORE, {"token": token, "worker_id": worker_id}))


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
    left = _waiting(wanted.keys() - {row[0] for row in rows})
    controls = QueueControl.objects.in_bulk({values["queue"] for values in left}) if left else {}
    free = []
    for values in left:
        control, token = controls.get(values["queue"]), wanted[values["id"]]
        if values["lane"] or is_granted(values["queue"], control):
            rows += _claim_limited(values, control, {**parameters, "job_id": values["id"], "token": token})
        else:
            free.append(values["id"])
    if free:
        rows += rows_of(CLAIM, {**parameters, "job_ids": free, "tokens": [wanted[job_id] for job_id in free]})
    return [Claim(*row) for row in rows]


def _waiting(job_ids: Collection[UUID]) -> list[dict[str, Any]]:
    """Those of the jobs that wait, whether they have limits or not. By their ids alone, see the head of this module."""
    rows = (
        Job.objects.filter(pk__in=job_ids).annotate(now=Now()).values("id", "state", "queue", "lane", "now", *COLUMNS)
    )
    return [row for row in rows if row["state"] == "waiting"]


def _claim_limited(values: dict[str, Any], control: QueueControl | None, parameters: dict[str, Any]) -> list[Any]:
    """Claims one job, if its limits let it start."""
    limits = Limits.of(in_force(values["queue"], control), values)
    if limits.quiet_until(values["now"]) is not None:
        return []
    rates = limits.rates.values()
    parameters |= {
        "queue": values["queue"],
        "lane": values["lane"],
        "locks": limits.locks,
        "rate_keys": list(limits.rates),
        "rate_counts": [rate and rate.count for rate in rates],
        "rate_periods": [rate and rate.period for rate in rates],
        "queue_concurrency": limits.queue_concurrency,
        "concurrency_key": limits.concurrency_key,
        "concurrency": limits.concurrency,
        "loud_until": limits.loud_until(values["now"]),
    }
    with connections[router.db_for_write(Job)].cursor() as cursor:
        cursor.execute(CLAIM_LIMITED, parameters)
        while cursor.nextset():
            # The last answer is that of the claim.
            pass
        return cursor.fetchall()


def complete(ends: dict[UUID, tuple[str, Any]]) -> set[UUID]:
    """Completes jobs whose bodies returned: `ends` maps job ids to claim tokens and results, None for no result.

    Returns those that were still their run's own and have no successor; the others are as they were.
    """
    parameters: dict[str, Any] = {
        "job_ids": list(ends),
        "tokens": [token for token, _ in ends.values()],
        "results": [None if result is None else as_json(result) for _, result in ends.values()],
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


def promote_due(*, limit: int) -> list[Due]:
    """Moves delayed jobs whose time has come to waiting; returns them."""
    return [Due(*row) for row in rows_of(PROMOTE_DUE, {"limit": limit})]


def seconds_to_next_due() -> float | None:
    """How long until the next delayed job is due or a job expires, by the database's clock; None where none will."""
    seconds: float | None = rows_of(NEXT_DUE, {})[0][0]
    return seconds


def cancel_expired(*, limit: int) -> list[UUID]:
    """Cancels jobs that expired before they were started; returns their ids."""
    return [row[0] for row in rows_of(CANCEL_EXPIRED, {"limit": limit})]
