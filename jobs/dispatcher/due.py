"""Makes delayed jobs waiting when they are due, and cancels jobs that expired before they were started.

While somebody holds an old snapshot, PostgreSQL keeps the index entries of jobs that are no longer delayed, and a look
for the earliest delayed job reads all of them. Once looks are slow, they begin five seconds ago: the last look has seen
that nothing earlier is left. The walk of `jobs.below` finds a job that was committed more than five seconds late.
"""

import logging
import time
from collections.abc import Collection
from datetime import datetime
from functools import partial
from uuid import UUID

from django.conf import settings
from django.db.models import QuerySet
from django.db.models.functions import Now

from jobs import claims, publish
from jobs.below import BEGINNING, MARGIN, SLOW_FACTOR, SLOW_SECONDS, WalkBelow
from jobs.claims import FIRST_DELAYED, FIRST_EXPIRING
from jobs.dispatcher.set_aside import SetAside, all_of, in_a_batch_or_alone
from jobs.ends import end, lead_on
from jobs.models import Job
from jobs.statements import round_trip_seconds
from jobs.states import Cause
from jobs.transitions import transition

logger = logging.getLogger(__name__)

_BATCH = 1000
# The pause between two looks while there is something to walk below.
_WALK_SECONDS = 0.1


class Due:
    """Looks for due and for expired jobs, from a floor each once looks are slow."""

    def __init__(self) -> None:
        # By the statement that walks below it.
        self._floors = dict.fromkeys((FIRST_DELAYED, FIRST_EXPIRING), BEGINNING)
        self.is_slow = False
        self._walk = WalkBelow(claims.first_between)
        self._delayed, self._expiring = SetAside("due"), SetAside("expiry")

    def seconds_to_next(self) -> float | None:
        """How long until the next delayed job is due or a job expires; None: not before the next look."""
        if self.is_slow:
            self._look_below()
        if not self.is_slow:
            self._floors = dict.fromkeys(self._floors, BEGINNING)
        began = time.monotonic()
        found = claims.next_due(
            due_since=self._floors[FIRST_DELAYED],
            expired_since=self._floors[FIRST_EXPIRING],
            seconds=settings.JOBS_DISPATCH_SECONDS,
        )
        took = time.monotonic() - began
        if not self.is_slow:
            self.is_slow = took > SLOW_SECONDS and took > SLOW_FACTOR * round_trip_seconds()
        self._floors = {
            FIRST_DELAYED: _floor(found.due_at, found.now),
            FIRST_EXPIRING: _floor(found.expires_at, found.now),
        }
        seconds = [(moment - found.now).total_seconds() for moment in (found.due_at, found.expires_at) if moment]
        return min([*seconds, *([_WALK_SECONDS] if self.is_slow else [])], default=None)

    def _look_below(self) -> None:
        if self._walk.has_found_little:
            self.is_slow = False
            self._walk.forget()
            return
        late = self._walk.piece(self._floors.items())
        if late is not None:
            statement, moment = late
            self._floors[statement] = min(self._floors[statement], moment)

    def run_once(self) -> bool:
        """Acts on one batch of what the last look found; returns whether more may be due."""
        return run_once(
            due_since=self._floors[FIRST_DELAYED],
            expired_since=self._floors[FIRST_EXPIRING],
            delayed=self._delayed,
            expiring=self._expiring,
        )


def _floor(first: datetime | None, now: datetime) -> datetime:
    """From where on the next look may find something, where this was the first that was found."""
    return min(now - MARGIN, first) if first is not None else now - MARGIN


def run_once(
    *,
    due_since: datetime = BEGINNING,
    expired_since: datetime = BEGINNING,
    delayed: SetAside | None = None,
    expiring: SetAside | None = None,
) -> bool:
    """One batch of each, and a ring for each queue that has work now. Returns whether more may be due.

    `delayed` and `expiring` are the jobs that could not be processed before.
    """
    return (
        all_of(
            partial(_see_to_expired, expired_since, expiring or SetAside("expiry")),
            partial(_see_to_due, due_since, delayed or SetAside("due")),
        )
        >= _BATCH
    )


def _see_to_expired(since: datetime, aside: SetAside) -> int:
    in_a_batch_or_alone(partial(_cancel_expired, since), aside, _expired(since), _expire)
    return 0


def _see_to_due(since: datetime, aside: SetAside) -> int:
    rings: set[publish.Ring] = set()
    try:
        return in_a_batch_or_alone(partial(_promote_due, since, rings), aside, _due(since), partial(_promote, rings))
    finally:
        # Also where one of many cannot be moved.
        for ring in rings:
            publish.soon(ring)


def _cancel_expired(since: datetime, left_out: Collection[UUID]) -> int:
    expired = claims.cancel_expired(since=since, limit=_BATCH, left_out=left_out)
    for job in Job.objects.filter(pk__in=expired).exclude(follow_ups={}, successor__isnull=True):
        lead_on(job)
    if expired:
        logger.info("%d jobs expired before a worker could start them.", len(expired))
    return len(expired)


def _expired(since: datetime) -> QuerySet[Job, UUID]:
    expired = Job.objects.filter(state__in=["waiting", "delayed"], expires_at__gte=since, expires_at__lte=Now())
    return expired.order_by("expires_at").values_list("pk", flat=True)


def _expire(job_id: UUID) -> None:
    expired = Job.objects.filter(pk=job_id, expires_at__lte=Now())
    for job in expired.select_for_update(skip_locked=True, of=("self",)):
        end(job, Cause.EXPIRED, error=claims.EXPIRED)


def _promote_due(since: datetime, rings: set[publish.Ring], left_out: Collection[UUID]) -> int:
    moved = claims.promote_due(since=since, limit=_BATCH, left_out=left_out)
    rings.update(publish.Ring.for_waiting(job.queue, job.priority, job.lane) for job in moved)
    return len(moved)


def _due(since: datetime) -> QuerySet[Job, UUID]:
    due = Job.objects.filter(state="delayed", is_held=False, run_at__gte=since, run_at__lte=Now())
    return due.order_by("run_at").values_list("pk", flat=True)


def _promote(rings: set[publish.Ring], job_id: UUID) -> None:
    due = Job.objects.filter(pk=job_id, is_held=False, run_at__lte=Now())
    for job in due.select_for_update(skip_locked=True, of=("self",)):
        if transition(Job.objects.filter(pk=job_id), Cause.DUE):
            rings.add(publish.Ring.of(job))
