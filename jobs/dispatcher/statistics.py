"""Events of runs that ended become statistics, a batch at a time; and arrivals do, minute by minute."""

import time
from collections import deque
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from uuid import UUID

from jobs import claims, folds
from jobs.statistics import MINUTES_KEPT

EVENTS_SECONDS = 2.0
ARRIVALS_SECONDS = 10.0
DAYS_SECONDS = 600.0
# Some 50 ms; so long do the dispatcher's other duties wait.
_BATCH = 5000
# An event may be committed so long after a later one. All that is older has been taken, or is found by a look at all.
_LATE_SECONDS = 60.0
_ALL_SECONDS = 600.0
_MINUTE = timedelta(minutes=1)
# A new leader counts those of so long ago, as nobody may have counted them; for as long, ended jobs are kept.
_ARRIVALS_BACK = timedelta(hours=1)
_MINUTES_AT_ONCE = 5
# Of transactions that are committed late: what was counted so long ago is counted again at each look, and what was so
# much earlier once a minute. A job that comes later still is not counted.
_ARRIVALS_LATE = timedelta(minutes=1)
_ARRIVALS_VERY_LATE, _VERY_LATE_SECONDS = timedelta(minutes=10), 60.0
# The pause after a count is so many times its length, where that is longer than usual, and at most so long.
_ARRIVALS_SHARE = 100.0
_ARRIVALS_LONGEST_SECONDS, _VERY_LATE_LONGEST_SECONDS = 40.0, 300.0


class Fold:
    """Folds events, and tells of which flows' members they were.

    It begins behind those that were folded a while ago: where somebody holds an old snapshot, PostgreSQL keeps what is
    deleted, and a look from the beginning would walk over all of it.
    """

    def __init__(self, members_ended: Callable[[Collection[UUID]], None] | None = None) -> None:
        self._members_ended = members_ended
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
        folded = folds.fold_events(limit=_BATCH, after=self._after)
        if folded.last_id is not None:
            self._taken.append((now, folded.last_id))
        if folded.flow_ids and self._members_ended is not None:
            self._members_ended(folded.flow_ids)
        return folded.event_count == _BATCH


class Arrivals:
    """Counts the jobs that were made, and counts a minute again until those that are committed late are in it.

    A count reads all jobs of its minutes: where they are hundreds of thousands, they are counted again less often.
    """

    def __init__(self) -> None:
        self._from: datetime | None = None
        self._not_before = self._back_at = 0.0
        # Of the counts that follow each other at once: how long they took, and whether they began far back.
        self._took_seconds = 0.0
        self._is_far_back = False

    def run_once(self) -> bool:
        """Counts some minutes, if it is time; returns whether more are left. Two at once write the same."""
        began = time.monotonic()
        if began < self._not_before:
            return False
        this_minute = claims.now().replace(second=0, microsecond=0)
        start_at = self._from or this_minute - _ARRIVALS_BACK
        if began >= self._back_at:
            self._back_at, self._is_far_back = began + _VERY_LATE_SECONDS, True
            start_at = min(start_at, this_minute - _ARRIVALS_VERY_LATE)
        end_at = min(start_at + _MINUTES_AT_ONCE * _MINUTE, this_minute + _MINUTE)
        folds.count_arrivals(start_at, end_at)
        self._from = min(end_at, this_minute - _ARRIVALS_LATE)
        self._took_seconds += time.monotonic() - began
        if end_at <= this_minute:
            return True
        self._rest()
        return False

    def _rest(self) -> None:
        now, pause = time.monotonic(), _ARRIVALS_SHARE * self._took_seconds
        if pause > ARRIVALS_SECONDS:
            self._not_before = now + min(pause, _ARRIVALS_LONGEST_SECONDS)
        if self._is_far_back:
            self._back_at = now + min(max(pause, _VERY_LATE_SECONDS), _VERY_LATE_LONGEST_SECONDS)
        self._took_seconds, self._is_far_back = 0.0, False


def fold_days() -> bool:
    """Makes one row of the minutes of each day that is over for long enough; nothing is left."""
    folds.fold_days(age=MINUTES_KEPT)
    return False
