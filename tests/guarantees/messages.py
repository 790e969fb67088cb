"""How much lies in Redis, whatever is done to it meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from django.conf import settings

from jobs.doorbell import REDIS_AWAY
from jobs.queues import QUEUES

_LOOK_SECONDS = 0.02
# A queue without limits has its ring, one with limits sixteen grants; the leader has two doorbells.
MOST_MESSAGES = 16 + len(QUEUES) + 2


@contextmanager
def messages_counted() -> Iterator[list[int]]:
    """How many messages lie in all of Redis, looked at again and again while the block runs and Redis answers."""
    counts: list[int] = []
    over = threading.Event()

    def look() -> None:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1) as client:
            sizes: dict[bytes, Callable[[Any], Any]] = {b"zset": client.zcard, b"list": client.llen}
            while not over.wait(_LOOK_SECONDS):
                try:
                    keys = [(key, client.type(key)) for key in client.scan_iter()]
                    counts.append(sum(sizes[kind](key) for key, kind in keys if kind in sizes))
                except REDIS_AWAY:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()
