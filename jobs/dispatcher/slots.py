"""How many jobs of each lane may start at this moment, and when there will be more (G11)."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jobs import paced
from jobs.limits import Limits, concurrency_key, queue_key

# Of a rate, no more than these are ever granted at once.
_STARTS_AT_ONCE = 500


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


def paced_lanes(lanes: Mapping[paced.Lane, Limits], now: datetime) -> list[PacedLane]:
    """What may start of each of these lanes at this moment, which is the database's."""
    rates = list({rate for limits in lanes.values() for rate in limits.rates.items()})
    starts = paced.free_starts(rates, most=_STARTS_AT_ONCE)
    running = _running(lanes.values())
    found = []
    for lane, limits in lanes.items():
        slots = _of_concurrency(limits, running, now)
        for key, rate in limits.rates.items():
            free, more_at, halted_until = starts[key, rate]
            if free is not None:
                slots.append(Slots(key, free, more_at))
            if halted_until is not None:
                slots.append(Slots(key, 0, halted_until))
        quiet_until = limits.quiet_until(now)
        if quiet_until is not None:
            slots.append(Slots(queue_key(lane.queue), 0, quiet_until))
        found.append(PacedLane(lane, slots))
    return found


def _of_concurrency(lane: Limits, running: Counter[str], now: datetime) -> list[Slots]:
    """When a job ends, nobody says: it may be at once."""
    limits = [(queue_key(lane.queue), lane.queue_concurrency)]
    if lane.concurrency_key is not None:
        limits.append((concurrency_key(lane.concurrency_key), lane.concurrency))
    return [Slots(key, most - running[key], now) for key, most in limits if most is not None]


def _running(lanes: Collection[Limits]) -> Counter[str]:
    """How many jobs run under each key, where somebody's concurrency depends on it."""
    return paced.running(
        keys={lane.concurrency_key for lane in lanes if lane.concurrency_key is not None},
        queues={lane.queue for lane in lanes if lane.queue_concurrency is not None},
    )
