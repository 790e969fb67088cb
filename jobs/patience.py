"""Waiting out a database that is away for a moment: a restart, a failover, a dropped connection."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connections

logger = logging.getLogger(__name__)

DATABASE_AWAY = (OperationalError, InterfaceError)
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

T = TypeVar("T")


def patiently(work: Callable[[bool], T], *, seconds: float) -> T:
    """Calls `work(repeated)` until the database answers, at most `seconds`; then raises the last error.

    `repeated` is False at first: later calls must expect that an earlier one took effect and only its answer was lost.
    Broken connections of this thread are closed in between, so that the next call opens a new one.
    """
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE_SECONDS
    repeated = False
    while True:
        try:
            return work(repeated)
        except DATABASE_AWAY as error:
            for connection in connections.all(initialized_only=True):
                connection.close()
            if time.monotonic() + pause > deadline:
                raise
            logger.warning("PostgreSQL does not answer (%s); trying again in %.1f s.", str(error).strip(), pause)
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        repeated = True
