"""What `/health` and `/readyz` say: bounded in time, and true also when PostgreSQL or Redis is away or hangs."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import redis
from django.db import DatabaseError, InterfaceError, connections, router
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from jobs import selectors
from jobs.cron import selectors as cron
from jobs.doorbell import Contents, Doorbell
from jobs.models import Worker
from jobs.queues import QUEUES
from jobs.selectors import QueueStatus

logger = logging.getLogger(__name__)

DUTIES = ("dispatcher", "beat")
# G16: what lasts for longer is reported, so that it is within a minute of its beginning.
TICK_AGE_LIMIT_SECONDS = 45
DATABASE_PATIENCE_SECONDS = 3.0
REDIS_PATIENCE_SECONDS = 0.3
# A hung server keeps the thread that asked it: never more than these at once in a process.
_MOST_QUESTIONS = 8
_MOST_NAMED = 5
# Jobs may wait so long for a worker that is being replaced.
PATIENCE_SECONDS = 30.0
# A queue that only grows is reported where jobs have waited for so long.
_GROWS_SECONDS = 60.0
# The answer of a look is that of others who ask within this.
SHARED_SECONDS = 1.0

Answer = TypeVar("Answer")
_questions = threading.BoundedSemaphore(_MOST_QUESTIONS)


class NoAnswer(Exception):
    """A server did not answer in time, or its answer was an error."""


@dataclass(kw_only=True)
class Health:
    """The state of the whole system, for probes and monitors."""

    reasons: list[str] = field(default_factory=list)
    # What somebody has wanted so, and is to be remembered: it degrades nothing.
    warnings: list[str] = field(default_factory=list)
    statuses: list[QueueStatus] = field(default_factory=list)
    tick_ages_seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(DUTIES))

    @property
    def is_ok(self) -> bool:
        """Whether there is nothing to report."""
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        """The body of `/health`."""
        return {
            "status": "ok" if self.is_ok else "degraded",
            "reasons": self.reasons,
            "warnings": self.warnings,
            "queues": {status.name: _counts(status) for status in self.statuses if status.is_declared},
            **{
                name: {"tick_age_seconds": None if age is None else round(age, 1)}
                for name, age in self.tick_ages_seconds.items()
            },
        }


class Shared(Generic[Answer]):
    """One look for all that ask at the same time, and for those that ask within a second after it."""

    def __init__(self, look: Callable[[], Answer]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._found: list[Answer] = []
        self._until = 0.0

    def get(self) -> Answer:
        """What that look has found. Nobody is to change it."""
        with self._lock:
            if not self._found or time.monotonic() >= self._until:
                self._found = [self._look()]
                self._until = time.monotonic() + SHARED_SECONDS
            return self._found[0]


def check() -> Health:
    """Asks PostgreSQL and Redis at the same time and judges what they say.

    Never raises. Takes milliseconds; 3.3 s at the most, when both servers are frozen. Many that ask at once share one
    look, whose answer holds for a second.
    """
    return _health.get()


def _check() -> Health:
    ledger = Question("PostgreSQL", _Ledger.read)
    broker = Question("Redis", _contents)
    health = Health()
    most_messages: dict[str, int] = {}
    deaf_workers: list[tuple[str, float]] = []
    try:
        seen = ledger.answer(DATABASE_PATIENCE_SECONDS)
    except NoAnswer as error:
        health.reasons.append(str(error))
    else:
        health.statuses = list(seen.statuses.values())
        health.tick_ages_seconds = {name: seen.ages_seconds.get(name) for name in DUTIES}
        health.reasons += seen.reasons()
        health.warnings += seen.warnings()
        most_messages, deaf_workers = selectors.most_messages(seen.workers), seen.deaf_workers
    try:
        contents = broker.answer(REDIS_PATIENCE_SECONDS)
    except NoAnswer as error:
        health.reasons.append(str(error))
    else:
        health.reasons += [
            f"{queue}: Redis holds {contents.counts[queue]} messages, and its workers can use {most}."
            for queue, most in most_messages.items()
            if contents.counts.get(queue, 0) > most
        ]
        health.reasons += contents.sentences
        # Where it answers nobody, that is said already.
        health.reasons += [
            f"{node}: Redis has not answered it for {seconds:.0f} s. It starts no jobs with limits."
            for node, seconds in deaf_workers
        ]
    return health


def why_not_ready() -> str | None:
    """Why this process should get no requests: database away, or migrations of this version not applied yet."""
    return _readiness.get()


def _why_not_ready() -> str | None:
    try:
        missing = Question("PostgreSQL", _unapplied_migrations).answer(DATABASE_PATIENCE_SECONDS)
    except NoAnswer as error:
        return str(error)
    return f"Migrations are not applied: {', '.join(missing)}." if missing else None


_health, _readiness = Shared(_check), Shared(_why_not_ready)


def why_no_broker() -> str | None:
    """A sentence where Redis does not answer at once."""
    try:
        Question("Redis", _contents).answer(REDIS_PATIENCE_SECONDS)
    except NoAnswer as error:
        return str(error)
    return None


class Question(Generic[Answer]):
    """Asks a server in a thread of its own, because no driver can be interrupted while a frozen server says nothing.

    The thread has its own database connection, which also proves that new connections are possible.
    """

    def __init__(self, server: str, ask: Callable[[], Answer]) -> None:
        self._server = server
        self._ask = ask
        self._answers: SimpleQueue[Answer | Exception] = SimpleQueue()
        self._is_asked = _questions.acquire(blocking=False)
        if self._is_asked:
            threading.Thread(target=self._run, name=f"health-{server}", daemon=True).start()

    def answer(self, patience_seconds: float) -> Answer:
        """The answer, waited for so long at the most. Raises NoAnswer, with a sentence that holds no secrets."""
        if not self._is_asked:
            raise NoAnswer(f"{self._server} does not answer: earlier checks still wait for it.")
        try:
            answer = self._answers.get(timeout=patience_seconds)
        except Empty:
            raise NoAnswer(f"{self._server} does not answer within {patience_seconds:g} s.") from None
        if isinstance(answer, Exception):
            logger.warning("Health check of %s: %s", self._server, answer)
            raise NoAnswer(f"{self._server} does not answer.") from answer
        return answer

    def _run(self) -> None:
        try:
            answer: Answer | Exception = self._ask()
        except (DatabaseError, InterfaceError, redis.RedisError, OSError, ValueError) as error:
            # The last for an address that names no Redis.
            answer = error
        finally:
            connections.close_all()
            _questions.release()
        self._answers.put(answer)


@dataclass(frozen=True, kw_only=True)
class _Ledger:
    """What PostgreSQL says at one moment, and what there is to say about it."""

    statuses: dict[str, QueueStatus]
    workers: list[Worker]
    idle_workers: list[tuple[str, float]]
    deaf_workers: list[tuple[str, float]]
    ages_seconds: dict[str, float | None]
    late_duties: list[tuple[str, float | None, str]]
    broken_schedules: list[str]
    unknown_tasks: dict[str, set[str]]

    @classmethod
    def read(cls) -> "_Ledger":
        """Asks PostgreSQL."""
        workers = list(selectors.living_workers())
        return cls(
            statuses=selectors.queue_statuses(workers),
            workers=workers,
            idle_workers=selectors.idle_workers(after_seconds=PATIENCE_SECONDS),
            deaf_workers=selectors.deaf_workers(after_seconds=PATIENCE_SECONDS),
            ages_seconds=selectors.tick_ages_seconds(),
            late_duties=selectors.late_duties(after_seconds=TICK_AGE_LIMIT_SECONDS),
            broken_schedules=cron.broken_schedules(),
            unknown_tasks=selectors.unknown_tasks(workers),
        )

    def reasons(self) -> list[str]:
        """What is wrong."""
        ages = {name: self.ages_seconds.get(name) for name in DUTIES}
        reasons = [reason for status in self.statuses.values() for reason in _queue_reasons(status)]
        reasons += _tick_reasons(ages)
        # Where nobody leads, none of them is done, and that is said already.
        if (ages["dispatcher"] or 0) <= TICK_AGE_LIMIT_SECONDS:
            reasons += [_late_reason(*one) for one in self.late_duties]
        # With threads that outlived the time limit of their job.
        reasons += [
            f"{worker.node}: {worker.stuck_count} of {worker.concurrency} slots are stuck in runs past a time limit "
            "or cancelled."
            for worker in self.workers
            if worker.stuck_count
        ]
        reasons += [
            f"{node}: lives, but has not looked for jobs for {seconds:.0f} s. Restart it."
            for node, seconds in self.idle_workers
        ]
        reasons += [
            f"{worker.node}: takes from no queue any more, as it was told by cancel_consumer."
            for worker in self.workers
            if worker.left_queues and not worker.queues
        ]
        reasons += [f"{left}, and no other worker does." for name, left in self._left() if not self._is_taken(name)]
        reasons += _schedule_reasons(self.broken_schedules)
        reasons += [
            f"{queue}: no living worker knows the task {task}, of which jobs wait."
            for queue, tasks in sorted(self.unknown_tasks.items())
            for task in sorted(tasks)[:_MOST_NAMED]
        ]
        return reasons

    def warnings(self) -> list[str]:
        """What somebody has wanted so."""
        warnings = [
            f"{status.name}: paused, with {status.words('paused')} jobs waiting."
            for status in self.statuses.values()
            if status.paused
        ]
        return warnings + [f"{left}; others do." for name, left in self._left() if self._is_taken(name)]

    def _left(self) -> Iterator[tuple[str, str]]:
        """Queues that workers have left, while they take from others, each with a sentence that has no end yet."""
        for worker in self.workers:
            for name in worker.left_queues if worker.queues else ():
                yield name, f"{worker.node}: does not take from {name} any more, as it was told by cancel_consumer"

    def _is_taken(self, queue: str) -> bool:
        return any(queue in worker.queues for worker in self.workers)


def _unapplied_migrations() -> list[str]:
    applied = MigrationRecorder(connections[router.db_for_write(Worker)]).applied_migrations()
    return sorted(f"{app}.{name}" for app, name in _migrations_of_this_version() - applied.keys())


@cache
def _migrations_of_this_version() -> frozenset[tuple[str, str]]:
    return frozenset(MigrationLoader(None).disk_migrations)


def _contents() -> Contents:
    doorbell = Doorbell.within(REDIS_PATIENCE_SECONDS)
    try:
        return doorbell.contents(QUEUES)
    finally:
        doorbell.close()


def _counts(status: QueueStatus) -> dict[str, Any]:
    names = ("waiting", "active", "completed", "failed", "delayed", "paused")
    counts: dict[str, Any] = {name: getattr(status, name) for name in names}
    if status.counted_seconds_ago:
        counts["counted_seconds_ago"] = {name: round(age) for name, age in status.counted_seconds_ago.items()}
    if status.at_least:
        counts["at_least"] = sorted(status.at_least)
    return counts


def _queue_reasons(status: QueueStatus) -> list[str]:
    if not status.is_declared:
        is_stranded = status.has_waited_longer(PATIENCE_SECONDS)
        waiting = status.words("waiting")
        return [f"{status.name}: {waiting} jobs wait in a queue that nobody declares."] if is_stranded else []
    reasons = []
    if status.has_no_worker and status.has_waited_longer(PATIENCE_SECONDS):
        reasons.append(f"{status.name}: {status.words('waiting')} jobs wait, and no living worker takes from it.")
    if status.has_waited_longer(status.oldest_threshold_seconds):
        reasons.append(
            f"{status.name}: the oldest job has waited for {status.oldest_waiting_seconds:.0f} s "
            f"(threshold {status.oldest_threshold_seconds} s)."
        )
    if status.growth is not None and status.has_waited_longer(_GROWS_SECONDS):
        reasons.append(
            f"{status.name}: grows. In five minutes {status.growth.arrived} jobs came and {status.growth.ended} ended, "
            "and no more of them are being started."
        )
    if status.has_too_many_waiting:
        reasons.append(
            f"{status.name}: {status.words('waiting')} jobs waiting (threshold {status.waiting_threshold_count})."
        )
    if status.has_too_many_failed:
        reasons.append(
            f"{status.name}: {status.failed_last_hour_count} jobs failed in the last hour "
            f"(threshold {status.failed_threshold_count})."
        )
    return reasons


def _schedule_reasons(names: list[str]) -> list[str]:
    # What is wrong with it may quote arguments, which are nobody's business here.
    reasons = [f"The schedule {name!r} is broken: its page in the admin says why." for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        reasons.append(f"{len(names) - _MOST_NAMED} more schedules are broken.")
    return reasons


def _tick_reasons(ages_seconds: dict[str, float | None]) -> list[str]:
    reasons = []
    for name, age in ages_seconds.items():
        if age is None:
            reasons.append(f"The {name} has never ticked: is one running?")
        elif age > TICK_AGE_LIMIT_SECONDS:
            reasons.append(f"The {name} last ticked {age:.0f} s ago (limit {TICK_AGE_LIMIT_SECONDS} s).")
    return reasons


def _late_reason(name: str, age_seconds: float | None, error: str) -> str:
    since = "has never succeeded" if age_seconds is None else f"last succeeded {age_seconds:.0f} s ago"
    # What was raised may quote arguments, which are nobody's business here.
    kind = error.partition(":")[0]
    return f"The dispatcher's duty {name} {since}{f' ({kind}: see the logs of the workers)' if kind else ''}."
