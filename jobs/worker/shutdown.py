"""How a worker ends (G13): it stops taking, lets running jobs finish for a while, and hands the rest back.

The first SIGTERM or SIGINT begins that; a second one, or SIGQUIT, hands back at once. A worker half of whose slots are
stuck does the same by itself, and begins anew. Celery's own soft shutdown is not used: it sleeps its full time also
when nothing runs, and its warm one waits without end.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import platforms
from celery.concurrency import prefork
from celery.worker import state
from django.conf import settings

from jobs.worker.claimer import Claimer
from jobs.worker.requests import running_tokens
from jobs.worker.time_limits import TimeLimits

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_LAST_CLAIM_SECONDS = 1.5
# What is promised is five; a server that hangs would keep its caller for longer.
_HAND_BACK_SECONDS = 4
_handing_back = threading.Event()


def handing_back() -> bool:
    """Whether this worker is ending its own pool processes: what they leave behind is handed back, not stalled."""
    return _handing_back.is_set()


class Shutdown:
    """The end of a worker's main process, with its signal handlers."""

    def __init__(self, worker: Any, *, limits: TimeLimits, claimer: Claimer, resign: Callable[[], None]) -> None:
        self.worker = worker
        self._claimer = claimer
        self._limits = limits
        self._resign = resign
        self._begun = False
        self._begins_anew = False
        self._at_once = threading.Event()
        self._takes_no_more = threading.Event()

    def install(self) -> None:
        """Takes the place of Celery's handlers. Call it in the main thread, after Celery has set its own."""
        for name in ("SIGTERM", "SIGINT"):
            platforms.signals[name] = self._end
        platforms.signals["SIGQUIT"] = self._end_at_once

    def replace_the_stuck(self) -> None:
        """Ends this worker for another in the same process, once half of its slots are stuck."""
        if self._limits.half_is_stuck and not self._begun:
            logger.error("Half of the slots are stuck: this worker replaces itself.")
            self._begins_anew = True
            self._begin()

    def _end(self, *_: Any) -> None:
        if not self._begun:
            self._begin()
        elif self._begins_anew:
            # Not anew after all; what is left of the grace period still counts.
            self._begins_anew = False
        else:
            self._at_once.set()

    def _end_at_once(self, *_: Any) -> None:
        self._begins_anew = False
        self._at_once.set()
        self._end()

    def _begin(self) -> None:
        self._begun = True
        # A handler may do next to nothing: it has interrupted the main thread, which may hold any lock.
        threading.Thread(target=self._run, name="jobs-shutdown", daemon=True).start()

    def _run(self) -> None:
        self._claimer.stop()
        # What it is claiming at this moment is started as well.
        self._claimer.join(_LAST_CLAIM_SECONDS)
        consumer = self.worker.consumer
        takes_messages = consumer is not None and consumer.task_consumer is not None
        if takes_messages:
            consumer.call_soon(self._take_no_more, consumer)
        grace_seconds = settings.JOBS_GRACE_SECONDS
        logger.info("Ending: takes no more jobs; %d still run and have %g s.", len(running_tokens()), grace_seconds)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline and not self._at_once.wait(_LOOK_SECONDS):
            running = running_tokens()
            if not running and not self._begins_anew and (self._takes_no_more.is_set() or not takes_messages):
                state.should_stop = os.EX_OK
                return
            if running <= self._limits.stuck:
                # Celery would wait for those threads.
                break
        self._hand_back()

    def _take_no_more(self, consumer: Any) -> None:
        """In the main thread, which takes messages."""
        try:
            consumer.task_consumer.cancel()
            self._claimer.let_strangers_go()
        finally:
            self._takes_no_more.set()

    def _hand_back(self) -> None:
        """Ends the pool processes, gives their jobs back, and is gone. Threads cannot be stopped: they go with us."""
        _handing_back.set()
        last_moment = threading.Timer(_HAND_BACK_SECONDS, self._leave, ["PostgreSQL hangs: the leases must end."])
        last_moment.daemon = True
        last_moment.start()
        if isinstance(self.worker.pool, prefork.TaskPool):
            for process in list(self.worker.pool._pool._pool):
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._resign()
        self._leave("What still ran is handed back.")

    def _leave(self, why: str) -> None:
        logger.info("Gone. %s", why)
        logging.shutdown()
        if self._begins_anew:
            _begin_anew()
        os._exit(os.EX_OK)


def _begin_anew() -> None:
    """Runs this process's own command in its place. The pid stays, so no supervisor takes it for an end.

    Where that cannot be, the supervisor starts it again.
    """
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # our own command
    except OSError:
        os._exit(os.EX_TEMPFAIL)
