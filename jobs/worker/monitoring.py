"""Events for monitors such as Flower: sent in bunches, because each message to Redis costs as much as taking a hint."""

from typing import Any

from celery import bootsteps

_BUNCH_SECONDS = 0.25
_BUNCH_COUNT = 500


class BunchEvents(bootsteps.StartStopStep):
    """Celery sends what it has buffered at each turn of the event loop; here it does so four times a second.

    Without an event loop, as with the threads pool, Celery buffers nothing, and neither does this.
    """

    requires = ("celery.worker.consumer.events:Events",)
    label = "Event bunches"

    def start(self, consumer: Any) -> None:
        """Called again after each reconnect, when there is another dispatcher."""
        dispatcher = consumer.event_dispatcher
        if dispatcher is not None and dispatcher.on_send_buffered is not None:
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
