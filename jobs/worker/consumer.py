"""Celery's consumer, except that the pool goes on working while the broker is away.

Celery waits for its broker in the main thread, with everything else: results of pool processes are not read, time limits
do not strike, nothing starts. Here another thread looks whether Redis answers, and the event loop turns meanwhile.
"""

import logging
import threading
import time
from inspect import isgenerator
from typing import Any

import redis
from celery.worker import loops
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from django.conf import settings

from jobs.doorbell import REDIS_AWAY

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 1.0
# The loop turns in steps of this, between which it is asked whether Redis is back or the worker ends.
_TURN_SECONDS = 0.1
_LONGEST_MESSAGE_SECONDS = 2.0


class LedgerConsumer(Consumer):  # type: ignore[misc]  # Celery is untyped
    """Keeps what it has taken when it loses the broker, and works on until that is back."""

    def on_close(self) -> None:
        """Nothing is dropped: what was claimed is this worker's, and no broker would deliver it again."""

    def ensure_connected(self, conn: Any) -> Any:
        """A connection to the broker, however long that takes."""
        away: _Away | None = None
        while True:
            maybe_shutdown()
            try:
                conn.connect()
                break
            except (*conn.connection_errors, *conn.channel_errors) as error:
                logger.error("Cannot connect to %s: %s. Working on; trying again.", conn.as_uri(), error)
            away = away or _Away(self)
            away.work_until_the_broker_answers()
        if away is not None:
            away.end()
        self.first_connection_attempt = False
        self.broker_connection_retry_attempt = 0
        return conn


class _Away:
    """The event loop, without a broker."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer, self._hub = consumer, consumer.hub
        before = loops._timer_entries(self._hub.timer)
        consumer.controller.pool.register_with_event_loop(self._hub)
        # The loop that follows registers the pool once more, with timers of its own.
        self._timers = loops._timer_entries(self._hub.timer) - before
        if not consumer.strategies:
            # The worker began without a broker.
            consumer.update_strategies()

    def work_until_the_broker_answers(self) -> None:
        """Turns the loop. A Redis that hangs keeps a thread waiting, and nobody else."""
        answered = threading.Event()
        threading.Thread(target=_probe, args=[answered], name="jobs-broker-probe", daemon=True).start()
        while not answered.is_set():
            maybe_shutdown()
            self._turn()

    def end(self) -> None:
        """The broker is back: the consumer's own loop begins. No message of a pool process is left half read."""
        deadline = time.monotonic() + _LONGEST_MESSAGE_SECONDS
        while self._is_within_a_message() and time.monotonic() < deadline:
            self._turn()
        loops._cancel_timer_entries(self._hub.timer, self._timers)
        # Time limits that were set meanwhile are not the connection's.
        self._consumer.timer_entries_before_start = loops._timer_entries(self._hub.timer)

    def _turn(self) -> None:
        # It ends a pause of the loop, which may be a second long.
        entry = self._hub.call_later(_TURN_SECONDS, lambda: None)
        try:
            self._hub.run_once()
        except Exception:  # whatever a callback raises, the broker is still away and the pool still works
            logger.exception("Working without a broker: unexpected error.")
        finally:
            entry.cancel()

    def _is_within_a_message(self) -> bool:
        pool = getattr(self._consumer.pool, "_pool", None)
        is_read = any(isgenerator(callback) for callback, _ in self._hub.readers.values())
        return is_read or bool(getattr(pool, "_active_writers", ()))


def _probe(answered: threading.Event) -> None:
    pause = threading.Event()
    while not answered.is_set():
        try:
            with redis.Redis.from_url(
                settings.CELERY_BROKER_URL, socket_timeout=_PROBE_SECONDS, socket_connect_timeout=_PROBE_SECONDS
            ) as client:
                client.ping()
            answered.set()
        except REDIS_AWAY:
            pause.wait(_PROBE_SECONDS / 2)
