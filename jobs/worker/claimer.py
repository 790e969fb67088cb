"""How a worker finds its jobs: a thread of its main process claims them while slots of the pool are free.

A job without limits is claimed from the head of its queue, a job with limits when it was granted; of one queue, the
more urgent of both go first. A ring in Redis only ends the pause of a worker that found nothing; one that has found
something asks again without it, and each worker looks once a second by itself. So neither the length of a queue nor the
state of Redis decides whether a job is found.
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
from jobs.bounds import LEAST_URGENT
from jobs.claims import Claim, Found
from jobs.dispatcher.ageing import OLD, OTHERS
from jobs.doorbell import REDIS_AWAY, Doorbell, Taken
from jobs.limited_claims import sorted_out
from jobs.models import Job, Worker
from jobs.patience import DATABASE_AWAY
from jobs.queues import QUEUES
from jobs.worker import identity
from jobs.worker.floors import Floors
from jobs.worker.intake import Intake
from jobs.worker.requests import claimed
from jobs.worker.strangers import Stranger
from jobs.worker.thread import DutyThread

logger = logging.getLogger(__name__)

# Between two looks of a worker that has free slots and has found nothing.
LOOK_SECONDS = 1.0
# While there is enough to do, what lies in Redis is asked for so often.
_HEAR_SECONDS = 0.02
# A grant that could not be used for so long is forgotten: the leader gives those of jobs with limits anew.
_GRANT_SECONDS = 1.0
# What all a queue's waiting jobs are being claimed by others looks like: none. It is asked for once more after this.
_SECOND_LOOK_SECONDS = 0.01
_AWAY_SECONDS = 0.2
# A claim whose connection has broken may still be under way in PostgreSQL: it is asked for again after these.
_ASK_AGAIN_SECONDS = (2.0, 10.0, 60.0)
_WALK_SECONDS = 0.02
# Between two questions for jobs that have waited for long, where there were none.
_YOUNG_SECONDS = 1.0
_ANY_PRIORITY = 5
# How often the main thread, which hands claims over, is asked whether it still does something.
_MAIN_THREAD_SECONDS = 5.0


class Granted(NamedTuple):
    """A job that may start, by the leader's word, and when this worker heard so."""

    job_id: UUID
    queue: str
    priority: int
    heard_at: float


class Head(NamedTuple):
    """The most urgent priority in which a job without limits may wait in a queue, and when that was seen."""

    priority: int
    seen_at: float


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
        # Of those, as their last claims have seen it.
        self._heads: dict[str, Head] = {}
        # Of a queue, since the last jobs that went ahead because of their age; beyond nine, more of these are due.
        self._starts: Counter[str] = Counter()
        self._turn = self._claim_turn = 0
        self._floors: dict[str, Floors] = {}
        # Where others may help: a ring was left for them.
        self._rung: set[str] = set()
        self._look_at = self._hear_at = 0.0
        # Whether a grant was heard when Redis was last asked: then more may lie there.
        self._grants_come = False
        self._deaf_until = 0.0
        # Since when Redis has not answered; None where it has, or was not asked.
        self._deaf_since: float | None = None
        # What to ask where the answer to a claim was lost.
        self._unanswered: Callable[[], list[Claim]] | None = None
        # And what to ask later, when such a claim may have been committed after all.
        self._late: Callable[[], list[Claim]] | None = None
        self._doubtful: list[tuple[float, Callable[[], list[Claim]]]] = []
        self._strangers: deque[Stranger] = deque()
        # A queue whose jobs were all young a moment ago has no old ones.
        self._young_until: dict[str, float] = {}
        # The queues that it took from in the beginning, and those that the worker's row names.
        self._first_queues = self._told_queues = set(worker.app.amqp.queues.consume_from)
        # When this thread began its last round, and when the main thread last turned, and was asked to.
        self._round_at = self._turned_at = time.monotonic()
        self._asked_at = 0.0
        self.intake = Intake(worker, slot_is_free=self.rouse)

    # -- What the worker's other parts call -----------------------------------------------------------------------
    def adopt(self, task: Any, message: Any, body: Any, ack: Any, reject: Any) -> None:
        """Makes a job of another producer's message, unless its id is one already. Called in the main thread.

        The message is acknowledged once the job is committed; kombu holds no more than a few that are not.
        """
        self._strangers.append(Stranger(task, message, body, ack, reject))
        self._roused.set()

    def let_strangers_go(self) -> None:
        """The worker ends: messages that are no jobs yet go back to Redis. In the main thread, after `stop`."""
        while self._strangers:
            self._strangers.popleft().go_back()

    def idle_seconds(self) -> float:
        """For how long this worker has not looked for jobs. Safe in any thread."""
        return time.monotonic() - min(self._round_at, self._turned_at)

    def deaf_seconds(self) -> float | None:
        """For how long Redis has not answered this worker; None where it does. Safe in any thread."""
        since = self._deaf_since
        return None if since is None else time.monotonic() - since

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
            self._put_new(self._unanswered())
            now = time.monotonic()
            self._doubtful += [(now + seconds, self._late or self._unanswered) for seconds in _ASK_AGAIN_SECONDS]
            self._unanswered = self._late = None
        for one in [one for one in self._doubtful if one[0] <= time.monotonic()]:
            self._put_new(one[1]())
            self._doubtful.remove(one)

    def _put_new(self, found: list[Claim]) -> None:
        self.intake.put(claim for claim in found if claim.token not in claimed)

    def _round(self) -> None:
        self._be_seen()
        self._answer()
        self.intake.give_back()
        self._adopt_strangers()
        self._tell_queues()
        queues = self._queues()
        free = self.intake.free_count
        # Grants wait for slots that are free: what was claimed ahead would always be before them.
        ahead = self.intake.ahead_count if self._busy and not self._grants else 0
        if not queues or free + ahead <= ahead // 2:
            self._let_others_go_on()
            self._deaf_since = None
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
            if self._grants:
                # One grant seldom comes alone.
                self._hear(queues, free + self._spare_count)
            return
        # One at least, as it may be more urgent than what would be claimed without it.
        wanted = max(1, free + self._spare_count) - len(self._grants)
        if now >= self._hear_at or (self._grants_come and wanted > 0):
            self._hear_at = now + _HEAR_SECONDS
            self._hear(queues, max(1, wanted))
        most = free if self._grants else free + ahead
        if most > 0:
            self._claim(free, most, queues)

    @property
    def _spare_count(self) -> int:
        """How many grants to hold for the slots that are free next, where jobs with limits are short and alone."""
        return self.intake.slot_count if self.intake.ahead_count and not self._busy else 0

    def _adopt_strangers(self) -> None:
        while self._strangers and not self._stopping.is_set():
            # Taken out first: at the worker's end, the main thread takes the others.
            stranger = self._strangers.popleft()
            try:
                stranger.become_a_job()
            except DATABASE_AWAY:
                self._strangers.appendleft(stranger)
                raise

    def _queues(self) -> list[str]:
        """Those that this worker consumes at this moment, as `cancel_consumer` and `add_consumer` leave them."""
        consumer = self._worker.consumer
        if self._stopping.is_set() or consumer is None or not consumer.strategies:
            return []
        return [name for name in list(self._worker.app.amqp.queues.consume_from) if name in QUEUES]

    def _tell_queues(self) -> None:
        """Writes down what `cancel_consumer` or `add_consumer` has changed: the leader grants jobs of these queues."""
        queues = set(self._worker.app.amqp.queues.consume_from)
        if queues != self._told_queues:
            left = sorted(self._first_queues - queues)
            Worker.objects.filter(pk=identity.incarnation()).update(queues=sorted(queues), left_queues=left)
            self._told_queues = queues

    def _be_seen(self) -> None:
        self._round_at = now = time.monotonic()
        consumer = self._worker.consumer
        if consumer is None or self.intake.runs_here:
            # There is nobody to ask, or the main thread is busy with a job, as it is meant to be.
            self._turned_at = now
        elif now - self._asked_at >= _MAIN_THREAD_SECONDS:
            self._asked_at = now
            consumer.call_soon(self._main_thread_turns)

    def _main_thread_turns(self) -> None:
        self._turned_at = time.monotonic()

    def _pause(self, seconds: float) -> None:
        self._roused.wait(max(0.0, seconds))
        self._roused.clear()

    def _look(self, queues: list[str]) -> None:
        """Asks PostgreSQL by itself in which queues jobs wait."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        # The head of a queue that has floors is not worth a look: a claim from there is shorter.
        from_the_head = [name for name in queues if not self._floors_of(name).are_used]
        began = time.monotonic()
        waiting = claims.queues_with_waiting(from_the_head)
        seconds = time.monotonic() - began
        for name in from_the_head:
            # Where it was not this queue that took long, its floors are given up again.
            self._floors_of(name).has_taken(seconds)
        for name in [*waiting, *(set(queues) - set(from_the_head))]:
            self._is_busy(name)

    def _floors_of(self, queue: str) -> Floors:
        if queue not in self._floors:
            self._floors[queue] = Floors(queue, tasks=self._tasks)
        return self._floors[queue]

    def _is_busy(self, queue: str) -> None:
        if queue not in self._busy:
            self._busy.append(queue)
            self._heads.pop(queue, None)

    def _listen(self, queues: list[str], seconds: float) -> None:
        """Waits for a ring or a grant."""
        if self._cannot_hear() or self._strangers:
            self._pause(min(seconds, _AWAY_SECONDS))
            return
        try:
            taken = self._doorbell.listen(self._turned(queues), min(seconds, LOOK_SECONDS))
        except REDIS_AWAY:
            self._be_deaf()
            return
        self._deaf_since = None
        if taken is not None:
            self._heard(taken)

    def _cannot_hear(self) -> bool:
        is_deaf = time.monotonic() < self._deaf_until or self._worker.consumer.connection is None
        if is_deaf and self._deaf_since is None:
            self._deaf_since = time.monotonic()
        return is_deaf

    def _be_deaf(self) -> None:
        """Redis does not answer: for a while, this worker looks by itself, and its main thread waits for nothing."""
        self._deaf_until = time.monotonic() + LOOK_SECONDS
        self._deaf_since = self._deaf_since or time.monotonic()
        self._look_at = 0.0
        self._worker.consumer.leave_the_broker()

    def _hear(self, queues: list[str], count: int) -> None:
        """Takes what is at the doorbells, without waiting."""
        if self._cannot_hear():
            return
        try:
            heard = self._doorbell.take(self._turned(queues), count, rung=self._busy)
            for taken in heard:
                self._heard(taken)
            self._grants_come = any(taken.job_id is not None for taken in heard)
            self._deaf_since = None
        except REDIS_AWAY:
            self._be_deaf()

    def _heard(self, taken: Taken) -> None:
        if taken.job_id is None:
            self._rung.discard(taken.queue)
            self._is_busy(taken.queue)
        else:
            self._grants.append(Granted(taken.job_id, taken.queue, taken.priority, time.monotonic()))

    def _turned(self, queues: list[str]) -> list[str]:
        """The queues, another of them first each time."""
        self._turn += 1
        place = self._turn % len(queues)
        return queues[place:] + queues[:place]

    # -- Claiming ------------------------------------------------------------------------------------------------
    def _claim(self, free: int, most: int, queues: Collection[str]) -> None:
        """One claim: of what was granted, as far as slots are free, or of the queue whose turn it is.

        Of one queue, the more urgent go first, whether they were granted or have no limits; those that are alike take
        turns.
        """
        self._forget_old_grants()
        self._claim_turn += 1
        ready = [one for one in self._grants if not self._waits_for_the_head(one)]
        # A job with limits is never claimed ahead: its start would be counted, and the job perhaps given back.
        if ready and free > 0 and (self._claim_turn % 2 or not self._busy):
            self._claim_granted(ready[:free])
        elif self._busy:
            queue = self._busy.popleft()
            if queue in queues:
                self._claim_next(queue, most)

    def _waits_for_the_head(self, one: Granted) -> bool:
        """Whether a more urgent job without limits may wait in its queue."""
        if one.queue not in self._busy:
            return False
        head = self._heads.get(one.queue)
        return head is None or head.priority < one.priority

    def _least_urgent(self, queue: str) -> int:
        """What is less urgent than this waits at the head of a queue until no grant of it is in hand."""
        return min((one.priority for one in self._grants if one.queue == queue), default=LEAST_URGENT)

    def _forget_old_grants(self) -> None:
        old = [one for one in self._grants if one.heard_at < time.monotonic() - _GRANT_SECONDS]
        if old and any(floors.are_used for floors in self._floors.values()):
            # Nobody names a job without limits once more, and it may wait below the floors.
            self._see_to([one.job_id for one in old])
        for _ in old:
            self._grants.popleft()

    def _see_to(self, job_ids: Collection[UUID]) -> None:
        """Jobs without limits that were named become waiting late: claims from their floors are to find them, in their
        order."""
        rows = Job.objects.filter(pk__in=job_ids).values_list("state", "lane", "queue", "run_at")
        for state, lane, queue, run_at in rows:
            if state == "waiting" and lane == "":
                self._floors_of(queue).lower(run_at)
                self._is_busy(queue)

    def _claim_granted(self, granted: Collection[Granted]) -> None:
        for one in granted:
            self._grants.remove(one)
        candidates, named = sorted_out({one.job_id: identity.new_token() for one in granted})
        if named:
            self._see_to(named)
        if not candidates:
            return
        tokens = {one.job_id: one.token for one in candidates}
        common: dict[str, Any] = {"tasks": self._tasks, "worker_id": identity.incarnation()}
        self._unanswered = partial(claims.claim, tokens, repeated=True, **common)
        self._late = partial(claims.claimed_as, tokens)
        found = claims.claim_granted(candidates, **common)
        self._unanswered = self._late = None
        for claim in found:
            if claim.queue in self._busy and self._may_have_old(claim.queue):
                self._starts[claim.queue] += 1
        self.intake.put(found)

    def _claim_next(self, queue: str, most: int) -> None:
        """Claims from the head of a queue, which stays busy as long as more may be there."""
        least_urgent = self._least_urgent(queue)
        if self._has_nothing_so_urgent(queue, least_urgent):
            self._busy.append(queue)
            return
        # Another queue's turn comes sooner where fewer are claimed at once; where jobs are short, it comes at once.
        sources = 1 if self.intake.ahead_count else 1 + len(self._busy) + bool(self._grants)
        count = max(1, most // sources)
        found = self._claim_from(queue, count, least_urgent)
        if not found and queue in self._rung and least_urgent == LEAST_URGENT:
            self._roused.wait(_SECOND_LOOK_SECONDS)
            found = self._claim_from(queue, count, least_urgent)
        self.intake.put(found)
        if least_urgent < LEAST_URGENT or (found and not found.is_all):
            self._busy.append(queue)
        else:
            # Whoever makes a job waiting from now on rings.
            self._rung.discard(queue)

    def _has_nothing_so_urgent(self, queue: str, least_urgent: int) -> bool:
        """Whether a claim a moment ago has left nothing so urgent at the head of a queue, and no old job is due."""
        head = self._heads.get(queue)
        is_seen = head is not None and head.priority > least_urgent and time.monotonic() < head.seen_at + _HEAR_SECONDS
        return is_seen and not (self._starts[queue] >= OTHERS and self._may_have_old(queue))

    def _claim_from(self, queue: str, count: int, least_urgent: int) -> Found:
        """The next jobs of a queue. While old jobs wait, every tenth start is that of the one that waited longest."""
        token, worker_id = identity.new_token(), identity.incarnation()
        common: dict[str, Any] = {"token": token, "tasks": self._tasks, "worker_id": worker_id}
        self._unanswered = partial(claims.claimed_before, token=token, worker_id=worker_id)
        found = Found()
        floors = self._floors_of(queue)
        may_have_old = self._may_have_old(queue)
        turns = min(count, self._starts[queue] // OTHERS) if may_have_old else 0
        if turns:
            found = claims.claim_oldest(queue, count=turns, age=OLD, floors=floors.current(), **common)
            self._starts[queue] -= OTHERS * len(found)
            if not found:
                self._starts[queue], may_have_old = 0, False
                self._young_until[queue] = time.monotonic() + _YOUNG_SECONDS
        if not found:
            began = time.monotonic()
            found = claims.claim_next(queue, count=count, least_urgent=least_urgent, floors=floors.current(), **common)
            floors.learn(found, seconds=time.monotonic() - began)
            is_left = bool(found) and not found.is_all
            self._heads[queue] = Head(found[-1].priority if is_left else least_urgent + 1, time.monotonic())
            if may_have_old:
                self._starts[queue] += len(found)
        self._unanswered = None
        return found

    def _may_have_old(self, queue: str) -> bool:
        return time.monotonic() >= self._young_until.get(queue, 0.0)

    def _let_others_go_on(self) -> None:
        """This worker has its hands full, and more waits than it could claim."""
        for queue in self._busy:
            if queue not in self._rung and not self._cannot_hear():
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
