"""Celery's consumer, except that the pool goes on working while the broker is away.

Celery waits for its broker in the main thread, with everything else: results of pool processes are not read, time
limits do not strike, nothing starts. Here another thread looks whether Redis answers, and the event loop turns
meanwhile.
"""

import logging
import threading
import time
from contextlib import suppress
from inspect import isgenerator
from typing import Any

from celery.utils.threads import bound_open_broker_sockets
from celery.worker import loops
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from jobs import dead_letters
from jobs.doorbell import REDIS_AWAY, Doorbell
from jobs.worker import lists

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 1.0
_FIRST_SECONDS = 0.3
_FAREWELL_SECONDS = 0.1
# The loop turns in steps of this, between which it is asked whether Redis is back or the worker ends.
_TURN_SECONDS = 0.1
_LONGEST_MESSAGE_SECONDS = 2.0


class BrokerHangs(ConnectionError):
    """Redis takes connections, and answers nothing."""


class LedgerConsumer(Consumer):
    """Keeps what it has taken when it loses the broker, and works on until that is back."""

    connection: Any

    def on_close(self) -> None:
        """Nothing is dropped: what was claimed is this worker's, and no broker would deliver it again."""

    def leave_the_broker(self) -> None:
        """Another thread has found that the broker does not answer: nobody is to wait for it. Safe in any thread."""
        connection = self.connection
        if connection is not None:
            self.call_soon(self._lose, connection)

    def _lose(self, connection: Any) -> None:
        if connection is self.connection:
            raise BrokerHangs("Redis does not answer")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A body that nobody can read is put aside."""
        dead_letters.keep_read(message, f"{type(exc).__name__}: {exc}")
        super().on_decode_error(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """So is what names no task,"""
        dead_letters.keep_read(message, "it names no task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """a task that this worker does not know,"""
        dead_letters.keep_read(message, f"no worker knows the task {exc}")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """and what is not the call of a task."""
        dead_letters.keep_read(message, f"{type(exc).__name__}: {exc}")
        super().on_invalid_task(body, message, exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Lets go of the connection. Celery would wait five seconds for each of its sockets."""
        logger.warning("The connection to the broker is lost (%s). Working on; trying again.", exc)
        connection, self.connection = self.connection, None
        bound_open_broker_sockets(connection, _FAREWELL_SECONDS)
        with suppress(Exception):  # it is lost anyway
            connection.collect(socket_timeout=_FAREWELL_SECONDS)
        with suppress(Exception):
            connection.close()

    def ensure_connected(self, conn: Any) -> Any:
        """A connection to the broker, however long that takes."""
        away: _Away | None = None
        lists.watch(conn)
        while True:
            maybe_shutdown()
            probe = _Probe()
            if not probe.answered.wait(_FIRST_SECONDS):
                if away is None:
                    logger.error("Cannot connect to %s. Working on; trying again.", conn.as_uri())
                    away = _Away(self)
                away.work_until(probe.answered)
            dead_letters.guard(conn.transport)
            try:
                conn.connect()
                break
            except (*conn.connection_errors, *conn.channel_errors) as error:
                logger.error("Cannot connect to %s: %s. Working on; trying again.", conn.as_uri(), error)
                away = away or _Away(self)
                away.turn()
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

    def work_until(self, answered: threading.Event) -> None:
        """Turns the loop until the broker answers."""
        while not answered.is_set():
            maybe_shutdown()
            self.turn()

    def end(self) -> None:
        """The broker is back: the consumer's own loop begins. No message of a pool process is left half read."""
        deadline = time.monotonic() + _LONGEST_MESSAGE_SECONDS
        while self._is_within_a_message() and time.monotonic() < deadline:
            self.turn()
        loops._cancel_timer_entries(self._hub.timer, self._timers)
        # Time limits that were set meanwhile are not the connection's.
        self._consumer.timer_entries_before_start = loops._timer_entries(self._hub.timer)

    def turn(self) -> None:
        """One turn of the loop."""
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


class _Probe:
    """A thread that asks Redis until it answers: one that hangs keeps this thread waiting, and nobody else."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        threading.Thread(target=self._ask, name="jobs-broker-probe", daemon=True).start()

    def _ask(self) -> None:
        pause = threading.Event()
        while True:
            doorbell = Doorbell.within(_PROBE_SECONDS)
            try:
                doorbell.ping()
                self.answered.set()
                return
            except REDIS_AWAY:
                pause.wait(_PROBE_SECONDS / 2)
            finally:
                doorbell.close()
