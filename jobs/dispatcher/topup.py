"""Keeps the window of hints in Redis filled, and repairs what Redis lost.

Redis holds hints for the most urgent waiting jobs of each queue, never the queue itself. A waiting job without a hint
in two looks gets one; a hint too many finds nothing to claim.
"""

import json
import logging
from collections.abc import Iterable
from uuid import UUID

import redis
from celery import Celery
from django.conf import settings
from kombu import pools
from kombu.exceptions import OperationalError as BrokerError

from jobs import publish
from jobs.ids import parse_id
from jobs.models import Job, QueueControl
from jobs.queues import QUEUES

logger = logging.getLogger(__name__)


class TopUp:
    """Compares, at each look, what waits in the ledger with what is hinted in Redis."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._redis = redis.Redis.from_url(
            settings.CELERY_BROKER_URL, socket_timeout=5, socket_connect_timeout=2, health_check_interval=10
        )
        self._connection = app.connection_for_write(transport_options={"client_name": "jobs-top-up"})
        self._missing: set[UUID] = set()
        self._away = False

    def run_once(self, due: Iterable[UUID] = ()) -> None:
        """One look at every queue. `due` just became waiting: those are hinted without waiting for a second look."""
        try:
            hinted = self._hinted()
            missing = self._waiting_without_hint(hinted)
            wanted = (missing & self._missing) | (missing & set(due))
            self._missing = missing - wanted
            if wanted:
                self._send(wanted)
        except (redis.RedisError, BrokerError, OSError) as error:
            if not self._away:
                logger.warning("Redis is away (%s). Jobs wait in the database; hints follow when it is back.", error)
            self._away = True
            self._missing.clear()
            return
        if self._away:
            logger.info("Redis is back.")
        self._away = False

    def close(self) -> None:
        """Lets go of Redis."""
        self._redis.close()
        self._connection.release()

    def _hinted(self) -> dict[str, set[UUID]]:
        """The jobs that have a hint in a list of Redis, by queue."""
        pipeline = self._redis.pipeline(transaction=False)
        lists = {name: publish.hint_lists(name) for name in QUEUES}
        for keys in lists.values():
            for key in keys:
                # The far end of a list is the next to be taken.
                pipeline.lrange(key, -settings.JOBS_WINDOW, -1)
        answers = iter(pipeline.execute())
        return {name: {job_id for _ in keys for job_id in _job_ids(next(answers))} for name, keys in lists.items()}

    def _waiting_without_hint(self, hinted: dict[str, set[UUID]]) -> set[UUID]:
        paused = set(QueueControl.objects.filter(paused_at__isnull=False).values_list("name", flat=True))
        missing: set[UUID] = set()
        for name in QUEUES:
            if name in paused or len(hinted[name]) >= settings.JOBS_WINDOW:
                continue
            urgent = Job.objects.filter(state="waiting", queue=name).order_by("priority", "run_at", "id")
            missing |= set(urgent.values_list("id", flat=True)[: settings.JOBS_WINDOW]) - hinted[name]
        return missing

    def _send(self, job_ids: set[UUID]) -> None:
        jobs = Job.objects.filter(pk__in=job_ids, state="waiting").order_by("priority", "run_at", "id")
        hints = [publish.Hint.of(job) for job in jobs.only(*publish.Hint.COLUMNS)]
        with pools.producers[self._connection].acquire(block=True, timeout=5) as producer:
            publish.in_bulk(self.app, producer, hints)


def _job_ids(messages: Iterable[bytes]) -> Iterable[UUID]:
    for message in messages:
        try:
            yield parse_id(json.loads(message)["headers"]["id"])
        except (ValueError, KeyError, TypeError):
            # Another producer's message: the worker that takes it decides what it is.
            continue
