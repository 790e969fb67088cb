"""One lease per worker process: a worker that does not renew it in time is given up, and its jobs run elsewhere."""

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.models.functions import Now
from django.utils import timezone

from jobs import settle
from jobs.models import Worker
from jobs.patience import DATABASE_AWAY, patiently
from jobs.worker import identity
from jobs.worker.thread import DutyThread

logger = logging.getLogger(__name__)

_REGISTER_PATIENCE_SECONDS = 3600
_RESIGN_PATIENCE_SECONDS = 2


def lease_end() -> Any:
    """The end of a lease that begins now, by the database's clock."""
    return Now() + timedelta(seconds=settings.JOBS_LEASE_SECONDS)


def _ago(seconds: float | None) -> Any:
    return None if seconds is None else Now() - timedelta(seconds=seconds)


def _clocks() -> dict[str, Any]:
    """This moment by both clocks, so that anybody may see how far they are apart."""
    return {"renewed_at": Now(), "clock_at": timezone.now()}


def register(**facts: Any) -> None:
    """Writes this worker's row; waits for the database as long as it takes."""
    worker_id = identity.incarnation()

    def write(repeated: bool) -> None:
        Worker.objects.update_or_create(pk=worker_id, defaults={**facts, **_clocks(), "lease_expires_at": lease_end()})

    patiently(write, seconds=_REGISTER_PATIENCE_SECONDS)
    # The main thread forks pool processes: it keeps no connection that they would inherit.
    connections.close_all()


def renew(**facts: Any) -> bool:
    """Renews the lease, also one that ran out: only a row marked dead is lost. Returns whether it was renewed."""
    live = Worker.objects.filter(pk=identity.incarnation(), dead_at__isnull=True)
    return bool(live.update(lease_expires_at=lease_end(), **_clocks(), **facts))


def resign() -> None:
    """The worker ends: hands back what still runs and marks its row dead, in one transaction."""
    worker_id = identity.incarnation()

    def write(repeated: bool) -> int:
        with settle.atomic():
            Worker.objects.filter(pk=worker_id, dead_at__isnull=True).update(dead_at=Now())
            return settle.hand_back(worker_id)

    try:
        count = patiently(write, seconds=_RESIGN_PATIENCE_SECONDS)
    except DATABASE_AWAY as error:
        logger.warning("Could not say goodbye (%s): what ran here runs again when the lease ends.", error)
        return
    if count:
        logger.warning("Handed back %d jobs that were still running.", count)


def end_the_process() -> None:
    """With all its children: whatever they still run belongs to others now."""
    logger.critical("This worker was given up for dead while it was silent; its jobs run elsewhere. Ending.")
    os._exit(70)


class LeaseThread(DutyThread):
    """Renews the lease. A worker that was given up ends itself, or does what `given_up` does."""

    def __init__(
        self,
        *,
        slot_count: Callable[[], int],
        idle_seconds: Callable[[], float],
        deaf_seconds: Callable[[], float | None],
        pause_seconds: float | None = None,
        given_up: Callable[[], None] = end_the_process,
    ) -> None:
        super().__init__("jobs-lease", pause_seconds or settings.JOBS_HEARTBEAT_SECONDS)
        self._given_up = given_up
        self._slot_count = slot_count
        self._idle_seconds = idle_seconds
        self._deaf_seconds = deaf_seconds
        self._was_answered = False

    def run_once(self) -> None:
        """Renews the lease, unless the worker was given up."""
        facts: dict[str, Any] = {"looked_at": _ago(self._idle_seconds()), "deaf_since": _ago(self._deaf_seconds())}
        if not self._was_answered:
            facts["answered_since"] = Now()
        self._was_answered = False
        # A pool may have grown or shrunk.
        is_renewed = renew(concurrency=self._slot_count(), **facts)
        self._was_answered = True
        if not is_renewed:
            self._given_up()
