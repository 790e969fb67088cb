"""What the leader does at the very moment: delayed jobs that are due, and jobs whose limits let them start.

A thread of its own, because the other duties take their time. It sleeps until the earliest moment that it knows; a ring
in Redis wakes it for an earlier one, and without Redis it looks as often as the dispatcher does.
"""

import threading
import time
from collections.abc import Callable

from django.conf import settings

from jobs import claims
from jobs.dispatcher import due
from jobs.dispatcher.pacing import Pacer
from jobs.doorbell import DUE, PACED, REDIS_AWAY, Doorbell
from jobs.worker.thread import DutyThread

# Two looks are never closer together.
_SHORTEST_SECONDS = 0.01
_LISTEN_SECONDS = 1.0
_LOCKED_SECONDS = 0.1


class PromptThread(DutyThread):
    """Acts while this process leads the dispatcher."""

    def __init__(self, *, leads: Callable[[], bool]) -> None:
        super().__init__("jobs-prompt", _SHORTEST_SECONDS)
        self.pacer = Pacer()
        self.bells = Bells(leads=leads)
        self._leads = leads
        self._due_at = self._pace_at = 0.0

    def start(self) -> None:
        """Starts both threads."""
        self.bells.start()
        super().start()

    def stop(self) -> None:
        """Ends both after their current round."""
        super().stop()
        self.bells.stop()

    def run_once(self) -> None:
        """What is to be done now, then a pause until there is something again."""
        longest = settings.JOBS_DISPATCH_SECONDS
        if not self._leads():
            self._stopping.wait(longest)
            return
        if time.monotonic() >= self._due_at:
            # Set first: a look that fails has to wait as well.
            self._due_at = time.monotonic() + longest
            self._due_at = time.monotonic() + min(longest, self._make_due())
        if time.monotonic() >= self._pace_at:
            self._pace_at = time.monotonic() + longest
            self._pace_at = time.monotonic() + self.pacer.look()
        self._sleep()

    def _make_due(self) -> float:
        """Makes due what is due; returns in how many seconds there is more. Idle, it is one question."""
        seconds = claims.seconds_to_next_due()
        if seconds is not None and seconds <= 0:
            if due.run_once():
                return _SHORTEST_SECONDS
            seconds = claims.seconds_to_next_due()
            if seconds is not None and seconds <= 0:
                # Somebody has locked what is left.
                return _LOCKED_SECONDS
        return settings.JOBS_DISPATCH_SECONDS if seconds is None else max(_SHORTEST_SECONDS, seconds)

    def _sleep(self) -> None:
        pause = min(self._due_at, self._pace_at) - time.monotonic()
        if pause > 0:
            self.bells.rung.wait(pause)
        heard = self.bells.heard()
        if DUE in heard:
            self._due_at = 0.0
        if PACED in heard:
            self._pace_at = min(self._pace_at, time.monotonic() + self.pacer.rest_seconds)


class Bells(threading.Thread):
    """Listens for the rings that are the leader's."""

    def __init__(self, *, leads: Callable[[], bool]) -> None:
        super().__init__(name="jobs-bells", daemon=True)
        self.rung = threading.Event()
        self._leads = leads
        self._stopping = threading.Event()
        self._heard: set[str] = set()

    def heard(self) -> set[str]:
        """What was rung since the last time."""
        self.rung.clear()
        heard, self._heard = self._heard, set()
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
            except REDIS_AWAY:
                self._stopping.wait(_LISTEN_SECONDS)
                continue
            if taken is not None:
                self._heard.add(taken.queue)
                self.rung.set()
        doorbell.close()

    def stop(self) -> None:
        """Ends the thread after its current round."""
        self._stopping.set()
        self.rung.set()
