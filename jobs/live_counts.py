"""How many jobs of each queue are alive, without ever counting a backlog.

Up to ten thousand of a state are counted at each question. Where there are more, a slow duty of the dispatcher walks
through them, some thousand at each look, and what is told is what it found last, with its age.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db import connections, models, router
from django.db.models import F
from django.db.models.functions import Now

from jobs.fields import MomentField

# Of one state of a queue; of delayed jobs, of all queues together.
COUNTED_AT_ONCE = 10_000
# What the leader has surveyed is told for so long; without a leader, jobs are counted however long it takes.
_SURVEYED_SECONDS = 120.0

# Locks: nothing. Index: job_waiting, of which it reads so many entries of each queue, and the head of each priority;
# job_active and job_delayed. The orders are theirs: without them the planner may read the table instead.
# Two at once: they read.
COUNT_SOME = """
SELECT queue, 'waiting', counted.number, LEAST(counted.oldest, head.oldest)
FROM unnest(%(queues)s::text[]) AS wanted (queue)
CROSS JOIN LATERAL (
    SELECT count(*) AS number, min(run_at) AS oldest FROM (
        SELECT run_at FROM jobs_job WHERE state = 'waiting' AND jobs_job.queue = wanted.queue
        ORDER BY lane, priority, run_at, id LIMIT %(limit)s) AS part
) AS counted
CROSS JOIN LATERAL (
    SELECT min(first.run_at) AS oldest
    FROM generate_series(0, 9) AS level (priority) CROSS JOIN LATERAL (
        SELECT run_at FROM jobs_job
        WHERE state = 'waiting' AND jobs_job.queue = wanted.queue AND lane = '' AND priority = level.priority
        ORDER BY run_at LIMIT 1) AS first
) AS head
WHERE counted.number > 0
UNION ALL
SELECT queue, 'active', count(*), NULL FROM (
    SELECT queue FROM jobs_job WHERE state = 'active' ORDER BY worker_id LIMIT %(limit)s) AS active GROUP BY queue
UNION ALL
SELECT queue, 'delayed', count(*), NULL FROM (
    SELECT queue FROM jobs_job WHERE state = 'delayed' ORDER BY is_held, run_at LIMIT %(limit)s) AS delayed
GROUP BY queue
"""

# Queues in which jobs wait, between the names of those that are known.
# Locks: nothing. Index: job_waiting, one entry per queue, and none of those that are known.
# Two at once: they read.
WAITING_BETWEEN = """
WITH RECURSIVE found AS (
    SELECT first.queue, gap.until
    FROM unnest(%(after)s::text[], %(until)s::text[]) AS gap (after, until)
    CROSS JOIN LATERAL (
        SELECT queue FROM jobs_job WHERE state = 'waiting' AND queue > gap.after AND queue < gap.until
        ORDER BY queue LIMIT 1) AS first
    UNION ALL
    SELECT following.queue, found.until
    FROM found CROSS JOIN LATERAL (
        SELECT queue FROM jobs_job WHERE state = 'waiting' AND queue > found.queue AND queue < found.until
        ORDER BY queue LIMIT 1) AS following
)
SELECT queue FROM found
"""

_END = "\U0010ffff"


class LiveCount(models.Model):
    """What the last walk found where more jobs are alive than are counted at once."""

    queue = models.CharField(max_length=64)
    state = models.CharField(max_length=10)
    count = models.PositiveBigIntegerField()
    oldest_at = MomentField(null=True, blank=True, help_text="The earliest `run_at` of a waiting one")
    tasks = ArrayField(models.CharField(max_length=255), default=list, help_text="Of waiting ones, where surveyed")
    surveyed = models.BooleanField(
        default=False, help_text="Whether all queues were counted together, as questions would walk over dead rows"
    )
    counted_at = MomentField(db_default=Now())

    class Meta:
        app_label = "jobs"
        constraints = [models.UniqueConstraint(fields=["queue", "state"], name="livecount_one_per_queue_and_state")]

    def __str__(self) -> str:
        return f"{self.queue} {self.state}: {self.count}"


@dataclass(frozen=True, slots=True)
class Live:
    """How many jobs of a queue are in a live state; `counted_at` where that is not of this moment. Before the first
    walk, where there are too many to count them, it is the least that there may be."""

    queue: str
    state: str
    count: int
    oldest_at: datetime | None = None
    counted_at: datetime | None = None
    is_least: bool = False


def live(queues: Iterable[str]) -> list[Live]:
    """The live jobs of these queues, and of others that have some. Takes milliseconds, however many there are, and
    however many have died."""
    rows = list(LiveCount.objects.annotate(age=Now() - F("counted_at")))
    if _is_surveyed(rows):
        return [Live(row.queue, row.state, row.count, row.oldest_at, row.counted_at) for row in rows if row.count]
    walked = {(row.queue, row.state): row for row in rows if not row.surveyed}
    found = []
    some = count_some(queues)
    are_cut_off = {state for state in ("active", "delayed") if number_of(some, state) > COUNTED_AT_ONCE}
    too_many_delayed = "delayed" in are_cut_off and any(state == "delayed" for _, state in walked)
    for queue, state, count, oldest_at in some:
        is_cut_off = too_many_delayed if state == "delayed" else count > COUNTED_AT_ONCE and (queue, state) in walked
        if not is_cut_off:
            is_least = state in are_cut_off or (state == "waiting" and count > COUNTED_AT_ONCE)
            found.append(Live(queue, state, count, oldest_at, is_least=is_least))
    told = {(one.queue, one.state) for one in found}
    for key, row in walked.items():
        # What is left of an earlier walk, where all of a state can be counted at once, is old.
        is_cut_off = too_many_delayed if row.state == "delayed" else key not in told
        if is_cut_off:
            found.append(Live(row.queue, row.state, row.count, row.oldest_at, row.counted_at))
    return found


def surveyed_tasks() -> dict[str, set[str]] | None:
    """The tasks of the jobs that wait, by queue, if the leader surveys; else None."""
    rows = list(LiveCount.objects.filter(state="waiting").annotate(age=Now() - F("counted_at")))
    return {row.queue: set(row.tasks) for row in rows} if _is_surveyed(rows) else None


def waiting_queues(known: Iterable[str]) -> list[str]:
    """Every queue in which jobs wait, declared or not, and those that are known."""
    names = sorted({"", *known})
    gaps = {"after": names, "until": [*names[1:], _END]}
    return [*names[1:], *(row[0] for row in _rows(WAITING_BETWEEN, gaps))]


def count_some(queues: Iterable[str]) -> list[Any]:
    """The jobs that are alive, up to one more than are counted at once: of each queue and state, how many, and of those
    that wait since when the earliest does."""
    return _rows(COUNT_SOME, {"queues": waiting_queues(queues), "limit": COUNTED_AT_ONCE + 1})


def number_of(some: Iterable[Any], state: str) -> int:
    """How many jobs in this state were counted, of all queues together."""
    return sum(count for _, one, count, _ in some if one == state)


def _is_surveyed(rows: Iterable[Any]) -> bool:
    return any(row.surveyed and row.age.total_seconds() < _SURVEYED_SECONDS for row in rows)


def _rows(statement: str, parameters: dict[str, Any]) -> list[Any]:
    with connections[router.db_for_write(LiveCount)].cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()
