"""Rescues the jobs of workers that died: G03, with the bound of G06."""

import logging
import time
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from jobs import settle
from jobs.dispatcher import leader
from jobs.models import Job, Worker

logger = logging.getLogger(__name__)

# How long those that have died lately are looked at.
_SETTLED_AFTER = timedelta(minutes=1)


class Rescuer:
    """Marks workers dead whose lease ran out, and takes their jobs, in one transaction.

    After an outage of the database every lease has run out, of the living too: then it waits one lease, in which the
    living renew theirs.
    """

    def __init__(self) -> None:
        self._awake_at = time.time()
        self._has_looked_everywhere = False
        self.wait()

    def look(self) -> None:
        """Notes that this process is awake. After a pause, of the database or of the machine, it waits one lease.

        By the wall clock: a machine that was suspended has a monotonic clock that knows nothing of it.
        """
        now = time.time()
        if abs(now - self._awake_at) > settings.JOBS_LEASE_SECONDS / 2:
            self.wait()
        self._awake_at = now

    def wait(self) -> None:
        """Gives every worker one lease to show that it lives."""
        self._not_before = time.monotonic() + settings.JOBS_LEASE_SECONDS

    def run_once(self) -> None:
        """One look."""
        if time.monotonic() >= self._not_before:
            self._give_up_the_silent()
        if not self._has_looked_everywhere:
            self._take_from_nobody()
            self._has_looked_everywhere = True
        self._take_from_the_dead()

    def _give_up_the_silent(self) -> None:
        silent = Worker.objects.filter(dead_at__isnull=True, lease_expires_at__lt=Now())
        for worker in silent:
            give_up(worker, silent, evidence=f"worker {worker.node} (pid {worker.pid}) fell silent")

    def _take_from_the_dead(self) -> None:
        """Jobs that a dead worker claimed in the moment in which it was given up, or that were locked then.

        Each of them is looked at for a while. Later nothing of it can be left: no claim takes longer.
        """
        dead = Worker.objects.filter(dead_at__isnull=False, settled_at__isnull=True).annotate(now=Now())
        for worker in dead:
            again, failed = _settle_jobs_of(worker.pk, "its worker is gone")
            is_left = Job.objects.filter(worker_id=worker.pk, state="active").exists()
            is_old = worker.dead_at is not None and worker.now - worker.dead_at > _SETTLED_AFTER
            if is_old and not (again or failed or is_left):
                Worker.objects.filter(pk=worker.pk).update(settled_at=Now())

    def _take_from_nobody(self) -> None:
        """Once: reads all that is active, and all that was as long as somebody's snapshot keeps it."""
        living = Worker.objects.filter(pk=OuterRef("worker_id"), dead_at__isnull=True)
        orphans = Job.objects.filter(~Exists(living), state="active")
        for worker_id in orphans.values_list("worker_id", flat=True).distinct():
            _settle_jobs_of(worker_id, "its worker is gone")


def give_up(worker: Worker, those: QuerySet[Worker], *, evidence: str) -> None:
    """Marks a worker dead, takes its jobs and ends its leadership, in one transaction.

    A compare-and-set: nothing happens where it is none of `those` any more, because it has renewed its lease in this
    moment, or somebody else has given it up.
    """
    with settle.atomic():
        if not those.filter(pk=worker.pk).update(dead_at=Now()):
            return
        # Claims become runs in their order: beyond its slots, they had only been claimed ahead.
        begun = Job.objects.filter(worker_id=worker.pk, state="active").order_by(
            "started_at", "priority", "run_at", "pk"
        )
        ids = list(begun.values_list("pk", flat=True)[: worker.concurrency])
        again, failed = settle.lose(Job.objects.filter(pk__in=ids, worker_id=worker.pk), evidence=evidence)
        settle.hand_back(worker.pk, but=ids)
        leader.free(worker.pk)
    logger.warning("Given up: %s; %d of its jobs run again, %d failed.", evidence, again, failed)


def _settle_jobs_of(worker_id: UUID | None, evidence: str) -> tuple[int, int]:
    return settle.lose(Job.objects.filter(Q(worker_id=worker_id)), evidence=evidence)
