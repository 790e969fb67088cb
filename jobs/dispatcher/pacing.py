"""Paces: grants jobs with limits only as they may start, the most urgent first (G11).

A grant is good for a second, and for a slot that is free at this moment. So no slot of a worker is blocked by a job
that has to wait, and nothing bursts when workers come back. The claim decides: a grant too many starts nothing.
"""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from jobs import paced
from jobs.below import Position
from jobs.dispatcher import ageing, slots
from jobs.dispatcher.circumstances import Circumstances
from jobs.dispatcher.levels import Levels
from jobs.dispatcher.set_aside import SetAside
from jobs.dispatcher.slots import PacedLane
from jobs.doorbell import REDIS_AWAY, Doorbell
from jobs.limits import Limits, queue_key
from jobs.paced import Lane, Place
from jobs.patience import may_pass
from jobs.queues import QUEUES

logger = logging.getLogger(__name__)

# How long a grant that nobody has taken up holds its slots.
GRANT_SECONDS = 1.0
# While nothing waits that has limits.
IDLE_SECONDS = 1.0
# A look comes when the next slot is free, but not sooner than this, nor later than that.
SHORTEST_SECONDS = 0.02
LONGEST_SECONDS = 0.2
# While there are floors to walk below.
_WALK_SECONDS = 0.1
# A look that takes its time must leave PostgreSQL to others for longer than that.
_REST_PER_LOOK = 2.0
# Of so many levels it is asked at one look whether their jobs may start, and of so many together.
LEVELS_AT_ONCE = 200
_LEVELS_PER_QUESTION = 20
# How often a look reads more of the levels of which it has granted all that it knew.
_READS_PER_LOOK = 3
_NO_PRIORITY = 10
# A queue that has half of its grants gets no more of them sooner than this.
TOP_UP_SECONDS = 0.05
# How old the circumstances may be.
CIRCUMSTANCES_SECONDS = 0.5
_MOST_GONE = 200


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant that was given: the keys under which it holds a slot, and when, by this process's clock."""

    place: Place
    job: Position
    keys: frozenset[str]
    sent_at: float


class Head(NamedTuple):
    """A waiting job and its level; its order is that in which jobs of a queue start."""

    priority: int
    job: Position
    place: Place

    @property
    def lane(self) -> Lane:
        """Where it waits."""
        return Lane(self.place.queue, self.place.lane)


def _urgency(head: Head) -> tuple[int, datetime]:
    """Its order but for the id, which takes long to compare."""
    return head.priority, head.job.run_at


class Pacer:
    """Gives grants, look by look."""

    def __init__(self) -> None:
        self._doorbell = Doorbell.patient()
        self._granted: dict[UUID, Grant] = {}
        # Whether those are all that lie in Redis, as far as is known: a leader that has gone may have left others.
        self._knows_all = False
        # Queues and jobs of grants that are to be taken back, if they still lie there.
        self._gone: list[tuple[str, UUID]] = []
        self._withdraw_at = 0.0
        self._turns = ageing.Turns()
        self.levels = Levels()
        self._aside = SetAside("pacing")
        self._circumstances: Circumstances | None = None
        self._circumstances_at = self._topped_up_at = 0.0
        # Grants of the queues that the last look left out, and the pause after it.
        self._left_out: dict[str, int] = {}
        self._pause = SHORTEST_SECONDS
        # Lanes that were asked in vain, where there are too many for one look.
        self._asked: set[Lane] = set()
        # The least pause after the last look.
        self.rest_seconds = SHORTEST_SECONDS

    def close(self) -> None:
        """Lets go of Redis."""
        self._doorbell.close()

    def look(self, named: Collection[UUID] = ()) -> float:
        """Grants what is free; returns in how many seconds it is worth while to look again.

        `named` are jobs that have become waiting since the last look, as far as they were named.
        """
        began = time.monotonic()
        try:
            pause = self._look(named)
        except REDIS_AWAY:
            # Whether grants have arrived nobody knows: the next look begins anew.
            self._granted.clear()
            self._gone.clear()
            self._knows_all = False
            self.levels.forget()
            return LONGEST_SECONDS
        finally:
            self.rest_seconds = max(SHORTEST_SECONDS, _REST_PER_LOOK * (time.monotonic() - began))
        if self.levels.are_slow:
            pause = min(pause, _WALK_SECONDS)
        return pause if pause == IDLE_SECONDS else max(pause, self.rest_seconds)

    def _look(self, named: Collection[UUID]) -> float:
        around = self._around()
        self.levels.hear(named, around.tasks)
        self.levels.look_below(around.tasks)
        taken, now = self._outstanding()
        self._withdraw_excess(around, taken)
        wanted = self._wanted(around, taken)
        patience = self._patience(around, taken, wanted)
        if not wanted:
            return patience
        self.levels.walk({name: name in around.granted for name in around.queues})
        if not self.levels.known:
            return min(patience, IDLE_SECONDS) if self.levels.is_walked else 0.0
        turn = _Turn(around, wanted, taken, now, aside=self._aside)
        for _ in range(_READS_PER_LOOK):
            held: dict[Place, list[Position]] = {}
            for grant in self._granted.values():
                held.setdefault(grant.place, []).append(grant.job)
            self.levels.read(turn.wanted, now=turn.now, held=held, tasks=around.tasks)
            pause, is_short = self._grant(turn)
            if not is_short:
                break
        self._aside.judge(turn.asked, turn.errors)
        return min(pause, patience) if self.levels.is_walked else 0.0

    def _patience(self, around: Circumstances, taken: Counter[str], wanted: Mapping[str, int]) -> float:
        """When a queue that is left out, because it has grants enough, may be short of them: soon while workers take
        them, and seldom while nobody does."""
        left_out = {name: count for name in around.queues.keys() - wanted.keys() if (count := taken[queue_key(name)])}
        is_taken_from = left_out != self._left_out
        self._left_out = left_out
        if not left_out:
            return IDLE_SECONDS
        self._pause = SHORTEST_SECONDS if is_taken_from else min(LONGEST_SECONDS, 2 * self._pause)
        return self._pause

    def _wanted(self, around: Circumstances, taken: Counter[str]) -> dict[str, int]:
        """How many more grants each queue can use: as long as it has half of them, none but now and then."""
        is_time = time.monotonic() - self._topped_up_at >= TOP_UP_SECONDS
        if is_time:
            self._topped_up_at = time.monotonic()
        wanted = {name: around.most[name] - taken[queue_key(name)] for name in around.queues}
        return {
            name: count for name, count in wanted.items() if count > 0 and (is_time or 2 * count >= around.most[name])
        }

    def _around(self) -> Circumstances:
        now = time.monotonic()
        if self._circumstances is None or now - self._circumstances_at >= CIRCUMSTANCES_SECONDS:
            before, self._circumstances = self._circumstances, Circumstances.now()
            self._circumstances_at = now
            if before is not None and (before.tasks, before.granted) != (
                self._circumstances.tasks,
                self._circumstances.granted,
            ):
                self.levels.forget()
        return self._circumstances

    def _outstanding(self) -> tuple[Counter[str], datetime]:
        """How many slots are held under each key by grants of jobs that still wait, and the moment of the look."""
        waiting, now = paced.still_waiting(self._granted)
        granted = {job_id: grant for job_id, grant in self._granted.items() if job_id in waiting}
        self._gone += [(grant.place.queue, job_id) for job_id, grant in self._granted.items() if job_id not in waiting]
        self._withdraw_gone()
        old = time.monotonic() - GRANT_SECONDS
        if any(grant.sent_at < old for grant in granted.values()):
            in_redis = {job_id for ids in self._doorbell.granted(QUEUES).values() for job_id in ids}
            for job_id, grant in list(granted.items()):
                if grant.sent_at < old and job_id not in in_redis:
                    del granted[job_id]
                    self.levels.given_back(grant.place, grant.job)
        self._move_up({job_id: grant for job_id, grant in granted.items() if grant.sent_at < old})
        self._granted = granted
        return Counter(key for grant in granted.values() for key in grant.keys), now

    def _withdraw_gone(self) -> None:
        """Takes the grants of jobs back that wait no more. Most were taken by workers; one whose job was cancelled or
        has expired would lie there until a worker has a free slot."""
        if not self._gone or (len(self._gone) < _MOST_GONE and time.monotonic() < self._withdraw_at):
            return
        by_queue: dict[str, list[UUID]] = {}
        for queue, job_id in self._gone:
            by_queue.setdefault(queue, []).append(job_id)
        self._doorbell.withdraw(by_queue)
        self._gone.clear()
        self._withdraw_at = time.monotonic() + GRANT_SECONDS

    def _withdraw_excess(self, around: Circumstances, taken: Counter[str]) -> None:
        """Workers have gone: takes back the least urgent grants, as far as they are more than the others can use."""
        for queue, most in around.most.items():
            excess = taken[queue_key(queue)] - most
            if excess <= 0:
                continue
            held = [grant for grant in self._granted.values() if grant.place.queue == queue]
            held.sort(key=lambda grant: (grant.place.priority, grant.job))
            self._doorbell.withdraw({queue: [grant.job.job_id for grant in held[-excess:]]})
            for grant in held[-excess:]:
                self._give_back(grant)
                taken.subtract(grant.keys)

    def _give_back(self, grant: Grant) -> None:
        del self._granted[grant.job.job_id]
        self.levels.given_back(grant.place, grant.job)

    def _move_up(self, granted: dict[UUID, Grant]) -> None:
        """A grant that has lain behind more urgent ones for long is the most urgent of all from now on: it holds slots
        of its keys, and others wait behind it."""
        for job_id, grant in granted.items():
            if time.monotonic() - grant.sent_at > ageing.OLD.total_seconds():
                self._doorbell.grant(grant.place.queue, {job_id: ageing.PRIORITY})

    def _grant(self, turn: "_Turn") -> tuple[float, bool]:
        """Grants as many jobs as there are free slots, and counts them as taken. Returns how long to wait for more, and
        whether more of a level might start of which no more jobs are known."""
        heads: dict[str, list[Head]] = {name: [] for name, count in turn.wanted.items() if count > 0}
        # Nothing less urgent than a job that is not known yet may start before it.
        horizons = dict.fromkeys(heads, _NO_PRIORITY)
        for place, known in self.levels.known.items():
            if place.queue in heads:
                if known.jobs:
                    heads[place.queue].append(Head(place.priority, known.jobs[0], place))
                elif not known.is_all:
                    horizons[place.queue] = min(horizons[place.queue], place.priority)
        pause, is_short = LONGEST_SECONDS, False
        for queue, some in heads.items():
            if some:
                horizons[queue], seconds = self._grant_in_order(turn, queue, some, horizons[queue])
                pause = min(pause, seconds)
            is_short = is_short or (turn.wanted[queue] > 0 and horizons[queue] < _NO_PRIORITY)
        granted, turn.granted = turn.granted, {}
        for grant in granted.values():
            self.levels.taken(grant.place, grant.job)
        self._granted |= granted
        self._gone = [one for one in self._gone if one[1] not in granted]
        self._push(turn)
        return 0.0 if is_short else pause, is_short

    def _push(self, turn: "_Turn") -> None:
        """Gives the grants of a look, as far as there is room for them in Redis. Those of which this leader does not
        know are taken back first: they may be another's, or be of a push whose answer was lost."""
        if turn.priorities and not self._knows_all:
            self._doorbell.withdraw_others(QUEUES, known=self._granted)
            self._knows_all = True
        for queue, priorities in turn.priorities.items():
            for job_id in self._doorbell.grant(queue, priorities, most=turn.most[queue]):
                self._give_back(self._granted[job_id])
                self._knows_all = False
        turn.priorities = {}

    def _grant_in_order(self, turn: "_Turn", queue: str, heads: list[Head], horizon: int) -> tuple[int, float]:
        """The most urgent first; every tenth time the one that has waited longest, behind more urgent ones.

        Returns the priority beyond which nothing may start yet, and how long to wait for more.
        """
        old = self._old(heads, turn.now)
        if not old:
            self._turns.nobody_waits(queue)
        fresh = [head for head in heads if head.lane not in self._asked]
        if not fresh:
            # Each was asked in its turn.
            self._asked.clear()
            return horizon, 0.0
        levels = heapq.nsmallest(LEVELS_AT_ONCE, fresh, key=_urgency)
        left = {head.place: len(self._jobs(head)) for head in levels}
        for start in range(0, len(levels), _LEVELS_PER_QUESTION):
            some = levels[start : start + _LEVELS_PER_QUESTION]
            turn.ask({one: self.levels.known[one.place].own for one in [*some, *old]})
            for one in sorted(Head(head.priority, job, head.place) for head in some for job in self._jobs(head)):
                if turn.wanted[queue] <= 0 or one.priority > horizon:
                    # Workers take grants within milliseconds.
                    return horizon, 0.0
                if old and self._turns.due(queue) and turn.take(old.pop(0), ageing.PRIORITY):
                    self._turns.taken(queue, 1)
                if turn.take(one, one.priority):
                    self._turns.passed(queue, 1)
                    left[one.place] -= 1
                    if not left[one.place] and not self.levels.known[one.place].is_all:
                        horizon = min(horizon, one.priority)
        if len(levels) < len(fresh):
            self._asked.update(level.lane for level in levels)
            return horizon, 0.0
        return horizon, turn.wait_seconds(levels)

    def _jobs(self, head: Head) -> list[Position]:
        return self.levels.known[head.place].jobs

    def _old(self, heads: list[Head], now: datetime) -> list[Head]:
        """The jobs that have waited longest, below the priority of the most urgent one."""
        first = min(head.priority for head in heads)
        below = [head for head in heads if head.priority > first and head.job.run_at < now - ageing.OLD]
        oldest = heapq.nsmallest(ageing.MOST_TURNS, below, key=lambda head: head.job)
        jobs = (Head(head.priority, job, head.place) for head in oldest for job in self._jobs(head))
        return heapq.nsmallest(
            ageing.MOST_TURNS, (one for one in jobs if one.job.run_at < now - ageing.OLD), key=lambda one: one.job
        )


class _Turn:
    """The grants of one look: which slots are free, and which jobs have taken them."""

    def __init__(
        self,
        around: Circumstances,
        wanted: dict[str, int],
        taken: Counter[str],
        now: datetime,
        *,
        aside: SetAside,
    ) -> None:
        self._around, self._taken, self.now = around, taken, now
        self.wanted, self.most = dict(wanted), around.most
        # None for those of which it cannot be said what may start.
        self._lanes: dict[Lane, PacedLane | None] = {}
        self._left_out, self._told = set(aside.left_out()), aside.told
        # The first jobs of those lanes, and what came of asking; and those of the others.
        self.errors: dict[UUID, Exception] = {}
        self.asked: list[UUID] = []
        self.granted: dict[UUID, Grant] = {}
        # By queue, as they are put to its doorbell.
        self.priorities: dict[str, dict[UUID, int]] = {}

    def ask(self, own: Mapping[Head, Mapping[str, Any]]) -> None:
        """Finds out what may start of the lanes of these jobs, whose own limits are named by their columns."""
        unknown = {}
        for head, limits in own.items():
            if head.lane in self._lanes:
                continue
            if head.job.job_id in self._left_out:
                self._lanes[head.lane] = None
            else:
                unknown[head] = limits
        try:
            self._ask(unknown)
        except Exception as error:  # whatever it was, it comes of one of them, or of all
            if may_pass(error):
                raise
            for head, limits in unknown.items():
                self._ask_alone(head, limits)

    def _ask_alone(self, head: Head, limits: Mapping[str, Any]) -> None:
        try:
            self._ask({head: limits})
        except Exception as error:  # whatever it is, the others may start
            if may_pass(error):
                raise
            if self._told.is_new(error, str(head.job.job_id)):
                logger.exception("id=%s: whether it may start cannot be said.", head.job.job_id)
            self._lanes[head.lane] = None
            self.errors[head.job.job_id] = error

    def _ask(self, own: Mapping[Head, Mapping[str, Any]]) -> None:
        if not own:
            return
        limits = {head.lane: Limits.of(self._around.queues[head.lane.queue], values) for head, values in own.items()}
        self._lanes |= {one.lane: one for one in slots.paced_lanes(limits, self.now)}
        self.asked += [head.job.job_id for head in own]

    def take(self, one: Head, priority: int) -> bool:
        """Grants a job, if slots are free for it under all its keys."""
        queue, job_id = one.place.queue, one.job.job_id
        lane = self._lanes[one.lane]
        if lane is None or job_id in self.granted or self.wanted[queue] <= 0 or not lane.is_free(self._taken):
            return False
        keys = frozenset({queue_key(queue), *lane.keys})
        self.granted[job_id] = Grant(one.place, one.job, keys, time.monotonic())
        self.priorities.setdefault(queue, {})[job_id] = priority
        self._taken.update(keys)
        self.wanted[queue] -= 1
        return True

    def wait_seconds(self, levels: Iterable[Head]) -> float:
        """When the first of these may have a free slot; the longest pause where nobody knows."""
        lanes = [lane for level in levels if (lane := self._lanes[level.lane]) is not None]
        moments = [lane.more_at(self._taken) for lane in lanes]
        return min([LONGEST_SECONDS, *(max(0.0, (at - self.now).total_seconds()) for at in moments if at is not None)])
