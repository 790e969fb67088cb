"""How a worker finds its jobs: a thread of its main process claims them while slots of the pool are free.

A job without limits is claimed from the head of its queue, a job with limits when it was granted. A ring in Redis only
ends the pause of a worker that found nothing; one that has found something asks again without it, and each worker looks
once a second by itself. So neither the length of a queue nor the state of Redis decides whether a job is found.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from jobs import claims
from jobs.claims import Claim
from jobs.dispatcher.ageing import OLD, SHARE
from jobs.doorbell import REDIS_AWAY, Doorbell, Taken
from jobs.queues import QUEUES
from jobs.worker import identity
from jobs.worker.floors import Floors
from jobs.worker.intake import Intake
from jobs.worker.strangers import Stranger
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
_WALK_SECONDS = 0.02
# Between two questions for jobs that have waited for long, where there were none.
_YOUNG_SECONDS = 1.0
_ANY_PRIORITY = 5


class Granted(NamedTuple):
    """A job that may start, by the leader's word, and when this worker heard so."""

    job_id: UUID
    heard_at: float


class Claimer(DutyThread):
    """Claims as many jobs as there are free slots, and some ahead where they are short. The queues take turns, and
    grants with them."""

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
        self._turn = self._claim_turn = 0
        self._floors: dict[str, Floors] = {}
        # Where others may help: a ring was left for them.
        self._rung: set[str] = set()
        self._look_at = self._hear_at = 0.0
        self._deaf_until = 0.0
        # What to ask where the answer to a claim was lost.
        self._unanswered: Callable[[], list[Claim]] | None = None
        self._strangers: deque[Stranger] = deque()
        # A queue whose jobs were all young a moment ago has no old ones.
        self._young_until: dict[str, float] = {}
        self.intake = Intake(worker, slot_is_free=self.rouse)

    # -- What the worker's other parts call -----------------------------------------------------------------------
    def adopt(self, task: Any, message: Any, body: Any, ack: Any, reject: Any) -> None:
        """Makes a job of another producer's message, unless its id is one already. Called in the main thread.

        The message is acknowledged once the job is committed; kombu holds no more than a few that are not.
        """
        self._strangers.append(Stranger(task, message, body, ack, reject))
        self._roused.set()

    def rouse(self) -> None:
        """Something has changed: it is worth while to look. Safe in any thread."""
        self._roused.set()

    def stop(self) -> None:
        """Claims nothing from now on; what waits for a slot is given back."""
        super().stop()
        self._roused.set()

    # -- The thread ----------------------------------------------------------------------------------------------
    def run_once(self) -> None:
        """Claims what there is to claim, or waits until that may have changed; again and again, until an error."""
        while not self._stopping.is_set():
            self._round()
        self._answer()
        self.intake.give_back(patience_seconds=0)

    def _answer(self) -> None:
        if self._unanswered is not None:
            self.intake.put(self._unanswered())
            self._unanswered = None

    def _round(self) -> None:
        self._answer()
        self.intake.give_back()
        while self._strangers:
            self._strangers[0].become_a_job()
            self._strangers.popleft()
        queues = self._queues()
        free = self.intake.free_count
        # Grants wait for slots that are free: what was claimed ahead would always be before them.
        ahead = self.intake.ahead_count if self._busy and not self._grants else 0
        if not queues or free + ahead <= ahead // 2:
            self._let_others_go_on()
            self._pause(LOOK_SECONDS)
            return
        now = time.monotonic()
        if now >= self._look_at:
            self._look(queues)
        for name in queues:
            self._floors_of(name).look_below()
        if not self._busy and not self._grants:
            # The walk below floors goes on while nothing else is to be done.
            is_walking = any(self._floors_of(name).are_used for name in queues)
            self._listen(queues, _WALK_SECONDS if is_walking else self._look_at - time.monotonic())
            return
        if now >= self._hear_at:
            self._hear_at = now + _HEAR_SECONDS
            self._hear(queues, max(1, free))
        self._claim(free, free + ahead, queues)

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
        # The head of a queue that has floors is not worth a look: a claim from there is shorter.
        from_the_head = [name for name in queues if not self._floors_of(name).are_used]
        for name in [*claims.queues_with_waiting(from_the_head), *(set(queues) - set(from_the_head))]:
            self._is_busy(name)

    def _floors_of(self, queue: str) -> Floors:
        if queue not in self._floors:
            self._floors[queue] = Floors(queue, tasks=self._tasks)
        return self._floors[queue]

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
            for taken in self._doorbell.take(self._turned(queues), count, rung=self._busy):
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
    def _claim(self, free: int, most: int, queues: Collection[str]) -> None:
        """One claim: of what was granted, as far as slots are free, or of the queue whose turn it is."""
        old = time.monotonic() - _GRANT_SECONDS
        while self._grants and self._grants[0].heard_at < old:
            self._grants.popleft()
        self._claim_turn += 1
        # A job with limits is never claimed ahead: its start would be counted, and the job perhaps given back.
        if self._grants and free > 0 and (self._claim_turn % 2 or not self._busy):
            self._claim_granted(free)
        elif self._busy:
            queue = self._busy.popleft()
            if queue in queues:
                self._claim_next(queue, most)

    def _claim_granted(self, most: int) -> None:
        granted = [self._grants.popleft() for _ in range(min(most, len(self._grants)))]
        tokens = {one.job_id: identity.new_token() for one in granted}
        common: dict[str, Any] = {"tasks": self._tasks, "worker_id": identity.incarnation()}
        self._unanswered = partial(claims.claim, tokens, repeated=True, **common)
        found = claims.claim(tokens, **common)
        self._unanswered = None
        self.intake.put(found)

    def _claim_next(self, queue: str, most: int) -> None:
        """Claims from the head of a queue, which stays busy as long as something is found there."""
        # Another queue's turn comes sooner where fewer are claimed at once; where jobs are short, it comes at once.
        sources = 1 if self.intake.ahead_count else 1 + len(self._busy) + bool(self._grants)
        count = max(1, most // sources)
        found = self._claim_from(queue, count)
        if not found and queue in self._rung:
            self._roused.wait(_SECOND_LOOK_SECONDS)
            found = self._claim_from(queue, count)
        if found:
            self.intake.put(found)
            self._busy.append(queue)
        else:
            self._rung.discard(queue)

    def _claim_from(self, queue: str, count: int) -> list[Claim]:
        """The next jobs of a queue. Every tenth start is that of the job that has waited longest."""
        token, worker_id = identity.new_token(), identity.incarnation()
        common: dict[str, Any] = {"token": token, "tasks": self._tasks, "worker_id": worker_id}
        self._unanswered = partial(claims.claimed_before, token=token, worker_id=worker_id)
        found: list[Claim] = []
        floors = self._floors_of(queue)
        if self._starts[queue] >= SHARE and time.monotonic() >= self._young_until.get(queue, 0.0):
            found = claims.claim_oldest(queue, age=OLD, floors=floors.current(), **common)
            self._starts[queue] = 0
            if not found:
                self._young_until[queue] = time.monotonic() + _YOUNG_SECONDS
        if not found:
            began = time.monotonic()
            found = claims.claim_next(queue, count=count, floors=floors.current(), **common)
            floors.learn(found, seconds=time.monotonic() - began)
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
