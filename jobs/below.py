"""Finds the jobs that wait below a floor, by short statements that together take seconds.

A *floor* is the place in the order before which nothing waits, as far as is known. Looks begin there: as long as
somebody holds an old snapshot, PostgreSQL keeps the index entries of jobs that wait no more, and a look from the
beginning reads all of them. The walk reads them in pieces. A piece is a span of time, so long that one statement reads
it in about 1 ms.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from jobs.statements import round_trip_seconds

# Looks that take longer make floors worth while.
SLOW_SECONDS = 0.003
# And so much longer than a question that reads nothing: else it is the machine that is slow.
SLOW_FACTOR = 5
# A floor is never later than this long ago: transactions that write jobs take their time.
MARGIN = timedelta(seconds=5)
BEGINNING = datetime.min.replace(tzinfo=UTC)
# What a piece should take beside its round trip, the pause after a piece, and the span of the first piece.
_PIECE_SECONDS = 0.0007
_NOISE_SECONDS = 0.0005
_PAUSE_SECONDS = 0.02
_FIRST_STEP = timedelta(seconds=10)
# Where a step would be longer, one piece reads all that is left.
_LONGEST_STEP = timedelta(days=1)
# The walk must end on a machine that is always slow, too: after so many pieces, and so many for each floor, the steps
# only grow.
_MOST_PIECES = 500
_MOST_PIECES_EACH = 20
# The pause after a whole walk is this many times the cost of the walk, up to a longest pause.
_REST_FACTOR = 100
_LONGEST_REST_SECONDS = 10.0

# Statements that take longer than this read less the next time, and one that takes no longer than a piece reads more.
# Beside it, what each part of a walk takes, and each thing that is found.
_SLOW_STATEMENT_SECONDS = 0.0015
_SECONDS_PER_PART = 0.00001

Key = TypeVar("Key")
Found = TypeVar("Found")


class Position(NamedTuple):
    """A place in the order in which the jobs of one lane and priority start: that of a job, or without an id the first
    of a moment. Many jobs may be due at one moment."""

    run_at: datetime
    job_id: UUID = UUID(int=0)

    @property
    def following_moment(self) -> datetime:
        """The first moment of which no job stands before this place."""
        return self.run_at + _INSTANT if self.run_at > BEGINNING else BEGINNING

    @property
    def following(self) -> "Position":
        """The next place of this moment. It is not asked for behind the last id that there is."""
        return self._replace(job_id=UUID(int=self.job_id.int + 1))


_INSTANT = timedelta(microseconds=1)


class AtOnce:
    """How many parts of a walk one statement reads. The number is halved after two slow statements in a row, and
    doubled after a quick one, up to `most`. A slow statement takes over 1.5 ms more than the quickest one."""

    def __init__(self, most: int, *, first: int | None = None) -> None:
        self._most = most
        self.number = first or most
        # What a statement takes that reads next to nothing.
        self.usual_seconds = math.inf
        self._was_slow = False

    def learn(self, seconds: float, *, found: int) -> bool:
        """One statement has taken so long and found so much; returns whether that is slow, and not for a slow
        machine."""
        self.usual_seconds = min(self.usual_seconds, seconds)
        beside = seconds - self.usual_seconds - (self.number + found) * _SECONDS_PER_PART
        is_slow = beside > _SLOW_STATEMENT_SECONDS and seconds > SLOW_FACTOR * round_trip_seconds()
        if is_slow and self._was_slow:
            self.number = max(1, self.number // 2)
        elif beside < _PIECE_SECONDS:
            self.number = min(self._most, 2 * self.number)
        self._was_slow = is_slow
        return is_slow


class WalkBelow(Generic[Key, Found]):
    """The walk below several floors, in turns. `first(key, begin, end)` returns the first job between `begin` and
    `end`, that of `end` left out, or None."""

    def __init__(self, first: Callable[[Key, datetime, datetime], Found | None]) -> None:
        self._first = first
        self._at = 0.0
        # Whether the last walk has ended, and read next to nothing.
        self.has_found_little = False
        # The seconds of each piece.
        self._pieces: list[float] = []
        # The next piece of each floor: its end, and its length. The first are short: few jobs are late by much.
        self._to_walk: deque[tuple[Key, datetime, timedelta]] = deque()
        self._most_pieces = _MOST_PIECES

    def piece(self, floors: Iterable[tuple[Key, datetime]]) -> tuple[Key, Found] | None:
        """Reads the next piece, if it is time; returns the floor to lower and what was found below it, or None.

        `floors` is read when a new walk begins.
        """
        if time.monotonic() < self._at:
            return None
        if not self._to_walk:
            self.forget()
            self._to_walk.extend((key, floor, _FIRST_STEP) for key, floor in floors if floor > BEGINNING)
            if not self._to_walk:
                return None
            self._most_pieces = max(_MOST_PIECES, _MOST_PIECES_EACH * len(self._to_walk))
        key, end, step = self._to_walk.popleft()
        begin = end - step if step < min(_LONGEST_STEP, end - BEGINNING) else BEGINNING
        began = time.monotonic()
        first = self._first(key, begin, end)
        self._pieces.append(time.monotonic() - began)
        if begin > BEGINNING:
            self._to_walk.append((key, begin, self._following(step)))
        pause = _PAUSE_SECONDS
        if not self._to_walk:
            cost = self._cost()
            self.has_found_little = cost < SLOW_SECONDS
            pause = max(pause, min(_LONGEST_REST_SECONDS, _REST_FACTOR * cost))
        self._at = time.monotonic() + pause
        return None if first is None else (key, first)

    @property
    def has_ended(self) -> bool:
        """Whether the last piece was the last one of its walk."""
        return bool(self._pieces) and not self._to_walk

    def forget(self) -> None:
        """Ends the walk: the next piece begins a new one."""
        self.has_found_little = False
        self._pieces.clear()
        self._to_walk.clear()

    def _following(self, step: timedelta) -> timedelta:
        """The length of the next piece: that of this one where it took long, half where it took twice as long, else
        double."""
        cost = self._pieces[-1] - min(self._pieces)
        if cost > _PIECE_SECONDS and len(self._pieces) < self._most_pieces:
            return max(step / 2, _FIRST_STEP) if cost > 2 * _PIECE_SECONDS else step
        return step * 2

    def _cost(self) -> float:
        """The seconds of this walk beside the round trips. A piece that took longer than both of its neighbours waited
        for the processor."""
        usual = min(self._pieces) + _NOISE_SECONDS
        around = zip(self._pieces, [*self._pieces[1:], usual], [*self._pieces[2:], usual, usual], strict=True)
        return sum(max(0.0, median(three) - usual) for three in around)
