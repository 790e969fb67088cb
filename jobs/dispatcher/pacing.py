"""Paces: grants jobs with limits only as they may start, the most urgent first (G11).

A grant is good for a second, and for a slot that is free at this moment. So no slot of a worker is blocked by a job
that has to wait, and nothing bursts when workers come back. The claim decides: a grant too many starts nothing.
"""

import random
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jobs import paced, selectors
from jobs.dispatcher import ageing
from jobs.dispatcher.slots import PacedLane, Round
from jobs.doorbell import REDIS_AWAY, Doorbell
from jobs.models import Job
from jobs.queues import QUEUES

# How long a grant that nobody has taken up holds its slots.
GRANT_SECONDS = 1.0
# While nothing waits that has limits.
IDLE_SECONDS = 1.0
# Of all lanes together.
_JOBS_PER_LOOK = 500
# A look comes when the next slot is free, but not sooner than this, nor later than that.
SHORTEST_SECONDS = 0.02
LONGEST_SECONDS = 0.2
# A look at many lanes takes its time; it must leave PostgreSQL to others for longer than that.
_REST_PER_LOOK = 2.0
# Among more lanes than this, old jobs are looked for by chance.
_LANES_OF_OLD = 50


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant that was given: the keys under which it holds a slot, and when, by this process's clock."""

    keys: set[str]
    sent_at: float
    queue: str


class Pacer:
    """Gives grants, look by look."""

    def __init__(self) -> None:
        self._doorbell = Doorbell.patient()
        self._granted: dict[UUID, Grant] = {}
        self._turns = ageing.Turns()
        self._round = Round()
        # The least pause after the last look.
        self.rest_seconds = SHORTEST_SECONDS

    def close(self) -> None:
        """Lets go of Redis."""
        self._doorbell.close()

    def look(self) -> float:
        """Grants what is free; returns in how many seconds it is worth while to look again."""
        began = time.monotonic()
        lanes, now = self._round.next()
        self.rest_seconds = max(SHORTEST_SECONDS, _REST_PER_LOOK * (time.monotonic() - began))
        if now is None or not lanes:
            return IDLE_SECONDS if now is None else LONGEST_SECONDS
        try:
            taken = self._outstanding()
            self._grant([lane for lane in lanes if lane.is_free(taken)], taken)
        except REDIS_AWAY:
            # Whether grants have arrived nobody knows: the next look begins anew.
            self._granted.clear()
            return LONGEST_SECONDS
        pause = min(LONGEST_SECONDS, *(_wait_seconds(lane, taken, now) for lane in lanes))
        self.rest_seconds = max(SHORTEST_SECONDS, _REST_PER_LOOK * (time.monotonic() - began))
        return self.rest_seconds if self._round.is_more else max(pause, self.rest_seconds)

    def _outstanding(self) -> Counter[str]:
        """How many slots are held under each key by grants of jobs that still wait."""
        states = dict(Job.objects.filter(pk__in=self._granted).values_list("pk", "state"))
        granted = {job_id: grant for job_id, grant in self._granted.items() if states.get(job_id) == "waiting"}
        old = time.monotonic() - GRANT_SECONDS
        if any(grant.sent_at < old for grant in granted.values()):
            in_redis = {job_id for ids in self._doorbell.granted(QUEUES).values() for job_id in ids}
            granted = {job_id: grant for job_id, grant in granted.items() if grant.sent_at >= old or job_id in in_redis}
        self._move_up({job_id: grant for job_id, grant in granted.items() if grant.sent_at < old})
        self._granted = granted
        return Counter(key for grant in granted.values() for key in grant.keys)

    def _move_up(self, granted: dict[UUID, Grant]) -> None:
        """A grant that has lain behind more urgent ones for long is the most urgent of all from now on: it holds slots
        of its keys, and others wait behind it."""
        for job_id, grant in granted.items():
            if time.monotonic() - grant.sent_at > ageing.OLD.total_seconds():
                self._doorbell.grant(grant.queue, {job_id: ageing.PRIORITY})

    def _grant(self, lanes: list[PacedLane], taken: Counter[str]) -> None:
        """Grants as many jobs of these lanes as there are free slots, and counts them as taken."""
        if not lanes:
            return
        by_lane = {one.lane: one for one in lanes}
        limit = -(-_JOBS_PER_LOOK // len(lanes))
        # A job whose task no worker knows holds no slot of those behind it.
        known = selectors.known_tasks().values()
        tasks = None if None in known else {task for some in known for task in some or ()}
        urgent = paced.most_urgent(list(by_lane), limit=limit, without=self._granted, tasks=tasks)
        old = self._old(by_lane, urgent, tasks)
        granted: dict[UUID, Grant] = {}
        ahead: dict[UUID, Grant] = {}
        gone_ahead: list[paced.Waiting] = []

        def take(job: paced.Waiting, into: dict[UUID, Grant]) -> bool:
            is_free = job.job_id not in ahead and by_lane[job.lane].is_free(taken)
            if is_free:
                into[job.job_id] = Grant(by_lane[job.lane].keys, time.monotonic(), job.lane.queue)
                taken.update(by_lane[job.lane].keys)
            return is_free

        for job in urgent:
            waiting = old.get(job.lane.queue, [])
            if waiting and self._turns.due(job.lane.queue) and take(oldest := waiting.pop(0), ahead):
                gone_ahead.append(oldest)
                self._turns.taken(job.lane.queue, 1)
            if take(job, granted):
                self._turns.passed(job.lane.queue, 1)
        self._granted |= granted | ahead
        priorities = {job.job_id: job.priority for job in urgent if job.job_id in granted}
        priorities |= dict.fromkeys(ahead, ageing.PRIORITY)
        queues = {job.job_id: job.lane.queue for job in (*urgent, *gone_ahead)}
        for queue in {queues[job_id] for job_id in priorities}:
            self._doorbell.grant(
                queue, {job_id: priority for job_id, priority in priorities.items() if queues[job_id] == queue}
            )

    def _old(
        self, lanes: Collection[paced.Lane], urgent: list[paced.Waiting], tasks: Collection[str] | None
    ) -> dict[str, list[paced.Waiting]]:
        """The jobs of each queue that have waited longest, behind more urgent ones that may start now."""
        first: dict[str, int] = {}
        for job in urgent:
            first.setdefault(job.lane.queue, job.priority)
        some = random.sample(list(lanes), min(len(lanes), _LANES_OF_OLD))
        below = {lane: first[lane.queue] for lane in some if lane.queue in first}
        found: dict[str, list[paced.Waiting]] = {}
        for job in paced.longest_waiting(
            below, age=ageing.OLD, limit=ageing.MOST_TURNS, without=self._granted, tasks=tasks
        ):
            found.setdefault(job.lane.queue, []).append(job)
        not_asked = {lane.queue for lane in lanes if lane not in below}
        for queue in first.keys() - found.keys() - not_asked:
            self._turns.nobody_waits(queue)
        return found


def _wait_seconds(lane: PacedLane, taken: Counter[str], now: datetime) -> float:
    more_at = lane.more_at(taken)
    return LONGEST_SECONDS if more_at is None else (more_at - now).total_seconds()
