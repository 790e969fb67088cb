"""Events of runs that ended become statistics, a batch at a time."""

import time
from collections import deque

from jobs import folds
from jobs.statistics import MINUTES_KEPT

EVENTS_SECONDS = 2.0
DAYS_SECONDS = 600.0
# Some 50 ms; so long do the dispatcher's other duties wait.
_BATCH = 5000
# An event may be committed so long after a later one. All that is older has been taken, or is found by a look at all.
_LATE_SECONDS = 60.0
_ALL_SECONDS = 600.0


class Fold:
    """Folds events. It begins behind those that were folded a while ago: where somebody holds an old snapshot,
    PostgreSQL keeps what is deleted, and a look from the beginning would walk over all of it."""

    def __init__(self) -> None:
        self._taken: deque[tuple[float, int]] = deque()
        self._after = 0
        self._all_at = 0.0

    def run_once(self) -> bool:
        """Folds one batch of events; returns whether more are left.

        Killed in the middle, nothing has happened. When another does the same, each takes what the other does not.
        """
        now = time.monotonic()
        if now >= self._all_at:
            self._all_at, self._after = now + _ALL_SECONDS, 0
        while self._taken and now - self._taken[0][0] > _LATE_SECONDS:
            self._after = self._taken.popleft()[1]
        count, last = folds.fold_events(limit=_BATCH, after=self._after)
        if last is not None:
            self._taken.append((now, last))
        return count == _BATCH


def fold_days() -> bool:
    """Makes one row of the minutes of each day that is over for long enough; nothing is left."""
    folds.fold_days(age=MINUTES_KEPT)
    return False
