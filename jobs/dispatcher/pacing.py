"""Paces: gives hints at jobs with limits only as they may start, the most urgent first (G11).

A hint is a grant, good for a second, of a slot that is free at this moment. So no slot of a worker is blocked by a job
that has to wait, and nothing bursts when workers come back. The claim decides: a hint too many starts nothing.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from celery import Celery
from django.conf import settings

from jobs import claims
from jobs.dispatcher import ageing
from jobs.dispatcher.hints import REDIS_AWAY, Hints
from jobs.dispatcher.slots import PacedLane, Round
from jobs.models import Job
from jobs.queues import QUEUES
from jobs.worker.thread import DutyThread

# How long a hint that nobody has taken up holds its slots.
GRANT_SECONDS = 1.0
# A look comes when the next slot is free, but not sooner than this, nor later than that.
SHORTEST_SECONDS = 0.02
LONGEST_SECONDS = 0.2
# A look at many lanes takes its time; it must leave PostgreSQL to others for longer than that.
_REST_PER_LOOK = 2.0
# Among more lanes than this, old jobs are looked for by chance.
_LANES_OF_OLD = 50


@dataclass(frozen=True, slots=True)
class Grant:
    """A hint that was sent: the keys under which it holds a slot, and when, by this process's clock."""

    keys: set[str]
    sent_at: float


class PacerThread(DutyThread):
    """Paces while this process leads the dispatcher. A thread of its own, because the other duties take their time."""

    def __init__(self, app: Celery, *, leads: Callable[[], bool]) -> None:
        super().__init__("jobs-pacer", LONGEST_SECONDS)
        self.pacer = Pacer(app)
        self._leads = leads

    def run_once(self) -> None:
        """One look, if it is ours."""
        self.pause_seconds = self.pacer.look() if self._leads() else LONGEST_SECONDS


class Pacer:
    """Gives grants, look by look."""

    def __init__(self, app: Celery) -> None:
        self._hints = Hints(app, name="jobs-pacer")
        self._granted: dict[UUID, Grant] = {}
        self._turns = ageing.Turns()
        self._round = Round()

    def close(self) -> None:
        """Lets go of Redis."""
        self._hints.close()

    def look(self) -> float:
        """Grants what is free; returns in how many seconds it is worth while to look again."""
        began = time.monotonic()
        lanes, now = self._round.next()
        if now is None or not lanes:
            return LONGEST_SECONDS
        try:
            taken = self._outstanding()
            self._grant([lane for lane in lanes if lane.is_free(taken)], taken)
        except REDIS_AWAY:
            # The top-up says so. Whether hints have arrived nobody knows: the next look begins anew.
            self._granted.clear()
            return LONGEST_SECONDS
        pause = min(LONGEST_SECONDS, *(_wait_seconds(lane, taken, now) for lane in lanes))
        return max(pause, SHORTEST_SECONDS, _REST_PER_LOOK * (time.monotonic() - began))

    def _outstanding(self) -> Counter[str]:
        """How many slots are held under each key by hints at jobs that still wait."""
        states = dict(Job.objects.filter(pk__in=self._granted).values_list("pk", "state"))
        granted = {job_id: grant for job_id, grant in self._granted.items() if states.get(job_id) == "waiting"}
        old = time.monotonic() - GRANT_SECONDS
        if any(grant.sent_at < old for grant in granted.values()):
            in_redis = {job_id for lists in self._hints.of(QUEUES).values() for ids in lists for job_id in ids}
            granted = {job_id: grant for job_id, grant in granted.items() if grant.sent_at >= old or job_id in in_redis}
        self._granted = granted
        return Counter(key for grant in granted.values() for key in grant.keys)

    def _grant(self, lanes: list[PacedLane], taken: Counter[str]) -> None:
        """Sends hints for as many jobs of these lanes as there are free slots, and counts them as taken."""
        if not lanes:
            return
        by_lane = {one.lane: one for one in lanes}
        limit = -(-settings.JOBS_WINDOW // len(lanes))
        urgent = claims.most_urgent(list(by_lane), limit=limit, without=self._granted)
        old = self._old(by_lane, urgent)
        granted: dict[UUID, Grant] = {}
        ahead: dict[UUID, Grant] = {}

        def take(job: claims.Waiting, into: dict[UUID, Grant]) -> bool:
            is_free = job.job_id not in ahead and by_lane[job.lane].is_free(taken)
            if is_free:
                into[job.job_id] = Grant(by_lane[job.lane].keys, time.monotonic())
                taken.update(by_lane[job.lane].keys)
            return is_free

        for job in urgent:
            waiting = old.get(job.lane.queue, [])
            if waiting and self._turns.due(job.lane.queue) and take(waiting.pop(0), ahead):
                self._turns.taken(job.lane.queue, 1)
            if take(job, granted):
                self._turns.passed(job.lane.queue, 1)
        self._granted |= granted | ahead
        self._hints.send(ahead, priority=ageing.PRIORITY)
        self._hints.send(granted)

    def _old(self, lanes: Collection[claims.Lane], urgent: list[claims.Waiting]) -> dict[str, list[claims.Waiting]]:
        """The jobs of each queue that have waited longest, behind more urgent ones that may start now."""
        first: dict[str, int] = {}
        for job in urgent:
            first.setdefault(job.lane.queue, job.priority)
        some = random.sample(list(lanes), min(len(lanes), _LANES_OF_OLD))
        below = {lane: first[lane.queue] for lane in some if lane.queue in first}
        found: dict[str, list[claims.Waiting]] = {}
        for job in claims.longest_waiting(below, age=ageing.OLD, limit=ageing.MOST_TURNS, without=self._granted):
            found.setdefault(job.lane.queue, []).append(job)
        not_asked = {lane.queue for lane in lanes if lane not in below}
        for queue in first.keys() - found.keys() - not_asked:
            self._turns.nobody_waits(queue)
        return found


def _wait_seconds(lane: PacedLane, taken: Counter[str], now: datetime) -> float:
    more_at = lane.more_at(taken)
    return LONGEST_SECONDS if more_at is None else (more_at - now).total_seconds()
