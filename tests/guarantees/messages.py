"""How much lies in Redis, whatever is done to it meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from django.conf import settings

from jobs.doorbell import DUE, MOST_TOLD, PACED, REDIS_AWAY, key_of
from jobs.queues import QUEUES

_LOOK_SECONDS = 0.02
# For workers: a queue without limits has its ring, and one with limits sixteen grants.
MOST_FOR_WORKERS = 16 + len(QUEUES)
# For the leader: the rings of its two doorbells, and the jobs with limits that are named to it.
MOST_FOR_LEADER = MOST_TOLD + 2


class Counts(NamedTuple):
    """Messages that lay in all of Redis at the looks, at each so many for workers and so many for the leader."""

    for_workers: list[int]
    for_leader: list[int]

    def assert_bounded(self) -> None:
        """There were enough looks, and at none of them more messages than there may be."""
        assert len(self.for_workers) > 50
        assert max(self.for_workers) <= MOST_FOR_WORKERS
        assert max(self.for_leader) <= MOST_FOR_LEADER


@contextmanager
def messages_counted() -> Iterator[Counts]:
    """Looks at all of Redis again and again while the block runs and Redis answers."""
    counts = Counts([], [])
    over = threading.Event()
    leader = {key_of(name).encode() for name in (DUE, PACED)}

    def look() -> None:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1) as client:
            sizes: dict[bytes, Callable[[Any], Any]] = {b"zset": client.zcard, b"list": client.llen}
            while not over.wait(_LOOK_SECONDS):
                try:
                    keys = [(key, client.type(key)) for key in client.scan_iter()]
                    found = {key: sizes[kind](key) for key, kind in keys if kind in sizes}
                    for_leader = sum(count for key, count in found.items() if key in leader)
                    counts.for_leader.append(for_leader)
                    counts.for_workers.append(sum(found.values()) - for_leader)
                except REDIS_AWAY:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()
