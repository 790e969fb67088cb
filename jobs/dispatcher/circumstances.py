"""What holds for all jobs of a queue at a moment: its limits, whether it is halted, and who takes from it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from jobs import selectors
from jobs.limits import in_force, is_granted
from jobs.models import QueueControl
from jobs.queues import QUEUES, Queue


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Of the queues that have workers and are not halted. Claims ask anew, so it may be a little old."""

    queues: dict[str, Queue]
    # Those of which every job needs a grant, whether it has limits of its own or not.
    granted: frozenset[str]
    # How many grants of each queue are of use at once, and the tasks that its workers know; None for all.
    most: dict[str, int]
    tasks: dict[str, Collection[str] | None]

    @classmethod
    def now(cls) -> Self:
        """Those of this moment."""
        controls = QueueControl.objects.in_bulk()
        halted = set(selectors.halted_queues())
        workers = list(selectors.living_workers())
        tasks = selectors.known_tasks(workers)
        served = [name for name in QUEUES if name not in halted and tasks[name] != set()]
        return cls(
            queues={name: in_force(name, controls.get(name)) for name in served},
            granted=frozenset(name for name in served if is_granted(name, controls.get(name))),
            most=selectors.most_grants(workers),
            tasks={name: tasks[name] for name in served},
        )
