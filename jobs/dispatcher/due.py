"""Delayed jobs whose time has come become waiting; those that expired before they were started are cancelled."""

import logging

from jobs import claims, dedup, follow_ups, publish, settle
from jobs.models import Job

logger = logging.getLogger(__name__)

_BATCH = 1000


def run_once() -> bool:
    """One batch of each, and a ring for each queue that has work now. Returns whether more may be due."""
    with settle.atomic():
        expired = claims.cancel_expired(limit=_BATCH)
        dedup.succeed(*expired)
        for job in Job.objects.filter(pk__in=expired).exclude(follow_ups={}):
            follow_ups.after_stop(job)
    if expired:
        logger.info("%d jobs expired before a worker could start them.", len(expired))
    moved = claims.promote_due(limit=_BATCH)
    for ring in {publish.Ring.for_waiting(job.queue, job.priority, job.lane) for job in moved}:
        publish.soon(ring)
    return len(moved) == _BATCH
