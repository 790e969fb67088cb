"""Rescues the jobs of workers that died: G03, with the bound of G06."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from jobs import settle
from jobs.dispatcher import leader
from jobs.dispatcher.set_aside import SetAside, all_of
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
        self._rested_at = time.time()
        # Of the wall clock, of the monotonic one: it stays the same while nothing is suspended and nobody sets a clock.
        self._ahead = time.time() - time.monotonic()
        self._has_looked_everywhere = False
        self._aside = SetAside("rescue")
        # Of one look: jobs that were rescued, and what those raised that could not be.
        self._rescued: list[UUID] = []
        self._errors: dict[UUID, Exception] = {}
        self.wait()

    def look(self) -> None:
        """A round of this thread begins. After a pause of the process or of the machine, it waits one lease.

        By the wall clock: a machine that was suspended has a monotonic clock that knows nothing of it. How long a round
        itself takes says nothing of others: where rounds are slow, the silent are given up all the same.
        """
        now, ahead = time.time(), time.time() - time.monotonic()
        longest = settings.JOBS_LEASE_SECONDS / 2
        if abs(now - self._rested_at) > longest or abs(ahead - self._ahead) > longest:
            self.wait()
        self._ahead = ahead

    def rest(self) -> None:
        """The round ends."""
        self._rested_at = time.time()

    def wait(self) -> None:
        """Gives every worker one lease to show that it lives."""
        self._not_before = time.monotonic() + settings.JOBS_LEASE_SECONDS

    def run_once(self) -> None:
        """One look. Raises, at its end, where jobs could not be rescued and it is not those that are at fault."""
        self._rescued, self._errors = [], {}
        all_of(self._give_up_the_silent, self._take_from_nobody, self._take_from_the_dead, self._judge)

    def _judge(self) -> int:
        self._aside.judge(self._rescued, self._errors)
        return len(self._rescued)

    def _note(self, job_id: UUID, error: Exception | None) -> None:
        if error is None:
            self._rescued.append(job_id)
        else:
            self._errors[job_id] = error

    def _give_up_the_silent(self) -> int:
        if time.monotonic() < self._not_before:
            return 0
        silent = Worker.objects.filter(dead_at__isnull=True, lease_expires_at__lt=Now())
        return all_of(*(partial(self._give_up, worker, silent) for worker in silent))

    def _give_up(self, worker: Worker, silent: QuerySet[Worker]) -> int:
        give_up(worker, silent, evidence=f"worker {worker.node} (pid {worker.pid}) fell silent", note=self._note)
        return 1

    def _take_from_the_dead(self) -> int:
        """Jobs that a dead worker claimed in the moment in which it was given up, or that were locked then.

        Each of them is looked at for a while. Later nothing of it can be left: no claim takes longer.
        """
        dead = Worker.objects.filter(dead_at__isnull=False, settled_at__isnull=True).annotate(now=Now())
        return all_of(*(partial(self._take_from, worker) for worker in dead))

    def _take_from(self, worker: Any) -> int:
        again, failed = self._settle_jobs_of(worker.pk)
        is_left = Job.objects.filter(worker_id=worker.pk, state="active").exists()
        is_old = worker.dead_at is not None and worker.now - worker.dead_at > _SETTLED_AFTER
        if is_old and not (again or failed or is_left):
            Worker.objects.filter(pk=worker.pk).update(settled_at=Now())
        return again + failed

    def _take_from_nobody(self) -> int:
        """Once: reads all that is active, and all that was as long as somebody's snapshot keeps it."""
        if self._has_looked_everywhere:
            return 0
        living = Worker.objects.filter(pk=OuterRef("worker_id"), dead_at__isnull=True)
        orphans = Job.objects.filter(~Exists(living), state="active")
        owners = orphans.values_list("worker_id", flat=True).distinct()
        count = all_of(*(partial(self._count_settled, worker_id) for worker_id in owners))
        self._has_looked_everywhere = True
        return count

    def _count_settled(self, worker_id: UUID | None) -> int:
        return sum(self._settle_jobs_of(worker_id))

    def _settle_jobs_of(self, worker_id: UUID | None) -> tuple[int, int]:
        jobs = Job.objects.filter(Q(worker_id=worker_id)).exclude(pk__in=self._aside.left_out())
        return settle.lose(jobs, evidence="its worker is gone", note=self._note)


def give_up(
    worker: Worker,
    those: QuerySet[Worker],
    *,
    evidence: str,
    note: Callable[[UUID, Exception | None], None] | None = None,
) -> None:
    """Marks a worker dead, takes its jobs and ends its leadership, in one transaction.

    A compare-and-set: nothing happens where it is none of `those` any more, because it has renewed its lease in this
    moment, or somebody else has given it up. `note`: as `settle.lose` has it.
    """
    with settle.atomic():
        if not those.filter(pk=worker.pk).update(dead_at=Now()):
            return
        # Claims become runs in their order: beyond its slots, they had only been claimed ahead.
        begun = Job.objects.filter(worker_id=worker.pk, state="active").order_by(
            "started_at", "priority", "run_at", "pk"
        )
        ids = list(begun.values_list("pk", flat=True)[: worker.concurrency])
        again, failed = settle.lose(Job.objects.filter(pk__in=ids, worker_id=worker.pk), evidence=evidence, note=note)
        settle.hand_back(worker.pk, but=ids)
        leader.free(worker.pk)
    logger.warning("Given up: %s; %d of its jobs run again, %d failed.", evidence, again, failed)
