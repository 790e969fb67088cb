"""What the leader knows of the jobs that wait with limits: the levels, and of each the next jobs.

A *level* is a lane and a priority of a queue. The leader is told of new jobs, and finds the others by itself: it walks
through the gaps between the levels that it knows, a piece at each look, and reads the next jobs of those it knows. What
it holds is bounded, and never trusted: the claim decides, and a level of which nothing is left is read again.

As long as somebody holds an old snapshot, PostgreSQL keeps the index entries of claimed jobs, and a read from the head
of a level walks over each of these. So once reads become slow, each begins at the *floor* of its level, before which
nothing waits there, as those of `jobs.worker.floors` do. What becomes waiting later than some seconds
after it was due is named to the leader; where that is lost, a read from the head finds it, of one level at a time and
so seldom that it takes no more than a hundredth of the time.

The gaps between levels hold such dead entries too. Once looks at gaps become slow, the walk splits the gaps at the
lanes that `jobs.dispatcher.marks` remembers, and reads fewer of them per statement.
"""

import bisect
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from jobs import claims, paced
from jobs.below import BEGINNING, MARGIN, SLOW_FACTOR, SLOW_SECONDS, AtOnce, Position, WalkBelow
from jobs.dispatcher.marks import Marks
from jobs.paced import Gap, Level, Place
from jobs.statements import round_trip_seconds

# Beyond this, the one that has been known for longest is forgotten, until the walk comes to it again.
MOST_LEVELS = 2_000
# From the begin of a walk to that of the next one. After one that has read much that died and found nothing, so many
# times its cost, up to a longest pause.
WALK_SECONDS = 0.5
_REST_FACTOR = 100
_LONGEST_REST_SECONDS = 10.0
# Statements that were slow, until marks are used.
_SLOW_PIECES = 2
# At one look.
GAPS_AT_ONCE = 100
LEVELS_AT_ONCE = 100
_MOST_JOBS = 50
# Of each level.
MOST_PASSED = 8
# What is known of a level is read anew after this.
_FRESH_SECONDS = 5.0
# Beside what is slow for one question, for each level; so often in a row.
_SLOW_SECONDS_PER_LEVEL = 0.0001
_SLOW_READS = 3
# Before the first level of a queue, without its jobs that have no limits of their own, or with them; after the last.
_AFTER_PLAIN = ("", 10)
_BEFORE_ALL = ("", -1)
_END = ("\U0010ffff", 0)
_BEGINNING = Position(BEGINNING)


@dataclass(slots=True)
class Known:
    """What is known of a level."""

    own: dict[str, Any]
    floor: Position
    # The next ones, in their order; `is_all` where no more of them were there.
    jobs: list[Position] = field(default_factory=list)
    is_all: bool = False
    read_at: float = 0.0
    # Jobs that had a grant and did not start, for example locked ones. The floor passes over these jobs; a read looks
    # them up by id.
    passed: set[Position] = field(default_factory=set)


class Levels:
    """The levels that are known, by their places."""

    def __init__(self) -> None:
        self.known: dict[Place, Known] = {}
        # By queue, in the order of the index.
        self._order: dict[str, list[tuple[str, int]]] = {}
        self._gaps: deque[Gap] = deque()
        self._walk_at = 0.0
        # Whether the walk has come to its end since the last job was found.
        self.is_walked = False
        self._marks = Marks()
        self._at_once = AtOnce(GAPS_AT_ONCE)
        # Whether gaps hold much that died, and how many statements were slow. Of this walk, whether it has found any
        # level, and the seconds of each statement.
        self._are_gaps_slow = False
        self._slow_pieces = 0
        self._has_found = False
        self._pieces: list[float] = []
        self._slow_count = 0
        self.are_slow = False
        self._walk_below = WalkBelow(self._first_due)
        self._tasks: Mapping[str, Collection[str] | None] = {}

    def places(self) -> set[Place]:
        """Where jobs with limits of their own wait or have died; for another thread."""
        return {place for place in self.known.copy() if place.lane} | self._marks.places()

    def forget(self) -> None:
        """Knows nothing any more, as where other tasks are known to workers than before."""
        self.known.clear()
        self._order.clear()
        self._gaps.clear()
        self._walk_at = 0.0
        self.is_walked = False

    def hear(self, job_ids: Collection[UUID], tasks: Mapping[str, Collection[str] | None]) -> None:
        """These jobs have become waiting."""
        # The last first: those before it are known to be so.
        for named in sorted(paced.named_jobs(job_ids), key=lambda one: one.job, reverse=True):
            known_tasks = tasks.get(named.level.place.queue, ())
            if known_tasks is not None and named.task not in known_tasks:
                continue
            level = self._know(named.level)
            self._lower(named.level.place.queue, named.job.run_at)
            if named.job not in level.jobs and (level.is_all or not level.jobs or named.job < level.jobs[-1]):
                bisect.insort(level.jobs, named.job)
                if len(level.jobs) > _MOST_JOBS:
                    level.jobs.pop()
                    level.is_all = False

    def _lower(self, queue: str, run_at: datetime) -> None:
        """What comes late seldom comes alone: others of its transaction may stand in other levels."""
        for place, known in self.known.items():
            if place.queue == queue and known.floor > Position(run_at):
                known.floor, known.is_all = Position(run_at), False

    def doubt(self) -> None:
        """Jobs have become waiting that were not named."""
        self._walk_at = 0.0
        for known in self.known.values():
            known.is_all = False

    def walk(self, queues: Mapping[str, bool]) -> None:
        """A piece of the walk through the gaps of these queues; True for those whose jobs have no limits of their own
        and wait for grants all the same."""
        if not self._gaps and time.monotonic() >= self._walk_at:
            self._gaps.extend(self._all_gaps(queues))
            self._walk_at = time.monotonic() + WALK_SECONDS
        taken = [self._gaps.popleft() for _ in range(min(self._at_once.number, len(self._gaps)))]
        piece = [gap for gap in taken if gap.queue in queues]
        # Jobs without limits of their own are not named, and all in one lane.
        piece += [gap for queue, with_plain in queues.items() if with_plain for gap in self._plain_gaps(queue)]
        began = time.monotonic()
        found = paced.unknown_levels(piece, limit=GAPS_AT_ONCE)
        if taken:
            self._learn_of_gaps(time.monotonic() - began, len(found))
        for level in found:
            self._know(level)
        if len(found) >= GAPS_AT_ONCE:
            # There may be more in them.
            self._gaps.extendleft(reversed(self._split(piece)))
        self.is_walked = not self._gaps
        if taken and self.is_walked:
            self._end_walk()

    def _learn_of_gaps(self, seconds: float, found: int) -> None:
        self._pieces.append(seconds)
        self._has_found |= found > 0
        if self._at_once.learn(seconds, found=found):
            self._slow_pieces += 1
            self._are_gaps_slow = self._slow_pieces >= _SLOW_PIECES

    def _end_walk(self) -> None:
        *costs, longest = sorted(seconds - self._at_once.usual_seconds for seconds in self._pieces)
        self._pieces.clear()
        if sum(costs) + longest < SLOW_SECONDS:
            self._are_gaps_slow, self._slow_pieces = False, 0
        elif self._are_gaps_slow and not self._has_found:
            # The longest piece may have waited for the processor.
            rest = min(_LONGEST_REST_SECONDS, _REST_FACTOR * sum(costs))
            self._walk_at = max(self._walk_at, time.monotonic() + rest)
        self._has_found = False

    def _all_gaps(self, queues: Mapping[str, bool]) -> list[Gap]:
        return [gap for queue, with_plain in queues.items() for gap in self._gaps_of(queue, with_plain)]

    def _gaps_of(self, queue: str, with_plain: bool) -> Iterable[Gap]:
        begin = _BEFORE_ALL if with_plain else _AFTER_PLAIN
        places: Collection[tuple[str, int]] = self._order.get(queue, [])
        if self._are_gaps_slow:
            places = sorted({*places, *self._marks.of(queue)})
        for place in [*(place for place in places if place > begin), _END]:
            yield Gap(queue, *begin, *place)
            begin = place

    def _plain_gaps(self, queue: str) -> Iterable[Gap]:
        begin = _BEFORE_ALL
        for place in [*(place for place in self._order.get(queue, ()) if place[0] == ""), _AFTER_PLAIN]:
            yield Gap(queue, *begin, *place)
            begin = place

    def _split(self, gaps: list[Gap]) -> list[Gap]:
        """These gaps, beside the levels that were found in them."""
        parts = []
        for gap in gaps:
            begin, end = (gap.lane, gap.priority), (gap.end_lane, gap.end_priority)
            order = self._order.get(gap.queue, [])
            inside = order[bisect.bisect_right(order, begin) : bisect.bisect_left(order, end)]
            # The levels of a gap are found from its begin on.
            parts.append(Gap(gap.queue, *(inside[-1] if inside else begin), *end))
        return parts

    def _know(self, level: Level) -> Known:
        known = self.known.get(level.place)
        if known is None:
            while len(self.known) >= MOST_LEVELS:
                self._drop(next(iter(self.known)))
            known = self.known[level.place] = Known(level.own, Position(level.first_at))
            bisect.insort(self._order.setdefault(level.place.queue, []), level.place[1:])
        return known

    def _drop(self, place: Place) -> None:
        del self.known[place]
        self._marks.add(place)
        order = self._order[place.queue]
        del order[bisect.bisect_left(order, place[1:])]

    def read(
        self,
        queues: Mapping[str, int],
        *,
        now: datetime,
        held: Mapping[Place, Collection[Position]],
        tasks: Mapping[str, Collection[str] | None],
    ) -> None:
        """Reads the next jobs of the levels of which it knows none, or that were not read for a while.

        `queues` says how many jobs are wanted of each, `held` which jobs wait no more for a grant, as they have one.
        """
        old = time.monotonic() - _FRESH_SECONDS
        stale = [
            (known.read_at, place)
            for place, known in self.known.items()
            if place.queue in queues and (known.read_at < old or self._is_empty(place, known, held))
        ]
        stale.sort(key=lambda item: (item[0], item[1].priority))
        by_queue: dict[str, list[Place]] = {}
        for _, place in islice(stale, LEVELS_AT_ONCE):
            by_queue.setdefault(place.queue, []).append(place)
        for queue, places in by_queue.items():
            limit = max(1, min(_MOST_JOBS, -(-2 * queues[queue] // len(places))))
            self._read(queue, places, limit, now=now, held=held, tasks=tasks[queue])

    def _is_empty(self, place: Place, known: Known, held: Mapping[Place, Collection[Position]]) -> bool:
        """Whether a read may find jobs where none are known, although nobody has named any."""
        is_cheap = not self.are_slow or place.lane == ""
        return not known.jobs and (not known.is_all or (is_cheap and place not in held))

    def _read(
        self,
        queue: str,
        places: list[Place],
        limit: int,
        *,
        now: datetime,
        held: Mapping[Place, Collection[Position]],
        tasks: Collection[str] | None,
    ) -> None:
        floors = {place: self.known[place].floor if self.are_slow else _BEGINNING for place in places}
        passed = {place: self.known[place].passed.difference(held.get(place, ())) for place in places}
        began = time.monotonic()
        without = [job.job_id for place in places for job in (*held.get(place, ()), *passed[place])]
        found = paced.next_jobs(queue, floors, limit=limit, without=without, tasks=tasks)
        self._learn(time.monotonic() - began, len(places))
        waiting = _waiting(passed)
        for place, jobs in found.items():
            known, grants = self.known[place], held.get(place, ())
            known.is_all, known.read_at = len(jobs) < limit, time.monotonic()
            known.passed -= passed[place] - waiting
            known.floor = min([Position(now - MARGIN), *jobs[:1], *set(grants).difference(known.passed)])
            late = {job for job in passed[place] & waiting if known.is_all or job < jobs[-1]}
            known.jobs = sorted([*jobs, *late])
            if not known.jobs and not grants and not self.are_slow:
                self._drop(place)

    def _learn(self, seconds: float, count: int) -> None:
        if not self.are_slow:
            is_slow = seconds > SLOW_SECONDS + count * _SLOW_SECONDS_PER_LEVEL
            self._slow_count = self._slow_count + 1 if is_slow else 0
            self.are_slow = self._slow_count >= _SLOW_READS and seconds > SLOW_FACTOR * round_trip_seconds()

    def look_below(self, tasks: Mapping[str, Collection[str] | None]) -> None:
        """Walks a piece below the floors, if there are any and one is due. A level where something waits there is read
        again."""
        if not self.are_slow:
            return
        if self._walk_below.has_found_little:
            self.are_slow, self._slow_count = False, 0
            self._walk_below.forget()
            return
        self._tasks = tasks
        late = self._walk_below.piece((place, known.floor.following_moment) for place, known in self.known.items())
        if late is not None:
            place, job = late
            if (known := self.known.get(place)) and job < known.floor:
                known.floor, known.read_at = job, 0.0

    def _first_due(self, place: Place, begin: datetime, end: datetime) -> Position | None:
        passed = self.known[place].passed if place in self.known else ()
        at = Position(begin)
        while True:
            found = claims.first_due(
                place.queue,
                lane=place.lane,
                priority=place.priority,
                begin=at,
                end=Position(end),
                tasks=self._tasks.get(place.queue, ()),
            )
            if found is None or found not in passed:
                return found
            at = found.following

    def taken(self, place: Place, job: Position) -> None:
        """A job of a level was granted."""
        self.known[place].jobs.remove(job)

    def given_back(self, place: Place, job: Position) -> None:
        """A job waits for a grant again. Where somebody has locked it, it will not start with the next one either, and
        reads from a floor before it would walk over all that dies meanwhile."""
        known = self.known.get(place)
        if known is None or job in known.jobs:
            return
        if self.are_slow and len(known.passed) < MOST_PASSED:
            known.passed.add(job)
        elif job not in known.passed:
            known.floor = min(known.floor, job)
        bisect.insort(known.jobs, job)


def _waiting(passed: Mapping[Place, Collection[Position]]) -> set[Position]:
    """Those of these jobs that wait where they did."""
    named = paced.named_jobs([job.job_id for jobs in passed.values() for job in jobs])
    return {one.job for one in named if one.job in passed.get(one.level.place, ())}
