"""What the leader does at the very moment: delayed jobs that are due, and jobs whose limits let them start.

A thread of its own, because the other duties take their time. It sleeps until the earliest moment that it knows; a ring
in Redis wakes it for an earlier one, and without Redis it looks as often as the dispatcher does.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from django.conf import settings
from django.db import connections

from jobs.dispatcher.due import Due
from jobs.dispatcher.pacing import Pacer
from jobs.dispatcher.record import DUE as DUTY_DUE
from jobs.dispatcher.record import PACING, Record
from jobs.doorbell import DUE, MOST_TOLD, PACED, REDIS_AWAY, Doorbell, Taken
from jobs.worker.thread import DutyThread

# Two looks are never closer together.
_SHORTEST_SECONDS = 0.01
_LISTEN_SECONDS = 1.0
_LOCKED_SECONDS = 0.1


class PromptThread(DutyThread):
    """Acts while this process leads the dispatcher."""

    def __init__(self, *, leads: Callable[[], bool], record: Record) -> None:
        super().__init__("jobs-prompt", _SHORTEST_SECONDS)
        self._record = record
        self.pacer = Pacer()
        self.due = Due()
        self.bells = Bells(leads=leads)
        self._leads = leads
        self._due_at = self._pace_at = 0.0
        # Jobs with limits that have become waiting since the last look.
        self._named: set[UUID] = set()

    def start(self) -> None:
        """Starts both threads."""
        self.bells.start()
        super().start()

    def stop(self) -> None:
        """Ends both after their current round."""
        super().stop()
        self.bells.stop()

    def join(self, timeout: float | None = None) -> None:
        """Waits for both."""
        super().join(timeout)
        self.bells.join(timeout)

    def run_once(self) -> None:
        """What is to be done now, then a pause until there is something again."""
        longest = settings.JOBS_DISPATCH_SECONDS
        if not self._leads():
            self._stopping.wait(longest)
            return
        if time.monotonic() >= self._due_at:
            # Set first: a look that fails has to wait as well.
            self._due_at = time.monotonic() + longest
            with self._noted(DUTY_DUE):
                self._due_at = time.monotonic() + min(longest, self._make_due())
        if time.monotonic() >= self._pace_at:
            self._pace_at = time.monotonic() + longest
            with self._noted(PACING):
                self._pace_at = time.monotonic() + self.pacer.look(self._named)
                self._named = set()
        self._sleep()

    @contextmanager
    def _noted(self, duty: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it was, it is told where somebody looks
            connections.close_all()
            self._record.failed(duty, error, every_seconds=settings.JOBS_DISPATCH_SECONDS)
            raise
        self._record.succeeded(duty, every_seconds=settings.JOBS_DISPATCH_SECONDS)

    def _make_due(self) -> float:
        """Makes due what is due; returns in how many seconds there is more. Idle, it is one question."""
        seconds = self.due.seconds_to_next()
        if seconds is not None and seconds <= 0:
            if self.due.run_once():
                return _SHORTEST_SECONDS
            seconds = self.due.seconds_to_next()
            if seconds is not None and seconds <= 0:
                # Somebody has locked what is left.
                return _LOCKED_SECONDS
        return settings.JOBS_DISPATCH_SECONDS if seconds is None else max(_SHORTEST_SECONDS, seconds)

    def _sleep(self) -> None:
        pause = min(self._due_at, self._pace_at) - time.monotonic()
        if pause > 0:
            self.bells.rung.wait(pause)
        heard = self.bells.heard()
        if any(taken.queue == DUE for taken in heard):
            self._due_at = 0.0
        told = [taken.job_id for taken in heard if taken.queue == PACED]
        self._named.update(job_id for job_id in told if job_id is not None)
        if len(self._named) > MOST_TOLD:
            # Looks fail, or take long: the pacer finds these jobs as well when it reads the levels anew.
            self._named.clear()
            self.pacer.levels.doubt()
        if None in told:
            self.pacer.levels.doubt()
        if told:
            self._pace_at = min(self._pace_at, time.monotonic() + self.pacer.rest_seconds)


class Bells(threading.Thread):
    """Listens for the rings that are the leader's."""

    def __init__(self, *, leads: Callable[[], bool]) -> None:
        super().__init__(name="jobs-bells", daemon=True)
        self.rung = threading.Event()
        self._leads = leads
        self._stopping = threading.Event()
        # More than these are as good as a ring that names none.
        self._heard: deque[Taken] = deque(maxlen=2 * MOST_TOLD)

    def heard(self) -> list[Taken]:
        """What was rung since the last time."""
        self.rung.clear()
        heard = []
        while self._heard:
            heard.append(self._heard.popleft())
        return heard

    def run(self) -> None:
        """Rounds until `stop()`."""
        doorbell = Doorbell.patient()
        while not self._stopping.is_set():
            if not self._leads():
                self._stopping.wait(settings.JOBS_DISPATCH_SECONDS)
                continue
            try:
                taken = doorbell.listen((DUE, PACED), _LISTEN_SECONDS)
                more = doorbell.take((PACED,), MOST_TOLD) if taken is not None else []
            except REDIS_AWAY:
                self._stopping.wait(_LISTEN_SECONDS)
                continue
            if taken is not None:
                self.hear([taken, *more])
        doorbell.close()

    def hear(self, rings: Iterable[Taken]) -> None:
        """Keeps these for the leader, and wakes it."""
        self._heard.extend(rings)
        self.rung.set()

    def stop(self) -> None:
        """Ends the thread after its current round."""
        self._stopping.set()
        self.rung.set()
