"""How a worker finds its jobs: a thread of its main process claims them while slots of the pool are free.

A job without limits is claimed from the head of its queue, a job with limits when it was granted. A ring in Redis only
ends the pause of a worker that found nothing; one that has found something asks again without it, and each worker looks
once a second by itself. So neither the length of a queue nor the state of Redis decides whether a job is found.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from celery.app.task import Task
from django.db import connections

from jobs import claims, settle
from jobs.claims import Claim
from jobs.dispatcher.ageing import OLD, SHARE
from jobs.doorbell import REDIS_AWAY, Doorbell, Taken
from jobs.ids import id_of_message
from jobs.models import Job
from jobs.patience import DATABASE_AWAY
from jobs.queues import QUEUES
from jobs.settle import Run
from jobs.worker import identity
from jobs.worker.requests import ClaimedMessage, arriving, occupied_count
from jobs.worker.thread import DutyThread

logger = logging.getLogger(__name__)

# Between two looks of a worker that has free slots and has found nothing.
LOOK_SECONDS = 1.0
# While there is enough to do, what lies in Redis is asked for so often.
_HEAR_SECONDS = 0.02
# A grant that could not be used for so long is forgotten: whoever leads gives it anew.
_GRANT_SECONDS = 1.0
# What all a queue's waiting jobs are being claimed by others looks like: none. It is asked for once more after this.
_SECOND_LOOK_SECONDS = 0.01
_AWAY_SECONDS = 0.2
_ANY_PRIORITY = 5


class Granted(NamedTuple):
    """A job that may start, by the leader's word, and when this worker heard so."""

    job_id: UUID
    heard_at: float


class Claimer(DutyThread):
    """Claims as many jobs as there are free slots, and hands them to the pool through Celery.

    The queues take turns, and grants with them. Nothing is claimed that could not start at once.
    """

    def __init__(self, worker: Any, *, tasks: Sequence[str]) -> None:
        super().__init__("jobs-claimer", _AWAY_SECONDS)
        self._worker = worker
        self._tasks = list(tasks)
        self._doorbell = Doorbell.patient()
        # Any of: a slot is free, something is to be adopted, the end.
        self._roused = threading.Event()
        self._grants: deque[Granted] = deque()
        # Queues in which jobs wait, as far as is known, in the order of their turns.
        self._busy: deque[str] = deque()
        # Since the last job of a queue that went ahead because of its age.
        self._starts: Counter[str] = Counter()
        self._turn = 0
        # Where others may help: a ring was left for them.
        self._rung: set[str] = set()
        self._look_at = self._hear_at = 0.0
        self._deaf_until = 0.0
        # What to ask where the answer to a claim was lost.
        self._unanswered: Callable[[], list[Claim]] | None = None
        self._strangers: deque[Callable[[], None]] = deque()
        self._delivered: deque[Claim] = deque()

    # -- What the worker's other parts call -----------------------------------------------------------------------
    def adopt(self, task: Any, message: Any, body: Any, ack: Any, reject: Any) -> None:
        """Makes a job of another producer's message, unless its id is one already. Called in the main thread.

        The message is acknowledged once the job is committed; kombu holds no more than a few that are not.
        """
        self._strangers.append(_Stranger(task, message, body, ack, reject).become_a_job)
        self._roused.set()

    def free_a_slot(self, *_: Any) -> None:
        """A request of this worker has ended. Called in whatever thread has noticed."""
        self._roused.set()

    def stop(self) -> None:
        """Claims nothing from now on; what was claimed is still handed to the pool."""
        super().stop()
        self._roused.set()

    @property
    def slot_count(self) -> int:
        """How many jobs the pool runs at once; where it scales by itself, how many it may grow to."""
        pool = self._worker.pool
        return getattr(self._worker, "max_concurrency", None) or pool.num_processes

    # -- The thread ----------------------------------------------------------------------------------------------
    def run_once(self) -> None:
        """Claims what there is to claim, or waits until that may have changed; again and again, until an error."""
        while not self._stopping.is_set():
            self._round()

    def _round(self) -> None:
        if self._unanswered is not None:
            self._deliver(self._unanswered())
            self._unanswered = None
        while self._strangers:
            self._strangers[0]()
            self._strangers.popleft()
        queues = self._queues()
        free = self.slot_count - occupied_count()
        if free <= 0 or not queues:
            self._let_others_go_on()
            self._pause(LOOK_SECONDS)
            return
        now = time.monotonic()
        if now >= self._look_at:
            self._look(queues)
        if not self._busy and not self._grants:
            self._listen(queues, self._look_at - time.monotonic())
            return
        if now >= self._hear_at:
            self._hear_at = now + _HEAR_SECONDS
            self._hear(queues, free)
        self._claim(free, queues)

    def _queues(self) -> list[str]:
        """Those that this worker consumes at this moment, as `cancel_consumer` and `add_consumer` leave them."""
        consumer = self._worker.consumer
        if self._stopping.is_set() or consumer is None or not consumer.strategies:
            return []
        return [name for name in list(self._worker.app.amqp.queues.consume_from) if name in QUEUES]

    def _pause(self, seconds: float) -> None:
        self._roused.wait(max(0.0, seconds))
        self._roused.clear()

    def _look(self, queues: list[str]) -> None:
        """Asks PostgreSQL by itself in which queues jobs wait."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        for name in claims.queues_with_waiting(queues):
            self._is_busy(name)

    def _is_busy(self, queue: str) -> None:
        if queue not in self._busy:
            self._busy.append(queue)

    def _listen(self, queues: list[str], seconds: float) -> None:
        """Waits for a ring or a grant."""
        if self._is_deaf or self._strangers:
            self._pause(min(seconds, _AWAY_SECONDS))
            return
        try:
            taken = self._doorbell.listen(self._turned(queues), min(seconds, LOOK_SECONDS))
        except REDIS_AWAY:
            self._be_deaf()
            return
        if taken is not None:
            self._heard(taken)

    @property
    def _is_deaf(self) -> bool:
        return time.monotonic() < self._deaf_until or self._worker.consumer.connection is None

    def _be_deaf(self) -> None:
        """Redis does not answer: for a while, this worker looks by itself, and its main thread waits for nothing."""
        self._deaf_until = time.monotonic() + LOOK_SECONDS
        self._look_at = 0.0
        self._worker.consumer.leave_the_broker()

    def _hear(self, queues: list[str], count: int) -> None:
        """Takes what is at the doorbells, without waiting."""
        if self._is_deaf:
            return
        try:
            for taken in self._doorbell.take(self._turned(queues), count):
                self._heard(taken)
        except REDIS_AWAY:
            self._be_deaf()

    def _heard(self, taken: Taken) -> None:
        if taken.job_id is None:
            self._rung.discard(taken.queue)
            self._is_busy(taken.queue)
        else:
            self._grants.append(Granted(taken.job_id, time.monotonic()))

    def _turned(self, queues: list[str]) -> list[str]:
        """The queues, another of them first each time."""
        self._turn += 1
        place = self._turn % len(queues)
        return queues[place:] + queues[:place]

    # -- Claiming ------------------------------------------------------------------------------------------------
    def _claim(self, free: int, queues: Collection[str]) -> None:
        """One claim: of what was granted, or of the queue whose turn it is."""
        old = time.monotonic() - _GRANT_SECONDS
        while self._grants and self._grants[0].heard_at < old:
            self._grants.popleft()
        self._turn += 1
        if self._grants and (self._turn % 2 or not self._busy):
            self._claim_granted(free)
        elif self._busy:
            queue = self._busy.popleft()
            if queue in queues:
                self._claim_next(queue, free)

    def _claim_granted(self, free: int) -> None:
        granted = [self._grants.popleft() for _ in range(min(free, len(self._grants)))]
        tokens = {one.job_id: identity.new_token() for one in granted}
        common: dict[str, Any] = {"tasks": self._tasks, "worker_id": identity.incarnation()}
        self._unanswered = partial(claims.claim, tokens, repeated=True, **common)
        found = claims.claim(tokens, **common)
        self._unanswered = None
        self._deliver(found)

    def _claim_next(self, queue: str, free: int) -> None:
        """Claims from the head of a queue, which stays busy as long as something is found there."""
        # Another queue's turn comes sooner where fewer are claimed at once.
        count = free if not self._grants else 1
        count = max(1, count // (1 + len(self._busy)))
        found = self._claim_from(queue, count)
        if not found and queue in self._rung:
            self._roused.wait(_SECOND_LOOK_SECONDS)
            found = self._claim_from(queue, count)
        if found:
            self._deliver(found)
            self._busy.append(queue)
        else:
            self._rung.discard(queue)

    def _claim_from(self, queue: str, count: int) -> list[Claim]:
        """The next jobs of a queue. Every tenth start is that of the job that has waited longest."""
        token, worker_id = identity.new_token(), identity.incarnation()
        common: dict[str, Any] = {"token": token, "tasks": self._tasks, "worker_id": worker_id}
        self._unanswered = partial(claims.claimed_before, token=token, worker_id=worker_id)
        found: list[Claim] = []
        if self._starts[queue] >= SHARE:
            found = claims.claim_oldest(queue, age=OLD, **common)
            self._starts[queue] = 0
        if not found:
            found = claims.claim_next(queue, count=count, **common)
            self._starts[queue] += len(found)
        self._unanswered = None
        return found

    def _let_others_go_on(self) -> None:
        """This worker has its hands full, and more waits than it could claim."""
        for queue in self._busy:
            if queue not in self._rung and not self._is_deaf:
                try:
                    self._doorbell.ring(queue, _ANY_PRIORITY)
                    self._rung.add(queue)
                except REDIS_AWAY:
                    self._be_deaf()

    # -- Handing over --------------------------------------------------------------------------------------------
    def _deliver(self, found: Iterable[Claim]) -> None:
        for claim in found:
            arriving[claim.token] = claim
            self._delivered.append(claim)
        if self._delivered:
            self._worker.consumer.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        """In the main thread, where Celery's requests are made and given to the pool."""
        while self._delivered:
            claim = self._delivered.popleft()
            try:
                consumer = self._worker.consumer
                consumer.strategies[claim.task](
                    ClaimedMessage.of(claim), None, self.free_a_slot, self.free_a_slot, consumer.on_task_message
                )
            except Exception as error:  # whatever is wrong with one of them, the others go on
                logger.exception("id=%s task=%s could not be started", claim.job_id, claim.task)
                self._set_aside(claim, error)
            finally:
                arriving.pop(claim.token, None)

    def _set_aside(self, claim: Claim, error: Exception) -> None:
        try:
            settle.fail(Run(claim.job_id, claim.token), error=f"It could not be started: {error}", cause=error)
        except DATABASE_AWAY as away:
            logger.error("id=%s could not be failed (%s)", claim.job_id, away)
        finally:
            # The main thread forks pool processes: it keeps no connection that they would inherit.
            connections.close_all()


class _Stranger(NamedTuple):
    """A message of another producer."""

    task: Task
    message: Any
    body: Any
    ack: Any
    reject: Any

    def become_a_job(self) -> None:
        """Writes the job's row. Raises where PostgreSQL is away: then it is done later."""
        headers, logs = self.message.headers or {}, (logger, ())
        try:
            args, kwargs, _ = self._payload()
            job_id = id_of_message(headers.get("id") or (self.body or {}).get("id"))
            if not Job.objects.filter(pk=job_id).exists():
                logger.info("id=%s task=%s came from another producer; it is in the ledger now", job_id, self.task.name)
                priority = (self.message.properties or {}).get("priority")
                self.task.app.send_task(self.task.name, args, kwargs, task_id=str(job_id), priority=priority)
        except DATABASE_AWAY:
            raise
        except Exception:  # whatever is wrong with it, nobody else waits for it
            logger.exception("A message of another producer is no job of %s; it is dropped", self.task.name)
            self.reject(*logs)
        else:
            self.ack(*logs)

    def _payload(self) -> Any:
        if self.body is not None:
            return self.body.get("args") or (), self.body.get("kwargs") or {}, None
        return self.message.decode()


_claimer: Claimer | None = None


def be(claimer: Claimer) -> None:
    """Makes this one the claimer of this process."""
    global _claimer
    _claimer = claimer


def own_claimer() -> Claimer:
    """The claimer of this process. Raises NotAWorker where there is none."""
    if _claimer is None:
        raise identity.NotAWorker("This process claims no jobs.")
    return _claimer
