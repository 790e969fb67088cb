"""Keeps the window of hints in Redis filled, and repairs what Redis lost.

Redis holds hints for the most urgent waiting jobs of each queue, never the queue itself. A waiting job without a hint
in two looks gets one; a hint too many finds nothing to claim.
"""

import logging
from collections.abc import Iterable
from uuid import UUID

from celery import Celery
from django.conf import settings

from jobs import selectors
from jobs.dispatcher.ageing import Ageing
from jobs.dispatcher.hints import REDIS_AWAY, Hints
from jobs.limits import in_force
from jobs.models import Job, QueueControl
from jobs.queues import QUEUES

logger = logging.getLogger(__name__)


class TopUp:
    """Compares, at each look, what waits in the ledger with what is hinted in Redis. Jobs with limits are left to
    `jobs.dispatcher.pacing`."""

    def __init__(self, app: Celery) -> None:
        self._hints = Hints(app, name="jobs-top-up")
        self._missing: set[UUID] = set()
        self._away = False
        self.ageing = Ageing(self._hints)

    def run_once(self, due: Iterable[UUID] = ()) -> None:
        """One look at every queue. `due` just became waiting: those are hinted without waiting for a second look."""
        try:
            hinted = self._hints.of(QUEUES)
            queues = _queues_without_limits()
            missing = self._waiting_without_hint(queues, hinted)
            wanted = (missing & self._missing) | (missing & set(due))
            self._missing = missing - wanted
            if wanted:
                self._hints.send(wanted)
            self.ageing.run_once(hinted, without_limits=queues)
        except REDIS_AWAY as error:
            if not self._away:
                logger.warning("Redis is away (%s). Jobs wait in the database; hints follow when it is back.", error)
            self._away = True
            self._missing.clear()
            self.ageing.forget()
            return
        if self._away:
            logger.info("Redis is back.")
        self._away = False

    def close(self) -> None:
        """Lets go of Redis."""
        self._hints.close()

    def _waiting_without_hint(self, queues: Iterable[str], hinted: dict[str, list[set[UUID]]]) -> set[UUID]:
        missing: set[UUID] = set()
        for name in queues:
            urgent = Job.objects.filter(state="waiting", queue=name, lane="").order_by("priority", "run_at", "id")
            missing |= set(urgent.values_list("id", flat=True)[: settings.JOBS_WINDOW]).difference(*hinted[name])
        return missing


def _queues_without_limits() -> list[str]:
    """Those that are not paused either, neither by an operator nor by a job that was told to wait."""
    controls = QueueControl.objects.in_bulk()
    halted = selectors.halted_queues()
    return [name for name in QUEUES if name not in halted and not in_force(name, controls.get(name)).is_paced]
