"""How many jobs of each lane may start at this moment, and when there will be more (G11)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count
from django.db.models.functions import Now

from jobs import paced, selectors
from jobs.limits import Limits, concurrency_key, in_force, is_granted, queue_key
from jobs.models import Job, Limit, QueueControl
from jobs.queues import QUEUES

# So that a look stays short. Where more keys wait at once, each is looked at in its turn.
LANES_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Slots:
    """How many jobs may start under a key at this moment, and when there will be more; None where nobody knows."""

    key: str
    free: int
    more_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PacedLane:
    """A lane with limits in which jobs wait. Each of its jobs takes one slot under each key."""

    lane: paced.Lane
    slots: Sequence[Slots]

    def is_free(self, taken: Counter[str]) -> bool:
        """Whether one of its jobs may start, where so many slots under each key are taken already."""
        return all(taken[slots.key] < slots.free for slots in self.slots)

    def more_at(self, taken: Counter[str]) -> datetime | None:
        """When it may be free again that is not free now; None where nobody knows."""
        moments = [slots.more_at for slots in self.slots if taken[slots.key] >= slots.free]
        return None if None in moments else max((moment for moment in moments if moment is not None), default=None)

    @property
    def keys(self) -> set[str]:
        """The keys under which each of its jobs takes a slot."""
        return {slots.key for slots in self.slots}


class Round:
    """Walks through all lanes with limits in which jobs wait, however many there are, look by look."""

    def __init__(self) -> None:
        # The last lane of each queue that was looked at.
        self._after: dict[str, str] = {}
        # Whether there are more than those of the last look.
        self.is_more = False

    def next(self) -> tuple[list[PacedLane], datetime | None]:
        """The next of them, and the moment of the look by the database's clock. Halted queues are left out.

        Jobs without limits of their own are looked at each time, whatever others do.
        """
        controls = QueueControl.objects.in_bulk()
        granted = [name for name in QUEUES if is_granted(name, controls.get(name))]
        after = {name: self._after.get(name, "") for name in QUEUES}
        waiting, now = paced.waiting_lanes(after=after, limit=LANES_AT_ONCE, granted=granted)
        own = {lane["queue"]: lane["lane"] for lane in waiting if lane["lane"]}
        self.is_more = sum(bool(lane["lane"]) for lane in waiting) >= LANES_AT_ONCE
        self._after = {**after, **own} if self.is_more else {}
        return ([], None) if now is None else (_paced(waiting, now, controls), now)


def _paced(waiting: Iterable[dict[str, Any]], now: datetime, controls: Mapping[str, QueueControl]) -> list[PacedLane]:
    lanes = list(_with_limits(waiting, controls))
    rates = list({(key, rate) for lane in lanes for key, rate in lane.rates.items() if rate is not None})
    starts, halted, running = paced.free_starts(rates), _halted_keys(lanes), _running(lanes)
    most = selectors.most_messages()
    found = []
    for lane in lanes:
        # Workers take grants within milliseconds.
        slots = [Slots(queue_key(lane.queue), most[lane.queue], now), *_of_concurrency(lane, running, now)]
        slots += [Slots(key, 0, halted[key]) for key in lane.rates if key in halted]
        slots += [Slots(key, *starts[key, rate]) for key, rate in lane.rates.items() if rate is not None]
        quiet_until = lane.quiet_until(now)
        if quiet_until is not None:
            slots.append(Slots(queue_key(lane.queue), 0, quiet_until))
        found.append(PacedLane(paced.Lane(lane.queue, lane.lane), slots))
    return found


def _with_limits(waiting: Iterable[dict[str, Any]], controls: Mapping[str, QueueControl]) -> Iterable[Limits]:
    queues = {name: in_force(name, controls.get(name)) for name in QUEUES}
    for name in selectors.halted_queues():
        queues.pop(name, None)
    for lane in waiting:
        queue = queues.get(lane["queue"])
        if queue is not None and (lane["lane"] or is_granted(queue.name, controls.get(queue.name))):
            yield Limits.of(queue, lane)


def _halted_keys(lanes: list[Limits]) -> dict[str, datetime]:
    """Until when nothing starts under a rate key, where a job has raised `RateLimited`."""
    keys = {key for lane in lanes for key in lane.rates}
    halted = Limit.objects.filter(pk__in=keys, rate_limited_until__gt=Now()) if keys else Limit.objects.none()
    return {key: until for key, until in halted.values_list("pk", "rate_limited_until") if until is not None}


def _of_concurrency(lane: Limits, running: Counter[str], now: datetime) -> Iterable[Slots]:
    """When a job ends, nobody says: it may be at once."""
    limits = [(queue_key(lane.queue), lane.queue_concurrency)]
    if lane.concurrency_key is not None:
        limits.append((concurrency_key(lane.concurrency_key), lane.concurrency))
    return [Slots(key, most - running[key], now) for key, most in limits if most is not None]


def _running(lanes: list[Limits]) -> Counter[str]:
    """How many jobs run under each key, where somebody's concurrency depends on it."""
    running: Counter[str] = Counter()
    jobs = Job.objects.filter(state="active").order_by()
    if any(lane.queue_concurrency is not None for lane in lanes):
        queues = jobs.values_list("queue").annotate(count=Count("*"))
        running.update({queue_key(queue): count for queue, count in queues})
    if any(lane.concurrency_key is not None for lane in lanes):
        keys = jobs.filter(concurrency_key__isnull=False).values_list("concurrency_key").annotate(count=Count("*"))
        running.update({concurrency_key(key): count for key, count in keys if key is not None})
    return running
