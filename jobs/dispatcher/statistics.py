"""Events of runs that ended become statistics, a batch at a time."""

from jobs import claims
from jobs.statistics import MINUTES_KEPT

EVENTS_SECONDS = 2.0
DAYS_SECONDS = 600.0
# Some 50 ms; so long do the dispatcher's other duties wait.
_BATCH = 5000


def run_once() -> bool:
    """Folds one batch of events; returns whether more are left.

    Killed in the middle, nothing has happened. When another does the same, each takes what the other does not.
    """
    return claims.fold_events(limit=_BATCH) == _BATCH


def fold_days() -> bool:
    """Makes one row of the minutes of each day that is over for long enough; nothing is left."""
    claims.fold_days(age=MINUTES_KEPT)
    return False
