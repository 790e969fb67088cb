"""Delayed jobs whose time has come become waiting; those that expired before they were started are cancelled."""

import logging
from uuid import UUID

from jobs import claims, dedup, follow_ups, settle
from jobs.models import Job

logger = logging.getLogger(__name__)

_BATCH = 1000


def run_once() -> list[UUID]:
    """One batch of each. Returns the ids of the jobs that are due, which want a hint now."""
    with settle.atomic():
        expired = claims.cancel_expired(limit=_BATCH)
        dedup.succeed(*expired)
        for job in Job.objects.filter(pk__in=expired).exclude(follow_ups={}):
            follow_ups.after_stop(job)
    if expired:
        logger.info("%d jobs expired before a worker could start them.", len(expired))
    return claims.promote_due(limit=_BATCH)
