"""Where many jobs with limits died: places that divide what is to be walked over.

Between two levels that the leader knows, many others may have lived. Beside an old snapshot PostgreSQL keeps the index
entries of their jobs, and one look for what waits between the two reads all of them. So the leader remembers some of
the lanes that it knew, as evenly among the dead as chance has it, and looks from each of these to the next.
"""

from random import randrange

from jobs.paced import Place

# So many are remembered, and each stands for at most so many that were not.
MOST_MARKS = 1_000
_MEMORY = 50
# Before each priority of a lane.
_BEFORE_ALL = -1


class Marks:
    """A sample of the lanes that the leader knew."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._count = 0

    def add(self, place: Place) -> None:
        """The leader knows this level no more."""
        self._count = min(self._count + 1, _MEMORY * MOST_MARKS)
        if len(self._places) < MOST_MARKS:
            self._places.append(place)
        elif randrange(self._count) < MOST_MARKS:  # noqa: S311  # a sample, no secret
            self._places[randrange(MOST_MARKS)] = place  # noqa: S311

    def places(self) -> set[Place]:
        """Before the levels of each lane; for another thread, too."""
        return {place._replace(priority=_BEFORE_ALL) for place in self._places.copy() if place.lane}

    def of(self, queue: str) -> set[tuple[str, int]]:
        """Those of a queue, as lane and priority."""
        return {place[1:] for place in self.places() if place.queue == queue}
