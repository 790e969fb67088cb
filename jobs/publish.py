"""The only sender of messages. A hint wakes a worker; losing one costs a moment, never a job."""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID, uuid4

import redis
from celery import Celery, current_app
from django.conf import settings
from kombu import pools
from kombu.exceptions import OperationalError as BrokerError

from jobs.models import Job
from jobs.queues import PACED_QUEUES, QUEUES
from jobs.redaction import redacted_repr

logger = logging.getLogger(__name__)

# What a step of a request may wait for Redis: one such wait opens the breaker.
_REQUEST_TIMEOUT_SECONDS = 0.15
# A Redis that answers, but so late, is no better than one that is away. Once may be this process's own fault, which
# loads modules for the first hint, or was not given the processor: so it takes two in a row.
_SLOW_SECONDS = 0.1
_SLOW_SENDS = 2
_REQUEST_TRANSPORT = {
    "socket_timeout": _REQUEST_TIMEOUT_SECONDS,
    "socket_connect_timeout": _REQUEST_TIMEOUT_SECONDS,
    "max_retries": 0,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
}
# `retry=True` with no retries fails at once; `retry=False` falls to kombu's own reconnecting, which takes six seconds.
_NO_RETRIES = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
_WATCH_SECONDS = 0.5
_WATCH_IDLE_LOOKS = 20
_SEND_FAILURES = (BrokerError, redis.RedisError, OSError)


def new_hint_id() -> str:
    """Each hint is good for one claim."""
    return uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What Redis is told about a job: enough to wake a worker and to show it in Flower, none of its arguments."""

    job_id: UUID
    task: str
    queue: str
    priority: int
    lane: str
    time_limit_seconds: float | None
    soft_time_limit_seconds: float | None
    root_id: UUID | None
    parent_id: UUID | None
    headers: dict[str, Any]
    args_text: str
    kwargs_text: str
    hint_id: str = field(default_factory=new_hint_id)

    COLUMNS = (
        "id",
        "task",
        "queue",
        "priority",
        "lane",
        "time_limit_seconds",
        "soft_time_limit_seconds",
        "root_id",
        "parent_id",
        "headers",
        "args",
        "kwargs",
    )

    @property
    def is_paced(self) -> bool:
        """Whether limits of the job or of its queue are declared: then the dispatcher alone knows when it may start."""
        return self.lane != "" or self.queue in PACED_QUEUES

    @classmethod
    def of(cls, job: Job) -> Self:
        """A fresh hint for a job. Each hint is good for one claim."""
        return cls(
            job_id=job.pk,
            task=job.task,
            queue=job.queue,
            priority=job.priority,
            lane=job.lane,
            time_limit_seconds=job.time_limit_seconds,
            soft_time_limit_seconds=job.soft_time_limit_seconds,
            root_id=job.root_id,
            parent_id=job.parent_id,
            headers=job.headers,
            args_text=redacted_repr(tuple(job.args)),
            kwargs_text=redacted_repr(job.kwargs),
        )


def message_of(app: Celery, hint: Hint) -> Any:
    """A hint as Celery's message."""
    return app.amqp.create_task_message(
        str(hint.job_id),
        hint.task,
        (),
        {},
        time_limit=hint.time_limit_seconds,
        soft_time_limit=hint.soft_time_limit_seconds,
        root_id=hint.root_id and str(hint.root_id),
        parent_id=hint.parent_id and str(hint.parent_id),
        ignore_result=False,
        argsrepr=hint.args_text,
        kwargsrepr=hint.kwargs_text,
    )


def headers_of(hint: Hint) -> dict[str, Any]:
    """What the headers of a hint's message say beside Celery's own."""
    return {**hint.headers, "hint_id": hint.hint_id}


def send(app: Celery, producer: Any, hint: Hint) -> None:
    """Sends one hint through a producer. Raises what kombu or Redis raise; then it may or may not have arrived."""
    app.amqp.send_task_message(
        producer,
        hint.task,
        message_of(app, hint),
        queue=hint.queue,
        priority=hint.priority,
        headers=headers_of(hint),
        # Redis needs no declaration of a list, and looking it up costs a quarter of the sending.
        declare=[],
        retry=True,
        retry_policy=_NO_RETRIES,
    )


class Publisher:
    """Sends hints from a process that must not wait: one bounded try, or two slow ones, then nothing at all until Redis
    is back and quick.

    A thread of its own looks at Redis twice a second while hints are being sent: it closes the breaker after an outage,
    and tells which queues have their window full, so that no request ever asks Redis anything.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.pid = os.getpid()
        self._connection = app.connection_for_write(settings.CELERY_BROKER_URL, transport_options=_REQUEST_TRANSPORT)
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._sent_since_look = False
        self._broken = False
        self._slow_count = 0
        self._full: frozenset[str] = frozenset()

    def send(self, hint: Hint) -> bool:
        """Sends a hint unless Redis is away or the queue's window is full; the top-up sends what was left out."""
        self._sent_since_look = True
        self._watch()
        if self._broken or hint.queue in self._full:
            return False
        began = time.monotonic()
        try:
            with pools.producers[self._connection].acquire(block=True, timeout=_REQUEST_TIMEOUT_SECONDS) as producer:
                send(self.app, producer, hint)
        except _SEND_FAILURES as error:
            self._break(error)
            return False
        self._slow_count = self._slow_count + 1 if time.monotonic() - began > _SLOW_SECONDS else 0
        if self._slow_count >= _SLOW_SENDS:
            self._broken = True
            logger.warning("Redis is slow to take hints. Jobs are safe in the database; sending resumes by itself.")
        return True

    def send_many(self, hints: Sequence[Hint]) -> bool:
        """Sends hints of one queue in one pipeline, as `send` does; slowness is not held against Redis here."""
        self._sent_since_look = True
        self._watch()
        if self._broken or not hints or hints[0].queue in self._full:
            return False
        try:
            with pools.producers[self._connection].acquire(block=True, timeout=_REQUEST_TIMEOUT_SECONDS) as producer:
                in_bulk(self.app, producer, hints)
        except _SEND_FAILURES as error:
            self._break(error)
            return False
        return True

    def _break(self, error: Exception) -> None:
        self._broken = True
        logger.warning(
            "Redis does not take hints (%s). Jobs are safe in the database; sending resumes by itself.", error
        )

    def _watch(self) -> None:
        if self._watcher is not None and self._watcher.is_alive():
            return
        with self._lock:
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._keep_watch, name="jobs-publish-watch", daemon=True)
                self._watcher.start()

    def _keep_watch(self) -> None:
        pause = threading.Event()
        client = redis.Redis.from_url(settings.CELERY_BROKER_URL, socket_timeout=2, socket_connect_timeout=2)
        idle_looks = 0
        try:
            while idle_looks < _WATCH_IDLE_LOOKS:
                pause.wait(_WATCH_SECONDS)
                idle_looks = 0 if self._sent_since_look or self._broken else idle_looks + 1
                self._sent_since_look = False
                self._look(client)
        finally:
            client.close()

    def _look(self, client: "redis.Redis") -> None:
        began = time.monotonic()
        try:
            lengths = queue_lengths(client)
        except (redis.RedisError, OSError):
            self._broken = True
            return
        self._full = frozenset(name for name, length in lengths.items() if length >= settings.JOBS_WINDOW)
        if self._broken and time.monotonic() - began <= _SLOW_SECONDS:
            logger.info("Redis takes hints again.")
            self._slow_count = 0
            self._broken = False


def hint_lists(queue: str) -> list[str]:
    """The Redis lists that hold a queue's hints, the most urgent priority first, named as kombu names them."""
    options: dict[str, Any] = current_app.conf.broker_transport_options
    prefix, separator = options.get("global_keyprefix", ""), options["sep"]
    return [f"{prefix}{queue}{separator}{step}" if step else f"{prefix}{queue}" for step in options["priority_steps"]]


def queue_lengths(client: "redis.Redis") -> dict[str, int]:
    """How many hints each queue has in Redis, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    lists = {name: hint_lists(name) for name in QUEUES}
    for keys in lists.values():
        for key in keys:
            pipeline.llen(key)
    lengths = iter(pipeline.execute())
    return {name: sum(next(lengths) for _ in keys) for name, keys in lists.items()}


_publisher: Publisher | None = None


def soon(hint: Hint) -> bool:
    """Sends a hint after the caller's commit, unless limits say when the job may start. Returns whether it went out;
    never raises, never waits twice."""
    return not hint.is_paced and _own_publisher().send(hint)


def many_soon(hints: Sequence[Hint]) -> bool:
    """The same for many hints of one queue at once."""
    unpaced = [hint for hint in hints if not hint.is_paced]
    return bool(unpaced) and _own_publisher().send_many(unpaced)


def _own_publisher() -> Publisher:
    global _publisher
    if _publisher is None or _publisher.pid != os.getpid():
        _publisher = Publisher(current_app._get_current_object())
    return _publisher


def in_bulk(app: Celery, producer: Any, hints: Sequence[Hint]) -> None:
    """Sends many hints in one pipeline. Raises what kombu or Redis raise; then some may have arrived."""
    with producer.batch():
        for hint in hints:
            send(app, producer, hint)
