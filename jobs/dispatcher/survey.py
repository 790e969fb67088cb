"""Counts the jobs that are alive where a count would walk over too many that died.

Beside a snapshot that somebody holds for long, PostgreSQL keeps the index entries of all jobs that have been waiting or
active since. A count reads each of these, and so does a look for the tasks of the first jobs. So the leader reads spans
of time instead, of which none takes longer than some milliseconds, and what it has found is told until the next survey.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction

from jobs import claims, paced, settle
from jobs.below import Position, WalkBelow
from jobs.live_counts import LiveCount, waiting_queues
from jobs.paced import Gap, Level, Place
from jobs.queues import QUEUES
from jobs.statements import rows_of

# How many dead rows the table has, by PostgreSQL's own statistics.
# Locks: nothing. Index: none, it reads shared memory. Two at once: they read.
DEAD_ROWS = "SELECT pg_stat_get_dead_tuples('jobs_job'::regclass)"

# The jobs without limits that were due within a span of time, by queue.
# Locks: nothing. Index: job_waiting, the entries of that span, of each priority of each queue.
# Two at once: they read.
WAITING_WITHIN = """
SELECT wanted.queue, sum(counted.number), min(counted.oldest), array_agg(DISTINCT counted.task)
FROM unnest(%(queues)s::text[]) AS wanted (queue) CROSS JOIN generate_series(0, 9) AS level (priority)
CROSS JOIN LATERAL (
    SELECT task, count(*) AS number, min(run_at) AS oldest FROM jobs_job
    WHERE state = 'waiting' AND queue = wanted.queue AND lane = '' AND priority = level.priority
      AND run_at >= %(begin)s AND run_at < %(end)s
    GROUP BY task) AS counted
GROUP BY wanted.queue
"""

# The same of jobs with limits, from a floor on, by lane and priority.
# Locks: nothing. Index: job_waiting, from that floor on, of each lane and priority.
# Two at once: they read.
WAITING_IN_LANES = """
SELECT wanted.queue, sum(counted.number), min(counted.oldest), array_agg(DISTINCT counted.task)
FROM unnest(%(queues)s::text[], %(lanes)s::text[], %(priorities)s::smallint[], %(floors)s::timestamptz[],
            %(floor_ids)s::uuid[]) AS wanted (queue, lane, priority, floor, floor_id)
CROSS JOIN LATERAL (
    SELECT task, count(*) AS number, min(run_at) AS oldest FROM jobs_job
    WHERE state = 'waiting' AND queue = wanted.queue AND lane = wanted.lane AND priority = wanted.priority
      AND (run_at, id) >= (wanted.floor, wanted.floor_id)
    GROUP BY task) AS counted
GROUP BY wanted.queue
"""

# The jobs that were started within a span of time, by queue.
# Locks: nothing. Index: job_active, the entries of that span, of each worker. Two at once: they read.
ACTIVE_WITHIN = """
SELECT job.queue, count(*)
FROM jobs_worker AS worker
CROSS JOIN LATERAL (
    SELECT queue FROM jobs_job
    WHERE state = 'active' AND worker_id = worker.id AND started_at >= %(begin)s AND started_at < %(end)s
    OFFSET 0) AS job
WHERE worker.settled_at IS NULL
GROUP BY job.queue
"""

# The delayed jobs that were due within a span of time, by queue.
# Locks: nothing. Index: job_delayed, the entries of that span. Two at once: they read.
DELAYED_WITHIN = """
SELECT queue, count(*) FROM jobs_job
WHERE state = 'delayed' AND NOT is_held AND run_at >= %(begin)s AND run_at < %(end)s
GROUP BY queue
"""

# The next delayed jobs, of all queues, in the order of their index.
# Locks: nothing. Index: job_delayed, from where the last one stood.
# Two at once: they read.
NEXT_DELAYED = """
SELECT queue, is_held, run_at, id FROM jobs_job
WHERE state = 'delayed' AND (is_held, run_at, id) > (%(is_held)s, %(run_at)s, %(id)s)
ORDER BY is_held, run_at, id LIMIT %(limit)s
"""

# Fewer dead rows than this cost no count much.
MANY_DEAD = 10_000
# Between the ends of two surveys: what they find is told for so long.
_REST_SECONDS = 20.0
# Statements at one look, and the pause between them.
_AT_ONCE = 20
_PAUSE_SECONDS = 0.02
_LANES_AT_ONCE = 100
# Of those that the leader does not know: so many gaps between those that it knows, and so many that are found there.
_GAPS_AT_ONCE = 100
_LEVELS_AT_ONCE = 500
_DELAYED_AT_ONCE = 1_000
# Of each queue: what is kept of the tasks that wait.
_MOST_TASKS = 1_000
_NEVER = datetime.max.replace(tzinfo=UTC) - timedelta(days=1)
_NOBODY = UUID(int=0)
# Behind the jobs of a queue without limits, and behind all.
_AFTER_PLAIN = ("", 10)
_END = ("\U0010ffff", 0)
_WRITTEN = ["count", "oldest_at", "tasks", "surveyed", "counted_at"]
_STATES = {"waiting": WAITING_WITHIN, "active": ACTIVE_WITHIN, "delayed": DELAYED_WITHIN}


@dataclass(slots=True)
class _Found:
    """What waits in a queue, or is active there, or delayed."""

    count: int = 0
    oldest_at: datetime | None = None
    tasks: set[str] = field(default_factory=set)

    def add(self, count: int, oldest_at: datetime | None = None, tasks: Iterable[str] = ()) -> None:
        self.count += count
        if oldest_at is not None:
            self.oldest_at = min(self.oldest_at or oldest_at, oldest_at)
        self.tasks.update(tasks)


def has_many_dead() -> bool:
    """Whether the table has so many dead rows that a count may walk over them."""
    return rows_of(DEAD_ROWS, {})[0][0] > MANY_DEAD


class Survey:
    """The counts of the leader beside an old snapshot; `lanes` are the lanes in which it knows of jobs with limits, and
    the floor of each. It knows those that it may grant: the others, as of paused queues, are looked for."""

    def __init__(self, lanes: Callable[[], Mapping[Place, Position]]) -> None:
        self.is_on = False
        self._lanes = lanes
        self._steps: Iterator[None] = iter(())
        self._not_before = 0.0

    def begin(self) -> None:
        """Surveys from now on."""
        self.is_on, self._not_before = True, 0.0
        self._steps = self._survey()

    def look(self) -> bool:
        """The next statements, if it is time; returns whether any was due."""
        if time.monotonic() < self._not_before:
            return False
        for number, _ in enumerate(self._steps, start=1):
            if number == _AT_ONCE:
                return True
            time.sleep(_PAUSE_SECONDS)
        self._not_before = time.monotonic() + _REST_SECONDS
        self._steps = self._survey()
        self.is_on = has_many_dead()
        return True

    def _survey(self) -> Iterator[None]:
        now = claims.now()
        queues = waiting_queues(QUEUES)
        found: dict[tuple[str, str], _Found] = defaultdict(_Found)

        def add(state: str, begin: datetime, end: datetime) -> None:
            within = {"queues": queues, "begin": begin, "end": end}
            for queue, *counted in rows_of(_STATES[state], within):
                found[queue, state].add(*counted)

        for state in ("waiting", "active"):
            add(state, now, _NEVER)
            yield
        lanes = dict(self._lanes())
        yield from _find_lanes(queues, lanes)
        yield from self._count_lanes(list(lanes.items()), found)
        yield from self._count_delayed_from(now, found)
        walk: WalkBelow[str, None] = WalkBelow(add)
        while not walk.has_ended:
            walk.piece((state, now) for state in _STATES)
            yield
        self._write(queues, found)

    def _count_lanes(
        self, lanes: list[tuple[Place, Position]], found: Mapping[tuple[str, str], _Found]
    ) -> Iterator[None]:
        for start in range(0, len(lanes), _LANES_AT_ONCE):
            part = lanes[start : start + _LANES_AT_ONCE]
            parameters = {
                "queues": [place.queue for place, _ in part],
                "lanes": [place.lane for place, _ in part],
                "priorities": [place.priority for place, _ in part],
                "floors": [floor.run_at for _, floor in part],
                "floor_ids": [floor.job_id for _, floor in part],
            }
            for queue, *counted in rows_of(WAITING_IN_LANES, parameters):
                found[queue, "waiting"].add(*counted)
            yield

    def _count_delayed_from(self, now: datetime, found: Mapping[tuple[str, str], _Found]) -> Iterator[None]:
        """Those that are not due yet, then those that are held."""
        after: tuple[Any, ...] = (False, now, _NOBODY)
        rows: list[Any] = [()] * _DELAYED_AT_ONCE
        while len(rows) == _DELAYED_AT_ONCE:
            parameters = dict(zip(("is_held", "run_at", "id"), after, strict=True))
            rows = rows_of(NEXT_DELAYED, {"limit": _DELAYED_AT_ONCE, **parameters})
            for queue, *after_it in rows:
                found[queue, "delayed"].add(1)
                after = tuple(after_it)
            yield

    def _write(self, queues: Iterable[str], found: Mapping[tuple[str, str], _Found]) -> None:
        """Two at once, as where a leader was given up and still surveys: the second writes over the first."""
        rows = []
        names = sorted({*queues, *(queue for queue, _ in found)})
        for queue in names:
            for state in _STATES:
                one = found.get((queue, state), _Found())
                row = LiveCount(queue=queue, state=state, count=one.count, oldest_at=one.oldest_at, surveyed=True)
                row.tasks = sorted(one.tasks)[:_MOST_TASKS]
                rows.append(row)
        with transaction.atomic(using=settle.ledger()):
            LiveCount.objects.exclude(queue__in=names).delete()
            LiveCount.objects.bulk_create(
                rows, update_conflicts=True, unique_fields=["queue", "state"], update_fields=_WRITTEN
            )


def _find_lanes(queues: Iterable[str], lanes: dict[Place, Position]) -> Iterator[None]:
    """Adds the lanes of these queues in which others wait, and the first moment of each."""
    gaps = deque(_gaps(queues, lanes))
    while gaps:
        some = [gaps.popleft() for _ in range(min(_GAPS_AT_ONCE, len(gaps)))]
        found = paced.unknown_levels(some, limit=_LEVELS_AT_ONCE)
        lanes.update((level.place, Position(level.first_at)) for level in found)
        if len(found) >= _LEVELS_AT_ONCE:
            gaps.extend(_beyond(gap, found) for gap in some)
        yield


def _gaps(queues: Iterable[str], lanes: Iterable[Place]) -> Iterator[Gap]:
    known = sorted(lanes)
    for queue in queues:
        begin = _AFTER_PLAIN
        for end in [*(place[1:] for place in known if place.queue == queue), _END]:
            yield Gap(queue, *begin, *end)
            begin = end


def _beyond(gap: Gap, found: Iterable[Level]) -> Gap:
    """What is left of a gap behind those that were found there."""
    begin, end = (gap.lane, gap.priority), (gap.end_lane, gap.end_priority)
    inside = [level.place[1:] for level in found if level.place.queue == gap.queue and begin < level.place[1:] < end]
    return Gap(gap.queue, *max(inside, default=begin), *end)
