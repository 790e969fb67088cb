"""How a worker ends (G13): it stops taking, lets running jobs finish for a while, and hands the rest back.

The first SIGTERM or SIGINT begins that; a second one, or SIGQUIT, hands back at once. Celery's own soft shutdown is not
used: it sleeps its full time also when nothing runs, and its warm one waits without end.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import platforms
from celery.concurrency import prefork
from celery.worker import state
from django.conf import settings

from jobs.worker.requests import running_tokens

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_handing_back = threading.Event()


def handing_back() -> bool:
    """Whether this worker is ending its own pool processes: what they leave behind is handed back, not stalled."""
    return _handing_back.is_set()


class Shutdown:
    """The signal handlers of a worker's main process."""

    def __init__(self, worker: Any, *, resign: Callable[[], None]) -> None:
        self.worker = worker
        self._resign = resign
        self._begun = False
        self._at_once = threading.Event()

    def install(self) -> None:
        """Takes the place of Celery's handlers. Call it in the main thread, after Celery has set its own."""
        for name in ("SIGTERM", "SIGINT"):
            platforms.signals[name] = self._end
        platforms.signals["SIGQUIT"] = self._end_at_once

    def _end(self, *_: Any) -> None:
        if self._begun:
            self._at_once.set()
            return
        self._begun = True
        # A handler may do next to nothing: it has interrupted the main thread, which may hold any lock.
        threading.Thread(target=self._run, name="jobs-shutdown", daemon=True).start()

    def _end_at_once(self, *_: Any) -> None:
        self._at_once.set()
        self._end()

    def _run(self) -> None:
        consumer = self.worker.consumer
        if consumer is not None and consumer.task_consumer is not None:
            consumer.call_soon(consumer.task_consumer.cancel)
        grace_seconds = settings.JOBS_GRACE_SECONDS
        logger.info("Ending: takes no more jobs; %d still run and have %g s.", len(running_tokens()), grace_seconds)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline and not self._at_once.wait(_LOOK_SECONDS):
            if not running_tokens():
                state.should_stop = os.EX_OK
                return
        self._hand_back()

    def _hand_back(self) -> None:
        """Ends the pool processes, gives their jobs back, and is gone. Threads cannot be stopped: they go with us."""
        _handing_back.set()
        if isinstance(self.worker.pool, prefork.TaskPool):
            for process in list(self.worker.pool._pool._pool):
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._resign()
        logging.shutdown()
        os._exit(os.EX_OK)
