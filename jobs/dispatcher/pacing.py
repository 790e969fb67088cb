"""Paces: gives hints at jobs with limits only as they may start, the most urgent first (G11).

A hint is a grant, good for a second, of a slot that is free at this moment. So no slot of a worker is blocked by a job
that has to wait, and nothing bursts when workers come back. The claim decides: a hint too many starts nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import Celery
from django.conf import settings
from django.db.models import Count
from django.db.models.functions import Now

from jobs import claims
from jobs.dispatcher.hints import REDIS_AWAY, Hints
from jobs.limits import Limits, concurrency_key, in_force, queue_key
from jobs.models import Job, Limit, QueueControl
from jobs.queues import QUEUES
from jobs.worker.thread import DutyThread

# How long a hint that nobody has taken up holds its slot.
GRANT_SECONDS = 1.0
# A look comes when the next slot is free, but not sooner than this, nor later than that.
SHORTEST_SECONDS = 0.02
LONGEST_SECONDS = 0.2
# A look at very many lanes takes its time; it must leave PostgreSQL to others for longer than that.
_REST_PER_LOOK = 2.0


@dataclass(frozen=True, slots=True)
class Slot:
    """How many jobs may start under a key at this moment, and when there will be more; None where nobody knows."""

    key: str
    free: int
    more_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A hint that was sent: the keys whose slots it holds, and when, by this process's clock."""

    keys: tuple[str, ...]
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

    def close(self) -> None:
        """Lets go of Redis."""
        self._hints.close()

    def look(self) -> float:
        """Grants what is free; returns in how many seconds it is worth while to look again."""
        began = time.monotonic()
        waiting, now = claims.waiting_lanes()
        lanes = _paced(waiting)
        if now is None or not lanes:
            self._granted.clear()
            return LONGEST_SECONDS
        slots = _slots_of(lanes, now)
        try:
            taken = self._outstanding()
            self._grant(lanes, slots, taken)
        except REDIS_AWAY:
            # The top-up says so. Whether hints have arrived, nobody knows: the next look begins anew.
            self._granted.clear()
            return LONGEST_SECONDS
        waits = [_wait_seconds(slot, now) for lane in slots for slot in lane if taken[slot.key] >= slot.free]
        pause = min([LONGEST_SECONDS, *waits])
        return max(pause, SHORTEST_SECONDS, _REST_PER_LOOK * (time.monotonic() - began))

    def _outstanding(self) -> Counter[str]:
        """How many slots are held under each key by hints at jobs that still wait."""
        waiting = dict(Job.objects.filter(pk__in=self._granted).values_list("pk", "state"))
        old = time.monotonic() - GRANT_SECONDS
        open_grants = {job_id: grant for job_id, grant in self._granted.items() if waiting.get(job_id) == "waiting"}
        if any(grant.sent_at < old for grant in open_grants.values()):
            in_redis = set().union(*self._hints.of(QUEUES).values())
            open_grants = {
                job_id: grant for job_id, grant in open_grants.items() if grant.sent_at >= old or job_id in in_redis
            }
        self._granted = open_grants
        return Counter(key for grant in open_grants.values() for key in grant.keys)

    def _grant(self, lanes: list[Limits], slots: list[list[Slot]], taken: Counter[str]) -> None:
        """Sends hints for as many jobs as there are free slots, and counts them as taken."""
        places = [place for place, own in enumerate(slots) if _is_free(own, taken)]
        if not places:
            return
        wanted = claims.most_urgent(
            [(lanes[place].queue, lanes[place].lane) for place in places],
            limit=-(-settings.JOBS_WINDOW // len(places)),
            without=self._granted,
        )
        granted = {}
        for job_id, number in wanted:
            own = slots[places[number]]
            if _is_free(own, taken):
                keys = tuple({slot.key for slot in own})
                taken.update(keys)
                granted[job_id] = Grant(keys, time.monotonic())
        if granted:
            self._granted |= granted
            self._hints.send(granted)


def _is_free(slots: Iterable[Slot], taken: Counter[str]) -> bool:
    return all(taken[slot.key] < slot.free for slot in slots)


def _wait_seconds(slot: Slot, now: datetime) -> float:
    return LONGEST_SECONDS if slot.more_at is None else (slot.more_at - now).total_seconds()


def _paced(lanes: Iterable[dict[str, Any]]) -> list[Limits]:
    """The limits of those lanes that have any, without those of paused queues."""
    controls = QueueControl.objects.in_bulk()
    queues = {name: in_force(name, controls.get(name)) for name in QUEUES}
    paused = {control.name for control in controls.values() if control.paused_at is not None}
    return [
        Limits.of(queues[lane["queue"]], lane)
        for lane in lanes
        if lane["queue"] in queues.keys() - paused and (lane["lane"] or queues[lane["queue"]].is_paced)
    ]


def _slots_of(lanes: list[Limits], now: datetime) -> list[list[Slot]]:
    """What each lane needs to be free, for one of its jobs to start."""
    rates = list({(key, rate) for lane in lanes for key, rate in lane.rates.items() if rate is not None})
    starts = claims.free_starts(rates)
    held = _held({queue_key(lane.queue) for lane in lanes} | {key for lane in lanes for key in lane.rates})
    running = _running(lanes)
    return [_slots(lane, now, starts, held, running) for lane in lanes]


def _slots(lane: Limits, now: datetime, starts: Any, held: dict[str, datetime], running: Counter[str]) -> list[Slot]:
    queue = queue_key(lane.queue)
    slots = [Slot(queue, settings.JOBS_WINDOW)]
    slots += [Slot(key, 0, held[key]) for key in {queue, *lane.rates} if key in held]
    slots += [Slot(key, *starts[key, rate]) for key, rate in lane.rates.items() if rate is not None]
    quiet_until = lane.quiet_until(now)
    if quiet_until is not None:
        slots.append(Slot(queue, 0, quiet_until))
    # Nobody says when a job ends: it may be at once.
    if lane.queue_concurrency is not None:
        slots.append(Slot(queue, max(0, lane.queue_concurrency - running[queue]), now))
    if lane.concurrency_key is not None and lane.concurrency is not None:
        key = concurrency_key(lane.concurrency_key)
        slots.append(Slot(key, max(0, lane.concurrency - running[key]), now))
    return slots


def _held(keys: Collection[str]) -> dict[str, datetime]:
    """Until when each of these keys is paused that is."""
    held = Limit.objects.filter(pk__in=keys, paused_until__gt=Now())
    return {key: until for key, until in held.values_list("pk", "paused_until") if until is not None}


def _running(lanes: list[Limits]) -> Counter[str]:
    """How many jobs run under each key on which somebody's concurrency depends."""
    running: Counter[str] = Counter()
    jobs = Job.objects.filter(state="active").order_by()
    if any(lane.queue_concurrency is not None for lane in lanes):
        counts = jobs.values_list("queue").annotate(Count("*"))
        running.update({queue_key(queue): count for queue, count in counts})
    if any(lane.concurrency_key is not None for lane in lanes):
        counts = jobs.filter(concurrency_key__isnull=False).values_list("concurrency_key").annotate(Count("*"))
        running.update({concurrency_key(key or ""): count for key, count in counts})
    return running
