"""How many jobs of each queue are alive, without ever counting a backlog.

Up to ten thousand of a state are counted at each question. Where there are more, a slow duty of the dispatcher walks
through them, some thousand at each look, and what is told is what it found last, with its age.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db import connections, models, router
from django.db.models import Q
from django.db.models.functions import Now

from jobs.fields import MomentField

# Of one state of a queue; of delayed jobs, of all queues together.
COUNTED_AT_ONCE = 10_000
_WALKED_AT_ONCE = 20_000
# Between two walks through all that there is.
WALK_SECONDS = 30.0

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

# Every queue in which jobs wait, declared or not.
# Locks: nothing. Index: job_waiting, one entry per queue.
# Two at once: they read.
WAITING_QUEUES = """
WITH RECURSIVE found AS (
    (SELECT queue FROM jobs_job WHERE state = 'waiting' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM jobs_job WHERE state = 'waiting' AND queue > found.queue ORDER BY queue LIMIT 1)
    FROM found WHERE found.queue IS NOT NULL
)
SELECT queue FROM found WHERE queue IS NOT NULL
"""

# The next jobs of a queue in the order of their index: how many, the earliest of them, and the last one.
# Locks: nothing. Index: job_waiting, from where the last one stood.
# Two at once: they read.
WALK_WAITING = """
SELECT number, oldest, lane, priority, run_at, id FROM (
    SELECT lane, priority, run_at, id, row_number() OVER place AS number, min(run_at) OVER place AS oldest
    FROM (
        SELECT lane, priority, run_at, id FROM jobs_job
        WHERE state = 'waiting' AND queue = %(queue)s
          AND (lane, priority, run_at, id) > (%(lane)s, %(priority)s, %(run_at)s, %(id)s)
        ORDER BY lane, priority, run_at, id LIMIT %(limit)s) AS part
    WINDOW place AS (ORDER BY lane, priority, run_at, id)) AS numbered
ORDER BY number DESC LIMIT 1
"""

# The next delayed jobs, of all queues, in the order of their index.
# Locks: nothing. Index: job_delayed, from where the last one stood.
# Two at once: they read.
WALK_DELAYED = """
SELECT queue, is_held, run_at, id FROM jobs_job
WHERE state = 'delayed' AND (is_held, run_at, id) > (%(is_held)s, %(run_at)s, %(id)s)
ORDER BY is_held, run_at, id LIMIT %(limit)s
"""

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_NOBODY = UUID(int=0)
_ALL = ""


class LiveCount(models.Model):
    """What the last walk found where more jobs are alive than are counted at once."""

    queue = models.CharField(max_length=64)
    state = models.CharField(max_length=10)
    count = models.PositiveBigIntegerField()
    oldest_at = MomentField(null=True, blank=True, help_text="The earliest `run_at` of a waiting one")
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
    """The live jobs of these queues, and of others that have some. Takes milliseconds, however many there are."""
    walked = {(row.queue, row.state): row for row in LiveCount.objects.all()}
    names = sorted({*queues, *(row[0] for row in _rows(WAITING_QUEUES, {}))})
    found = []
    some = _rows(COUNT_SOME, {"queues": names, "limit": COUNTED_AT_ONCE + 1})
    are_cut_off = {state for state in ("active", "delayed") if _number(some, state) > COUNTED_AT_ONCE}
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


def _number(some: Iterable[Any], state: str) -> int:
    """How many jobs in this state were counted, of all queues together."""
    return sum(count for _, one, count, _ in some if one == state)


class Walk:
    """The slow duty: counts what is too much to be counted at once, a part at each look."""

    def __init__(self) -> None:
        self._not_before = 0.0
        self._queues: list[str] = []
        self._after: tuple[Any, ...] | None = None
        self._counts: Counter[str] = Counter()
        self._oldest_at: datetime | None = None

    def run_once(self) -> None:
        """One part, if a walk is due. Killed in the middle, the next leader begins anew."""
        if not self._queues:
            if time.monotonic() < self._not_before:
                return
            self._begin()
        elif self._queues[0] == _ALL:
            self._walk_delayed()
        else:
            self._walk_waiting(self._queues[0])

    def _begin(self) -> None:
        self._not_before = time.monotonic() + WALK_SECONDS
        names = [row[0] for row in _rows(WAITING_QUEUES, {})]
        some = _rows(COUNT_SOME, {"queues": names, "limit": COUNTED_AT_ONCE + 1})
        many = [(queue, state) for queue, state, count, _ in some if count > COUNTED_AT_ONCE]
        self._queues = [queue for queue, state in many if state == "waiting"]
        waiting = Q(state="waiting", queue__in=self._queues)
        if _number(some, "delayed") > COUNTED_AT_ONCE:
            self._queues.append(_ALL)
            waiting |= Q(state="delayed")
        LiveCount.objects.exclude(waiting).delete()

    def _walk_waiting(self, queue: str) -> None:
        after = dict(
            zip(("lane", "priority", "run_at", "id"), self._after or ("", -1, _LONG_AGO, _NOBODY), strict=True)
        )
        rows = _rows(WALK_WAITING, {"queue": queue, "limit": _WALKED_AT_ONCE, **after})
        number = 0
        for number, oldest_at, *last in rows:
            self._counts[queue] += number
            self._oldest_at = min(self._oldest_at or oldest_at, oldest_at)
            self._after = tuple(last)
        if number < _WALKED_AT_ONCE:
            self._end("waiting")

    def _walk_delayed(self) -> None:
        after = dict(zip(("is_held", "run_at", "id"), self._after or (False, _LONG_AGO, _NOBODY), strict=True))
        rows = _rows(WALK_DELAYED, {"limit": COUNTED_AT_ONCE, **after})
        self._counts.update(row[0] for row in rows)
        if rows:
            self._after = rows[-1][1:]
        if len(rows) < COUNTED_AT_ONCE:
            self._end("delayed")

    def _end(self, state: str) -> None:
        for queue, count in self._counts.items():
            found = {"count": count, "oldest_at": self._oldest_at, "counted_at": Now()}
            LiveCount.objects.update_or_create(queue=queue, state=state, defaults=found)
        if state == "delayed":
            LiveCount.objects.filter(state=state).exclude(queue__in=self._counts).delete()
        self._queues.pop(0)
        self._after, self._counts, self._oldest_at = None, Counter(), None


def _rows(statement: str, parameters: dict[str, Any]) -> list[Any]:
    with connections[router.db_for_write(LiveCount)].cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()
