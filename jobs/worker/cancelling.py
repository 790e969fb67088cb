"""Runs whose job somebody cancelled, and which go on for longer than they are given: a pool process is ended.

What is to be ended is in the ledger: a cancellation keeps the run that it found as an attempt, with its claim token. So
it holds over the death of whoever cancelled, and when the job has long been running again elsewhere, or here. Celery's
own revocation is not used: each worker would remember the job's id for hours, and discard the runs of an operator who
wants it to run after all.
"""

import logging
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models.functions import Now

from jobs.ids import id_of_message
from jobs.models import Attempt
from jobs.worker.requests import started

logger = logging.getLogger(__name__)


def overdue() -> frozenset[str]:
    """The claim tokens of this worker's runs that were cancelled and have gone on for `JOBS_CANCEL_GRACE_SECONDS`."""
    running = {token: id_of_message(request.id) for token, request in started().items()}
    if not running:
        return frozenset()
    # By the index on the job: an attempt has no other.
    cancelled = Attempt.objects.filter(
        job_id__in=set(running.values()),
        outcome=Attempt.Outcome.CANCELLED,
        claim_token__in=list(running),
        ended_at__lte=Now() - timedelta(seconds=settings.JOBS_CANCEL_GRACE_SECONDS),
    )
    return frozenset(cancelled.values_list("claim_token", flat=True))


class EndCancelled:
    """Kills the pool processes that go on with a cancelled job. In their place the pool starts others."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def run_once(self) -> None:
        """One look. The main thread kills, because only there is it certain what a process runs at this moment."""
        for token in overdue():
            self._worker.consumer.call_soon(_end, self._worker.pool, token)


def _end(pool: Any, token: str) -> None:
    request = started().get(token)
    if request is not None:
        logger.warning("id=%s was cancelled and goes on: its process %s is ended.", request.id, request.worker_pid)
        request.terminate(pool, signal="KILL")
