"""Where a claim begins to look, so that it does not walk over all that died since somebody's old snapshot began.

PostgreSQL keeps the index entries of claimed jobs as long as a transaction lives that might still see them, and a claim
from the head of its queue walks over each of these. So a worker whose claims become slow remembers, for each priority
of a queue, the place below which nothing waits: its *floor*. A claim starts there and raises it, as what it has passed
over cannot become waiting again, with three exceptions. What is due later than some seconds ago is always looked at. A
job that becomes waiting later than that after it was due is named at the doorbell, and lowers all floors of its queue.
And where that is lost, a walk below the floors finds the job: a short piece at a time, all of it within seconds.

A floor passes over a job that somebody else holds, who in most cases is claiming it. Where it was passed over is
remembered, and looked at again until nothing waits there.
"""

import bisect
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from jobs import claims
from jobs.below import BEGINNING, MARGIN, SLOW_FACTOR, SLOW_SECONDS, Position, WalkBelow
from jobs.claims import Found
from jobs.statements import round_trip_seconds

# Floors are used after so many slow claims or looks in a row.
_SLOW_CLAIMS = 3
# Between two looks at what was passed over: of each priority, at most so many spans.
_PASSED_SECONDS = 1.0
MOST_PASSED = 8
_PRIORITIES = range(10)


class Floors:
    """The floors of one queue, in one worker: its claims are one after the other."""

    def __init__(self, queue: str, *, tasks: Sequence[str]) -> None:
        self._queue, self._tasks = queue, tasks
        self._slow_count = 0
        self._floors: dict[int, Position] | None = None
        self._clock = _Clock()
        self._walk = WalkBelow(self._first_due)
        # Of a priority, the spans in which jobs wait below its floor that somebody held, in their order.
        self._passed: dict[int, list[tuple[Position, Position]]] = {}
        self._look_at = 0.0

    @property
    def are_used(self) -> bool:
        """Whether claims of this queue have become slow."""
        return self._floors is not None

    def current(self) -> dict[int, Position] | None:
        """Where the next claim is to begin, by priority; None: at the head."""
        return self._floors

    def learn(self, found: Found, *, seconds: float) -> None:
        """What a claim from `current` has found, and how long it took."""
        if self._floors is None:
            self.has_taken(seconds)
            return
        highest = Position(self._clock.now() - MARGIN)
        first = {claim.priority: Position(claim.run_at, claim.job_id) for claim in reversed(found)}
        for priority, head in found.heads.items():
            # What waits there and was not claimed is held by somebody, or its queue is paused.
            floor = max(self._floors[priority], min(head or highest, highest))
            claimed_at = min(first.get(priority, floor), highest)
            # Where too many spans are remembered, a floor passes over no other job until one is forgotten.
            passed = self._passed.setdefault(priority, [])
            if claimed_at > floor and len(passed) < MOST_PASSED:
                bisect.insort(passed, (floor, claimed_at))
                floor = claimed_at
            self._floors[priority] = floor

    def has_taken(self, seconds: float) -> None:
        """A claim or a look from the head has taken so long: where it is slow again and again, floors are used."""
        self._slow_count = self._slow_count + 1 if seconds > SLOW_SECONDS else 0
        if self._slow_count >= _SLOW_CLAIMS and seconds > SLOW_FACTOR * round_trip_seconds():
            # Every claim sees all that is above: at first, that is everything.
            self._floors = dict.fromkeys(_PRIORITIES, Position(BEGINNING))

    def lower(self, run_at: datetime) -> None:
        """A job that was due at that moment has become waiting. What comes late seldom comes alone, and not all of it
        is named: claims are to find others of its transaction, too, whatever their priorities."""
        if self._floors is not None:
            self._floors = {priority: min(floor, Position(run_at)) for priority, floor in self._floors.items()}

    def look_below(self) -> None:
        """Walks a piece below the floors, if one is due. What waits there lowers the floor of its priority."""
        if self._floors is None:
            return
        if self._walk.has_found_little:
            self._floors, self._slow_count = None, 0
            self._walk.forget()
            self._passed.clear()
            return
        if self._passed and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _PASSED_SECONDS
            self._look_at_passed(self._floors)
        late = self._walk.piece((priority, floor.following_moment) for priority, floor in self._floors.items())
        if late is not None:
            priority, job = late
            self._floors[priority] = min(self._floors[priority], job)

    def _look_at_passed(self, floors: dict[int, Position]) -> None:
        """What somebody held and holds no more lowers its floor. A span in which nothing waits is forgotten."""
        for priority, spans in self._passed.items():
            for span in spans.copy():
                free = self._first_between(priority, *span, is_free=True)
                if free is not None:
                    floors[priority] = min(floors[priority], free)
                if free is not None or self._first_between(priority, *span) is None:
                    spans.remove(span)

    def _first_due(self, priority: int, begin: datetime, end: datetime) -> Position | None:
        """For the walk. What was passed over is looked at by itself: the walk would bring the floor back to it as long
        as somebody holds it."""
        at, last = Position(begin), Position(end)
        for before, behind in [*self._passed.get(priority, ()), (last, last)]:
            if at < (until := min(last, before)) and (found := self._first_between(priority, at, until)) is not None:
                return found
            at = max(at, behind)
        return None

    def _first_between(
        self, priority: int, begin: Position, end: Position, *, is_free: bool = False
    ) -> Position | None:
        return claims.first_due(
            self._queue, priority=priority, begin=begin, end=end, tasks=self._tasks, is_free=is_free
        )


class _Clock:
    """The database's time, without asking for it each time."""

    _ASK_SECONDS = 60.0

    def __init__(self) -> None:
        self._asked_at = -self._ASK_SECONDS
        self._then = BEGINNING

    def now(self) -> datetime:
        """What the database would say, but for what the round trip of the last question took."""
        if time.monotonic() - self._asked_at >= self._ASK_SECONDS:
            asked_at = time.monotonic()
            self._then, self._asked_at = claims.now(), asked_at
        return self._then + timedelta(seconds=time.monotonic() - self._asked_at)
