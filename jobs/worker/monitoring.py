"""Events for monitors such as Flower: sent in bunches, because each message to Redis costs as much as taking a hint."""

from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from kombu.asynchronous import get_event_loop

_BUNCH_SECONDS = 0.25
_BUNCH_COUNT = 500


class BunchingDispatcher(EventDispatcher):
    """Celery's dispatcher, which sends what it has buffered at each turn of the event loop; here four times a second.

    Without an event loop, as with the threads pool, Celery buffers nothing, and neither does this.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._scheduled = False
        if options.get("on_send_buffered"):
            options |= {"on_send_buffered": self._buffered, "buffer_limit": _BUNCH_COUNT}
        super().__init__(*args, **options)

    def _buffered(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            # Timers belong to the loop's own thread.
            get_event_loop().call_soon(self._schedule)

    def _schedule(self) -> None:
        get_event_loop().call_later(_BUNCH_SECONDS, self._send_bunch)

    def _send_bunch(self) -> None:
        self._scheduled = False
        self.flush()


class BunchedEvents(Events):
    """`app.events`, with that dispatcher."""

    dispatcher_cls = "jobs.worker.monitoring:BunchingDispatcher"
