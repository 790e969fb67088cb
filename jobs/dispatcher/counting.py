"""The leader counts the jobs that are alive where no question can count them at once, as there are too many."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Now

from jobs import live_counts
from jobs.below import SLOW_FACTOR
from jobs.dispatcher.survey import NEXT_DELAYED, Survey, has_many_dead
from jobs.live_counts import LiveCount, count_some, number_of
from jobs.paced import Place
from jobs.queues import QUEUES
from jobs.statements import round_trip_seconds, rows_of

_WALKED_AT_ONCE = 20_000
# Between two walks through all that there is.
WALK_SECONDS = 30.0
# A count that takes longer than this, although few jobs may be alive, makes a survey worth while.
SLOW_SECONDS = 0.01

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

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_NOBODY = UUID(int=0)
_ALL = ""


class Walk:
    """The slow duty: counts what is too much to be counted at once, a part at each look; a survey, where much died."""

    def __init__(self) -> None:
        # Where jobs with limits wait or have died, as far as the leader knows.
        self.places: Callable[[], Iterable[Place]] = tuple
        self._survey = Survey(lambda: self.places())
        self._not_before = 0.0
        self._queues: list[str] = []
        self._after: tuple[Any, ...] | None = None
        self._counts: Counter[str] = Counter()
        self._oldest_at: datetime | None = None

    def run_once(self) -> None:
        """One part, if a walk is due. Killed in the middle, the next leader begins anew."""
        if self._survey.is_on:
            self._survey.look()
        elif not self._queues:
            if time.monotonic() < self._not_before:
                return
            self._begin()
        elif self._queues[0] == _ALL:
            self._walk_delayed()
        else:
            self._walk_waiting(self._queues[0])

    def _begin(self) -> None:
        self._not_before = time.monotonic() + WALK_SECONDS
        # The leader before this one has surveyed.
        if LiveCount.objects.filter(surveyed=True).exists() and has_many_dead():
            self._survey.begin()
            return
        began = time.monotonic()
        some = count_some(QUEUES)
        took = time.monotonic() - began
        if took > SLOW_SECONDS and took > SLOW_FACTOR * round_trip_seconds() and has_many_dead():
            self._survey.begin()
            return
        many = [(queue, state) for queue, state, count, _ in some if count > live_counts.COUNTED_AT_ONCE]
        self._queues = [queue for queue, state in many if state == "waiting"]
        waiting = Q(state="waiting", queue__in=self._queues)
        if number_of(some, "delayed") > live_counts.COUNTED_AT_ONCE:
            self._queues.append(_ALL)
            waiting |= Q(state="delayed")
        LiveCount.objects.exclude(waiting).delete()
        LiveCount.objects.update(surveyed=False)

    def _walk_waiting(self, queue: str) -> None:
        after = dict(
            zip(("lane", "priority", "run_at", "id"), self._after or ("", -1, _LONG_AGO, _NOBODY), strict=True)
        )
        rows = rows_of(WALK_WAITING, {"queue": queue, "limit": _WALKED_AT_ONCE, **after})
        number = 0
        for number, oldest_at, *last in rows:
            self._counts[queue] += number
            self._oldest_at = min(self._oldest_at or oldest_at, oldest_at)
            self._after = tuple(last)
        if number < _WALKED_AT_ONCE:
            self._end("waiting")

    def _walk_delayed(self) -> None:
        after = dict(zip(("is_held", "run_at", "id"), self._after or (False, _LONG_AGO, _NOBODY), strict=True))
        rows = rows_of(NEXT_DELAYED, {"limit": live_counts.COUNTED_AT_ONCE, **after})
        self._counts.update(row[0] for row in rows)
        if rows:
            self._after = rows[-1][1:]
        if len(rows) < live_counts.COUNTED_AT_ONCE:
            self._end("delayed")

    def _end(self, state: str) -> None:
        for queue, count in self._counts.items():
            found = {"count": count, "oldest_at": self._oldest_at, "counted_at": Now()}
            LiveCount.objects.update_or_create(queue=queue, state=state, defaults=found)
        if state == "delayed":
            LiveCount.objects.filter(state=state).exclude(queue__in=self._counts).delete()
        self._queues.pop(0)
        self._after, self._counts, self._oldest_at = None, Counter(), None
