"""Celery's lists in Redis, in whose place somebody has put something else: they are passed over, and named.

Celery asks Redis for messages of all its lists at once, and ends the worker where one of them is none.
"""

import logging
import time
from typing import Any

import redis

logger = logging.getLogger(__name__)

# How often it is looked whether a list is in its place again.
_LOOK_SECONDS = 5.0
# Nobody puts anything there.
_NOTHING = "handoff:nothing"


def watch(connection: Any) -> None:
    """Lets the channels of a connection of kombu's, which is not made yet, pass over what is no list."""
    transport = connection.transport
    if not issubclass(transport.Channel, PassesOver):
        transport.Channel = type("LedgerChannel", (PassesOver, transport.Channel), {})


class PassesOver:
    """Put before a channel class of kombu's for Redis."""

    _strange: frozenset[str] = frozenset()
    _look_at = 0.0
    _is_asking = False

    def _size(self: Any, queue: str) -> Any:
        # Asked when a queue is declared.
        try:
            return super()._size(queue)  # type: ignore[misc]
        except redis.ResponseError as error:
            self._look(error, queue)
            return 0

    def _brpop_start(self: Any, timeout: Any = None) -> Any:
        if self._strange and time.monotonic() >= self._look_at:
            self._look_again()
        self._is_asking = True
        try:
            return super()._brpop_start(timeout)  # type: ignore[misc]
        finally:
            self._is_asking = False

    def _brpop_read(self: Any, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except redis.ResponseError as error:
            self._look(error)
            return True

    def _q_for_pri(self: Any, queue: str, pri: int) -> str:
        name: str = super()._q_for_pri(queue, pri)  # type: ignore[misc]
        return _NOTHING if self._is_asking and name in self._strange else name

    def _look(self: Any, error: Exception, *queues: str) -> None:
        if "WRONGTYPE" not in str(error):
            raise error
        self._look_again(*queues)

    def _look_again(self: Any, *queues: str) -> None:
        self._look_at = time.monotonic() + _LOOK_SECONDS
        names = [self._q_for_pri(name, pri) for name in {*self.active_queues, *queues} for pri in self.priority_steps]
        with self.conn_or_acquire() as client, client.pipeline() as pipeline:
            for name in names:
                pipeline.type(name)
            kinds = [kind.decode() for kind in pipeline.execute()]
        strange = {name: kind for name, kind in zip(names, kinds, strict=True) if kind not in ("list", "none")}
        for name in strange.keys() - self._strange:
            logger.error(
                "Redis's key %s is a %s, and no list of messages: none are taken from there. Work goes on. Find out "
                "who has put it there, and delete it: redis-cli DEL %s",
                name,
                strange[name],
                name,
            )
        self._strange = frozenset(strange)
