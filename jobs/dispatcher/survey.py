"""Counts the jobs that are alive where a count would walk over too many that died.

Beside a snapshot that somebody holds for long, PostgreSQL keeps the index entries of all jobs that have been waiting or
active since. A count reads each of these, and so does a look for the tasks of the first jobs. So the leader reads spans
of time instead, of which none takes longer than some milliseconds, and what it has found is told until the next survey.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction

from jobs import claims, settle
from jobs.below import AtOnce, WalkBelow
from jobs.live_counts import LiveCount, waiting_queues
from jobs.paced import Place
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

# The jobs with limits in some ranges of lanes and priorities, each from its begin on and before its end, by queue.
# Locks: nothing. Index: job_waiting, the entries of those ranges. Two at once: they read.
WAITING_IN_RANGES = """
SELECT wanted.queue, sum(counted.number), min(counted.oldest), array_agg(DISTINCT counted.task)
FROM unnest(%(queues)s::text[], %(lanes)s::text[], %(priorities)s::int[], %(end_lanes)s::text[],
            %(end_priorities)s::int[]) AS wanted (queue, lane, priority, end_lane, end_priority)
CROSS JOIN LATERAL (
    SELECT task, count(*) AS number, min(run_at) AS oldest FROM jobs_job
    WHERE state = 'waiting' AND queue = wanted.queue AND (lane, priority) >= (wanted.lane, wanted.priority)
      AND (lane, priority) < (wanted.end_lane, wanted.end_priority)
    GROUP BY task) AS counted
GROUP BY wanted.queue
"""

# The jobs of one lane and priority that were due within a span of time.
# Locks: nothing. Index: job_waiting, the entries of that span. Two at once: they read.
WAITING_OF_LEVEL = """
SELECT queue, count(*), min(run_at), array_agg(DISTINCT task) FROM jobs_job
WHERE state = 'waiting' AND queue = %(queue)s AND lane = %(lane)s AND priority = %(priority)s
  AND run_at >= %(begin)s AND run_at < %(end)s
GROUP BY queue
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
_RANGES_AT_ONCE = 100
# So many places are remembered at which a range was slow by itself, and so many levels.
_MOST_SLOW = 2_000
_MOST_SLOW_LEVELS = 200
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


class Range(NamedTuple):
    """Lanes and priorities of a queue, from a place on and before an end."""

    place: Place
    end: tuple[str, int]


class Survey:
    """The counts of the leader beside an old snapshot; `places` are those in which jobs with limits wait or have died,
    as far as it knows."""

    def __init__(self, places: Callable[[], Iterable[Place]]) -> None:
        self.is_on = False
        self._places = places
        self._ranges = _Ranges(places)
        self._steps: Iterator[None] = iter(())
        self._not_before = 0.0

    def begin(self) -> None:
        """Surveys from now on."""
        self.is_on, self._not_before = True, 0.0
        self._ranges = _Ranges(self._places)
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

        def add(key: str | Place, begin: datetime, end: datetime) -> None:
            """Of a state, the jobs without limits; or of one level."""
            statement, state = (_STATES[key], key) if isinstance(key, str) else (WAITING_OF_LEVEL, "waiting")
            of = {"queues": queues} if isinstance(key, str) else key._asdict()
            for queue, *counted in rows_of(statement, {**of, "begin": begin, "end": end}):
                found[queue, state].add(*counted)

        for state in ("waiting", "active"):
            add(state, now, _NEVER)
            yield
        # Those that are found slow in this survey are counted with their ranges once more.
        levels = sorted(self._ranges.slow_levels)
        yield from self._ranges.count(queues, found)
        yield from self._count_delayed_from(now, found)
        for place in levels:
            add(place, now, _NEVER)
            yield
        keys: list[str | Place] = [*_STATES, *levels]
        walk: WalkBelow[str | Place, None] = WalkBelow(add)
        while not walk.has_ended:
            walk.piece((key, now) for key in keys)
            yield
        self._write(queues, found)

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


class _Ranges:
    """Counts the jobs with limits, in ranges of lanes and priorities that are read within a millisecond each."""

    def __init__(self, places: Callable[[], Iterable[Place]]) -> None:
        self._places = places
        self._at_once = AtOnce(_RANGES_AT_ONCE, first=1)
        # Ranges of which some were slow together: they are read one by one. And those that were slow then.
        self._suspected: set[Place] = set()
        self._slow: set[Place] = set()
        # Where ranges were slow twice, and levels that were: of these, spans of time are read.
        self._borders: set[Place] = set()
        self.slow_levels: set[Place] = set()

    def count(self, queues: Iterable[str], found: Mapping[tuple[str, str], _Found]) -> Iterator[None]:
        """All but the slow levels, a statement at a time."""
        left = deque(self._all(queues))
        while left:
            some = [left.popleft()]
            if some[0].place not in self._suspected:
                while left and len(some) < self._at_once.number and left[0].place not in self._suspected:
                    some.append(left.popleft())
            began = time.monotonic()
            for queue, *counted in rows_of(WAITING_IN_RANGES, _parameters(some)):
                found[queue, "waiting"].add(*counted)
            self._learn(some, time.monotonic() - began)
            yield

    def _all(self, queues: Iterable[str]) -> Iterator[Range]:
        borders = sorted({*self._places(), *self._borders})
        for queue in queues:
            begin = _AFTER_PLAIN
            for end in [*(place[1:] for place in borders if place.queue == queue and place.lane), _END]:
                if Place(queue, *begin) not in self.slow_levels:
                    yield Range(Place(queue, *begin), end)
                begin = end

    def _learn(self, some: list[Range], seconds: float) -> None:
        is_slow, first = self._at_once.learn(seconds, found=0), some[0]
        if is_slow and len(some) > 1:
            if len(self._suspected) < _MOST_SLOW:
                self._suspected.update(one.place for one in some)
        elif is_slow and first.place in self._slow:
            self._divide(first)
        elif is_slow:
            self._slow.add(first.place)
        elif len(some) == 1:
            self._slow.discard(first.place)
            self._suspected.discard(first.place)

    def _divide(self, slow: Range) -> None:
        """The next survey reads the levels of the first lane of this range by themselves, and spans of time of a level
        that was slow by itself."""
        queue, lane, priority = slow.place
        if not lane or len(self._borders) >= _MOST_SLOW:
            return
        self._borders.update(Place(queue, lane, level) for level in range(11))
        if slow.end == (lane, priority + 1) and len(self.slow_levels) < _MOST_SLOW_LEVELS:
            self.slow_levels.add(slow.place)


def _parameters(ranges: Sequence[Range]) -> dict[str, list[Any]]:
    names = ("queues", "lanes", "priorities", "end_lanes", "end_priorities")
    columns = zip(*((*one.place, *one.end) for one in ranges), strict=True)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}
