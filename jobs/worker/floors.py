"""Where a claim begins to look, so that it does not walk over all that died since somebody's old snapshot began.

PostgreSQL keeps the index entries of claimed jobs as long as a transaction lives that might still see them, and a claim
from the head of its queue walks over each of these. So a worker whose claims become slow remembers, for each priority
of a queue, the moment below which nothing waits: its *floor*. A claim starts there and raises it, as what it has passed
over cannot become waiting again, with three exceptions. What is due later than some seconds ago is always looked at. A
job that becomes waiting later than that after it was due is named at the doorbell, and claimed by its id. And where
that is lost, a walk below the floors finds the job: a short piece at a time, all of it within seconds.
"""

import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from jobs import claims
from jobs.claims import Claim

# Claims that take so long, so often in a row, make floors worth while.
SLOW_SECONDS = 0.003
_SLOW_CLAIMS = 3
# And so much longer than a question that reads nothing: else it is the machine that is slow.
_SLOW_FACTOR = 5
# A floor is never later than this long ago: transactions that write jobs take their time.
MARGIN = timedelta(seconds=5)
# Of the walk below the floors: what a piece should take beside its round trip, the pause after each, and how far it
# steps at first.
_PIECE_SECONDS = 0.0015
_NOISE_SECONDS = 0.0005
_PAUSE_SECONDS = 0.02
_FIRST_STEP = timedelta(seconds=10)
# From here on, all the rest is one piece.
_LONGEST_STEP = timedelta(days=1)
# On a machine that is always slow, the walk must come to its end as well.
_MOST_HELD = 50
_NOISE_PIECES = 3
_BEGINNING = datetime(1970, 1, 2, tzinfo=UTC)
_PRIORITIES = range(10)


class Floors:
    """The floors of one queue, in one worker: its claims are one after the other."""

    def __init__(self, queue: str, *, tasks: Sequence[str]) -> None:
        self._queue, self._tasks = queue, tasks
        self._slow_count = 0
        self._floors: dict[int, datetime] | None = None
        self._clock = _Clock()
        self._walk_at = 0.0
        # What each piece of the walk has taken.
        self._pieces: list[float] = []
        # Priorities in turn, where each goes on, and how far back from there: what is late is seldom late by much.
        self._to_walk: deque[tuple[int, datetime, timedelta]] = deque()
        self._held_count = 0

    @property
    def are_used(self) -> bool:
        """Whether claims of this queue have become slow."""
        return self._floors is not None

    def current(self) -> dict[int, datetime] | None:
        """Where the next claim is to begin, by priority; None: at the head."""
        return self._floors

    def learn(self, found: Sequence[Claim], *, seconds: float) -> None:
        """What a claim from `current` has found, and how long it took."""
        if self._floors is None:
            self._slow_count = self._slow_count + 1 if seconds > SLOW_SECONDS else 0
            if self._slow_count >= _SLOW_CLAIMS and seconds > _SLOW_FACTOR * self._clock.round_trip_seconds():
                # Every claim sees all that is above: at first, that is everything.
                self._floors = dict.fromkeys(_PRIORITIES, _BEGINNING)
            return
        highest = self._clock.now() - MARGIN
        # More urgent priorities were empty above their floors; of the one that it took from, nothing waits before
        # those.
        priority = found[0].priority if found else len(_PRIORITIES)
        for passed in range(priority):
            self._raise(passed, highest)
        if found:
            self._raise(priority, min(found[0].run_at, highest))

    def look_below(self) -> None:
        """Walks a piece below the floors, if one is due. What waits there lowers the floor of its priority."""
        if self._floors is None or time.monotonic() < self._walk_at:
            return
        if not self._to_walk:
            if self._pieces and self._walk_cost() < SLOW_SECONDS:
                # There is next to nothing to walk over any more.
                self._floors, self._slow_count = None, 0
            self._pieces.clear()
            if self._floors is None:
                return
            self._to_walk.extend(
                (priority, floor, _FIRST_STEP) for priority, floor in self._floors.items() if floor > _BEGINNING
            )
            if not self._to_walk:
                return
        priority, end, step = self._to_walk.popleft()
        begin = end - step if step < _LONGEST_STEP else _BEGINNING
        began = time.monotonic()
        first = claims.first_due(self._queue, priority=priority, begin=begin, end=end, tasks=self._tasks)
        seconds = time.monotonic() - began
        self._walk_at = time.monotonic() + _PAUSE_SECONDS
        self._pieces.append(seconds)
        cost = self._cost_of(len(self._pieces))
        if first is not None:
            self._floors[priority] = min(self._floors[priority], first)
        if begin > _BEGINNING:
            self._to_walk.append((priority, begin, self._following(step, cost)))

    def _following(self, step: timedelta, cost: float) -> timedelta:
        """How far the next piece goes back: as far as this one where it took its time, else twice as far."""
        if cost > _PIECE_SECONDS and self._held_count < _MOST_HELD:
            self._held_count += 1
            return max(step / 2, _FIRST_STEP) if cost > 2 * _PIECE_SECONDS else step
        self._held_count = 0
        return step * 2

    def _cost_of(self, end: int) -> float:
        """The least of the last pieces before `end`, beside a round trip: one alone may have waited for the
        processor."""
        return min(self._pieces[max(0, end - _NOISE_PIECES) : end]) - min(self._pieces)

    def _walk_cost(self) -> float:
        costs = (self._cost_of(end) for end in range(1, len(self._pieces) + 1))
        return sum(max(0.0, cost - _NOISE_SECONDS) for cost in costs)

    def _raise(self, priority: int, floor: datetime) -> None:
        if self._floors is not None:
            self._floors[priority] = max(self._floors[priority], floor)


class _Clock:
    """The database's time, without asking for it each time."""

    _ASK_SECONDS = 60.0

    def __init__(self) -> None:
        self._asked_at = -self._ASK_SECONDS
        self._then = _BEGINNING

    def round_trip_seconds(self) -> float:
        """How long a question takes that reads nothing."""
        began = time.monotonic()
        claims.now()
        return time.monotonic() - began

    def now(self) -> datetime:
        """What the database would say, but for what the round trip of the last question took."""
        if time.monotonic() - self._asked_at >= self._ASK_SECONDS:
            asked_at = time.monotonic()
            self._then, self._asked_at = claims.now(), asked_at
        return self._then + timedelta(seconds=time.monotonic() - self._asked_at)
