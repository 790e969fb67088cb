"""The one way in which a job's state changes outside of a claim."""

from typing import Any

from django.db.models import QuerySet

from jobs.models import Job
from jobs.states import Cause, sources, target

# The run that ends so may have begun: the next one is told, as by a broker that delivers a message again.
_DELIVERED_AGAIN = (Cause.STALLED, Cause.HANDED_BACK)


def transition(jobs: QuerySet[Job], cause: Cause, **changes: Any) -> int:
    """Moves those of `jobs` that are in a state where `cause` applies; returns how many moved.

    A compare-and-set: who comes second finds 0 rows and has lost the race. `changes` are further columns.
    """
    if cause in _DELIVERED_AGAIN:
        changes["redelivered"] = True
    states = [str(state) for state in sources(cause)]
    return jobs.filter(state__in=states).update(state=str(target(cause)), **changes)
