"""Leadership as a lease row: no session lock, which a connection pooler would break.

Two leaders for a moment do no harm: every duty is a compare-and-set, an extra ring or grant starts nothing.
"""

import logging
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import Case, F, Q, When
from django.db.models.functions import Now

from jobs.models import Duty
from jobs.patience import DATABASE_AWAY
from jobs.worker import identity

logger = logging.getLogger(__name__)

NAME = "dispatcher"
_SHORTEST_SECONDS = 2.0
_LONGEST_SECONDS = 8.0


def hold(*, ticks: bool = False) -> bool:
    """Takes or renews the lease; returns whether this process leads for now. `ticks`: it has done what it is to do."""
    me = identity.incarnation()
    free = Q(holder_id=me) | Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=Now())
    lease = Duty.objects.filter(free, name=NAME)
    held = {
        "term": Case(When(holder_id=me, then=F("term")), default=F("term") + 1),
        "holder_id": me,
        "lease_expires_at": Now() + timedelta(seconds=_lease_seconds()),
        **({"ticked_at": Now()} if ticks else {}),
    }
    if lease.update(**held):
        return True
    if Duty.objects.filter(name=NAME).exists():
        return False
    Duty.objects.bulk_create([Duty(name=NAME)], ignore_conflicts=True)
    return bool(lease.update(**held))


def let_go() -> None:
    """Gives the lease up, so that another leads at once."""
    try:
        free(identity.incarnation())
    except DATABASE_AWAY as error:
        logger.warning("Could not give the dispatcher's lease up (%s): another leads when it ends.", error)


def free(holder_id: UUID) -> None:
    """Ends the leadership of a worker, if it leads."""
    Duty.objects.filter(name=NAME, holder_id=holder_id).update(holder_id=None, lease_expires_at=None)


def hold_seconds() -> float:
    """How often the lease is to be held: some times within its length, and not at every look of an idle worker."""
    return min(1.0, _lease_seconds() / 3)


def _lease_seconds() -> float:
    # Short, so that a dead leader is replaced within seconds, and long enough for a slow round.
    return min(max(_SHORTEST_SECONDS, settings.JOBS_LEASE_SECONDS / 4), _LONGEST_SECONDS)
