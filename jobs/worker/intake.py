"""From the claim to the pool: claimed jobs become Celery's requests as slots of the pool are free.

Where jobs are short, some are claimed ahead, so that no slot waits for PostgreSQL; never more than take a few
hundredths of a second. One that waits here for longer after all, because those before it take their time, is given
back.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from celery.concurrency import solo
from celery.worker import state
from django.db import connections

from jobs import settle
from jobs.claims import Claim
from jobs.patience import DATABASE_AWAY
from jobs.settle import Run
from jobs.worker.requests import ClaimedMessage, arriving, claimed

logger = logging.getLogger(__name__)

# So much work is claimed ahead for each slot, by what jobs took lately, and none where one takes longer than this.
_AHEAD_SECONDS = 0.03
_SHORT_SECONDS = 0.1
_MOST_AHEAD = 32
# What waits here for longer is given back.
_PATIENCE_SECONDS = 0.25
_LONG_SECONDS = 1.0


class _Waiting(NamedTuple):
    claim: Claim
    claimed_at: float
    # From when on its patience counts.
    since: float


class Intake:
    """The claims of one worker that are not in the pool yet. Claims come in the claimer's thread, and leave in the main
    thread, where requests are made."""

    def __init__(self, worker: Any, *, slot_is_free: Callable[[], None]) -> None:
        self._worker = worker
        self._slot_is_free = slot_is_free
        self._waiting: deque[_Waiting] = deque()
        # How long jobs took lately; a long one counts at once, short ones by and by.
        self._usual_seconds = _LONG_SECONDS
        self._is_filling = False
        # Whether jobs run in the main thread.
        self.runs_here = isinstance(worker.pool, solo.TaskPool)

    @property
    def slot_count(self) -> int:
        """How many jobs the pool runs at once; where it scales by itself, how many it may grow to at this moment."""
        scaler = getattr(self._worker, "autoscaler", None)
        if scaler is not None:
            # Of the two, `autoscale` sets one without looking at the other.
            return max(scaler.max_concurrency, scaler.min_concurrency)
        return self._worker.pool.num_processes

    @property
    def free_count(self) -> int:
        """How many more jobs could start at this moment."""
        return self.slot_count - len(state.reserved_requests) - len(self._waiting)

    @property
    def ahead_count(self) -> int:
        """How many jobs are worth claiming before a slot is free for them."""
        if self._usual_seconds > _SHORT_SECONDS:
            return 0
        return max(1, min(_MOST_AHEAD, int(self.slot_count * _AHEAD_SECONDS / max(self._usual_seconds, 0.0001))))

    def put(self, claims: Iterable[Claim]) -> None:
        """Takes claims, in the order in which they are to start."""
        now = time.monotonic()
        for claim in claims:
            claimed[claim.token] = claim.job_id
            arriving[claim.token] = claim
            self._waiting.append(_Waiting(claim, now, now))
        if self._waiting:
            self._worker.consumer.call_soon(self.fill)

    def fill(self) -> None:
        """Hands claims over to the pool as far as it has free slots. In the main thread."""
        if self._is_filling:
            # A job that runs in this very thread has ended: the call that began it goes on.
            return
        self._is_filling = True
        try:
            while len(state.reserved_requests) < self.slot_count and self._hand_over_one():
                if self.runs_here:
                    # The event loop has to turn between two jobs.
                    self._worker.consumer.call_soon(self.fill)
                    return
        finally:
            self._is_filling = False

    def _hand_over_one(self) -> bool:
        try:
            waiting = self._waiting.popleft()
        except IndexError:
            return False
        claim = waiting.claim
        try:
            self._hand_over(claim, waiting.claimed_at)
        except Exception as error:  # whatever is wrong with one of them, the others go on
            logger.exception("id=%s task=%s could not be started", claim.job_id, claim.task)
            self._set_aside(claim, error)
        finally:
            arriving.pop(claim.token, None)
        return True

    def give_back(self, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        """Gives back what has waited here for longer than this. Nothing is counted; others may start it."""
        while self._waiting and time.monotonic() - self._waiting[0].since >= patience_seconds:
            try:
                waiting = self._waiting.popleft()
            except IndexError:
                return
            # Those before it are long after all.
            self._usual_seconds = _LONG_SECONDS
            claim = waiting.claim
            run = Run(claim.job_id, claim.token)
            try:
                is_locked = not settle.give_back(run, skip_locked=True) and run.owns()
            except DATABASE_AWAY:
                self._waiting.appendleft(waiting)
                raise
            if is_locked and patience_seconds:
                # Somebody else has locked it, and the others need not wait: it starts here, or goes back later.
                self._waiting.append(waiting._replace(since=time.monotonic()))
            else:
                arriving.pop(claim.token, None)

    def _hand_over(self, claim: Claim, claimed_at: float) -> None:
        consumer = self._worker.consumer
        ended = partial(self._ended, time.monotonic())
        consumer.strategies[claim.task](
            ClaimedMessage.of(claim, claimed_at), None, ended, ended, consumer.on_task_message
        )

    def _ended(self, begun: float, *_: Any) -> None:
        """A request has ended. In the main thread or, in a pool of threads, in one of those."""
        seconds = time.monotonic() - begun
        weight = 0.5 if seconds > self._usual_seconds else 0.1
        self._usual_seconds += weight * (seconds - self._usual_seconds)
        if self._waiting:
            if threading.current_thread() is threading.main_thread():
                self.fill()
            else:
                self._worker.consumer.call_soon(self.fill)
        self._slot_is_free()

    def _set_aside(self, claim: Claim, error: Exception) -> None:
        try:
            settle.fail(Run(claim.job_id, claim.token), error=f"It could not be started: {error}", cause=error)
        except DATABASE_AWAY as away:
            logger.error("id=%s could not be failed (%s)", claim.job_id, away)
        except Exception:  # whatever is wrong with one job, this is the thread that hands the others over
            logger.exception("id=%s could neither be started nor failed", claim.job_id)
        finally:
            # The main thread forks pool processes: it keeps no connection that they would inherit.
            connections.close_all()
