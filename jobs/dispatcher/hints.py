"""The dispatcher's way to Redis: which jobs have a hint there, and sending more of them."""

import json
from collections.abc import Collection, Iterable
from dataclasses import replace
from uuid import UUID

import redis
from celery import Celery
from django.conf import settings
from kombu import pools
from kombu.exceptions import OperationalError as BrokerError

from jobs import publish
from jobs.ids import parse_id
from jobs.models import Job

# What Redis raises where it is away.
REDIS_AWAY = (redis.RedisError, BrokerError, OSError)


class Hints:
    """Connections of one thread, made when they are first needed."""

    def __init__(self, app: Celery, *, name: str) -> None:
        self.app = app
        self._redis = redis.Redis.from_url(
            settings.CELERY_BROKER_URL, socket_timeout=5, socket_connect_timeout=2, health_check_interval=10
        )
        self._connection = app.connection_for_write(transport_options={"client_name": name})

    def close(self) -> None:
        """Lets go of Redis."""
        self._redis.close()
        self._connection.release()

    def of(self, queues: Iterable[str]) -> dict[str, list[set[UUID]]]:
        """The jobs that have a hint in Redis: for each queue a set per priority, of many those that are taken next."""
        pipeline = self._redis.pipeline(transaction=False)
        lists = {name: publish.hint_lists(name) for name in queues}
        for keys in lists.values():
            for key in keys:
                # The far end of a list is the next to be taken.
                pipeline.lrange(key, -settings.JOBS_WINDOW, -1)
        answers = iter(pipeline.execute())
        return {name: [set(_job_ids(next(answers))) for _ in keys] for name, keys in lists.items()}

    def send(self, job_ids: Collection[UUID], *, priority: int | None = None) -> None:
        """Sends a hint at each of these jobs that waits, of its own priority or of this one."""
        if not job_ids:
            return
        jobs = Job.objects.filter(pk__in=job_ids, state="waiting").order_by("priority", "run_at", "id")
        hints = [publish.Hint.of(job) for job in jobs.only(*publish.Hint.COLUMNS)]
        if priority is not None:
            hints = [replace(hint, priority=priority) for hint in hints]
        with pools.producers[self._connection].acquire(block=True, timeout=5) as producer:
            publish.in_bulk(self.app, producer, hints)


def _job_ids(messages: Iterable[bytes]) -> Iterable[UUID]:
    for message in messages:
        try:
            yield parse_id(json.loads(message)["headers"]["id"])
        except (ValueError, KeyError, TypeError):
            # Another producer's message: the worker that takes it decides what it is.
            continue
