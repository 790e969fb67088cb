"""The only way in which a process that must not wait tells Redis of a job: one bounded try, behind a breaker."""

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Self
from uuid import UUID

import redis

from jobs import commits
from jobs.doorbell import DUE, PACED, REDIS_AWAY, Doorbell, client_within
from jobs.models import Job
from jobs.queues import PACED_QUEUES

logger = logging.getLogger(__name__)

# What a step of a request may wait for Redis: one such wait opens the breaker.
_REQUEST_TIMEOUT_SECONDS = 0.15
# A Redis that answers, but so late, is no better than one that is away. Once may be this process's own fault, which
# connects for the first ring, or was not given the processor: so it takes two in a row.
_SLOW_SECONDS = 0.1
_SLOW_SENDS = 2
_WATCH_SECONDS = 0.5
_WATCH_PATIENCE_SECONDS = 2.0
# Less than the seconds for which claims look back in any case (`jobs.worker.floors`).
LATE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Ring:
    """What Redis is told after a commit: that a queue has work, or that the leader has.

    It names a job to the leader. To workers it names one only where that is *late*: it was due some seconds before
    others can see it. Workers that pass over the part of a queue in which nothing waits any more would find such a job
    seconds later.
    """

    queue: str
    priority: int
    # To whom: a worker of the queue; the leader, for a job with limits; or the leader, for one that is due shortly.
    leader: str | None = None
    job_id: UUID | None = field(default=None, compare=False)
    due_at: float = field(default_factory=time.time, compare=False)
    # The job that it names is one of many that became waiting together.
    is_of_many: bool = False

    @classmethod
    def of(cls, job: Job, *, is_of_many: bool = False) -> Self:
        """The ring for a job that waits. The leader decides when one with limits may start."""
        leader = PACED if job.lane or job.queue in PACED_QUEUES else None
        due_at = job.run_at.timestamp() if isinstance(job.run_at, datetime) else time.time()
        return cls(job.queue, job.priority, leader, job.pk, due_at, is_of_many)

    @classmethod
    def for_waiting(cls, queue: str, priority: int, lane: str) -> Self:
        """The same, by the columns of the job."""
        return cls(queue, priority, PACED if lane or queue in PACED_QUEUES else None)

    @classmethod
    def of_due(cls, job: Job) -> Self:
        """The ring for a delayed job that is due before the leader would look again."""
        return cls(job.queue, job.priority, DUE)

    def send(self, doorbell: Doorbell) -> None:
        """Sends it. Raises what Redis raises; then it may or may not have arrived."""
        is_late = time.time() - self.due_at > LATE_SECONDS
        if self.leader is None:
            if self.job_id is not None and is_late:
                doorbell.ring_for(self.queue, self.job_id, self.priority)
            else:
                doorbell.ring(self.queue, self.priority)
            return
        is_named = self.leader == PACED and self.job_id is not None
        if not is_named or self.is_of_many:
            doorbell.wake(self.leader)
        if is_named and self.job_id is not None and (is_late or not self.is_of_many):
            doorbell.tell(self.job_id)


class Publisher:
    """Sends rings from a process that must not wait: one bounded try, or two slow ones, then nothing at all until Redis
    is back and quick.

    While the breaker is open, a thread of its own looks at Redis twice a second.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._doorbell = Doorbell.within(_REQUEST_TIMEOUT_SECONDS)
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._broken = False
        self._slow_count = 0

    def send(self, ring: Ring) -> bool:
        """Sends a ring, unless Redis is away: then workers find the job by themselves."""
        if self._broken:
            self._watch()
            return False
        began = time.monotonic()
        try:
            ring.send(self._doorbell)
        except REDIS_AWAY as error:
            self._break(f"takes no rings ({error})")
            return False
        self._slow_count = self._slow_count + 1 if time.monotonic() - began > _SLOW_SECONDS else 0
        if self._slow_count >= _SLOW_SENDS:
            self._break("is slow to take rings")
        return True

    def _break(self, why: str) -> None:
        self._broken = True
        logger.warning("Redis %s. Jobs are safe in the database; sending resumes by itself.", why)
        self._watch()

    def _watch(self) -> None:
        with self._lock:
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._keep_watch, name="jobs-publish-watch", daemon=True)
                self._watcher.start()

    def _keep_watch(self) -> None:
        pause = threading.Event()
        with client_within(_WATCH_PATIENCE_SECONDS) as client:
            while self._broken:
                pause.wait(_WATCH_SECONDS)
                self._look(client)

    def _look(self, client: "redis.Redis") -> None:
        began = time.monotonic()
        try:
            client.ping()
        except REDIS_AWAY:
            return
        if time.monotonic() - began <= _SLOW_SECONDS:
            logger.info("Redis takes rings again.")
            self._slow_count = 0
            self._broken = False


_publisher: Publisher | None = None


def after_commit(ring: Ring) -> None:
    """Rings once the current transaction on the ledger's database has committed; at once where there is none.

    Robust: the row is there, and workers find it without a ring as well.
    """
    commits.then(partial(soon, ring))


def soon(ring: Ring) -> bool:
    """Rings now. Returns whether it went out; never raises, never waits twice."""
    return _own_publisher().send(ring)


def _own_publisher() -> Publisher:
    global _publisher
    if _publisher is None or _publisher.pid != os.getpid():
        _publisher = Publisher()
    return _publisher
