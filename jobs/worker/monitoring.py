"""Events for monitors such as Flower: sent in bunches, by a thread of their own.

In bunches, because each message to Redis costs as much as a claim. By a thread, because a Redis that hangs would keep
the worker's main thread waiting, and with it every job.
"""

import logging
import threading
from collections import deque
from typing import Any

from celery import bootsteps
from kombu import Producer

from jobs.doorbell import REDIS_AWAY

logger = logging.getLogger(__name__)

_BUNCH_SECONDS = 0.25
_BUNCH_COUNT = 500
# What is kept while Redis is away; monitors miss the oldest.
_KEPT_MESSAGES = 1000
_AWAY_SECONDS = 1.0


class BunchEvents(bootsteps.StartStopStep):
    """Celery sends what it has buffered at each turn of the event loop; here it does so four times a second."""

    requires = ("celery.worker.consumer.events:Events",)
    label = "Event bunches"

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._sender: _Sender | None = None

    def start(self, consumer: Any) -> None:
        """Called again after each reconnect, when there is another dispatcher."""
        dispatcher = consumer.event_dispatcher
        if dispatcher is None:
            return
        if self._sender is None:
            self._sender = _Sender(consumer.app, dispatcher)
            self._sender.start()
        dispatcher._publish = self._sender.put
        if dispatcher.on_send_buffered is not None:
            dispatcher.buffer_limit = _BUNCH_COUNT
            dispatcher.on_send_buffered = _Bunch(consumer.hub, dispatcher).wait


class _Bunch:
    def __init__(self, hub: Any, dispatcher: Any) -> None:
        self._hub = hub
        self._dispatcher = dispatcher
        self._waiting = False

    def wait(self) -> None:
        """An event was buffered: it goes out with those that follow shortly."""
        if not self._waiting:
            self._waiting = True
            # Timers belong to the loop's own thread.
            self._hub.call_soon(self._hub.call_later, _BUNCH_SECONDS, self._send)

    def _send(self) -> None:
        self._waiting = False
        self._dispatcher.flush()


class _Sender(threading.Thread):
    """Publishes what a dispatcher would, over a connection of its own. Events may be lost, and no job waits for one."""

    def __init__(self, app: Any, dispatcher: Any) -> None:
        super().__init__(name="jobs-events", daemon=True)
        self._app, self._exchange = app, dispatcher.exchange
        self._options = {
            "serializer": dispatcher.serializer,
            "headers": dispatcher.headers,
            "delivery_mode": dispatcher.delivery_mode,
        }
        self._messages: deque[tuple[Any, str]] = deque(maxlen=_KEPT_MESSAGES)
        self._there_is_something = threading.Event()

    def put(self, event: Any, producer: Any, routing_key: str, **_: Any) -> None:
        """In the place of `EventDispatcher._publish`. Costs microseconds."""
        self._messages.append((event, routing_key))
        self._there_is_something.set()

    def run(self) -> None:
        """As long as the process lives."""
        pause = threading.Event()
        while True:
            try:
                with self._app.connection_for_write() as connection:
                    self._publish_by(Producer(connection, exchange=self._exchange, auto_declare=False))
            except REDIS_AWAY as error:
                logger.debug("Events for monitors are not taken (%s).", error)
            except Exception:  # whatever is wrong with one, the others are wanted
                logger.exception("An event for monitors could not be sent.")
            pause.wait(_AWAY_SECONDS)

    def _publish_by(self, producer: Any) -> None:
        while True:
            self._there_is_something.wait()
            self._there_is_something.clear()
            while self._messages:
                event, routing_key = self._messages.popleft()
                producer.publish(
                    event,
                    routing_key=routing_key,
                    exchange=self._exchange.name,
                    declare=[self._exchange],
                    retry=False,
                    **self._options,
                )
