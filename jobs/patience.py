"""Waiting out a database that is away for a moment: a restart, a failover, a dropped connection."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, InternalError, OperationalError, connections

logger = logging.getLogger(__name__)

DATABASE_AWAY = (OperationalError, InterfaceError)
# PostgreSQL's code where a statement would have waited for a lock for longer than it may.
LOCKED = "55P03"
# What PostgreSQL says of a statement that it has ended itself, by the codes of its errors.
_ENDED = {
    "40001": "Two transactions were in each other's way",
    "40P01": "Two transactions waited for each other",
    LOCKED: "Somebody else has held a lock for too long",
    "57014": "A statement took longer than PostgreSQL's statement_timeout",
    "25P03": "A transaction was idle for longer than PostgreSQL's idle_in_transaction_session_timeout",
    "25006": "PostgreSQL takes no writes",
    "53100": "PostgreSQL's disk is full",
    "53300": "PostgreSQL takes no more connections",
}
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

T = TypeVar("T")


def what_happened(error: BaseException) -> str:
    """What has become of a statement, for the log: PostgreSQL is away, or has ended it for a reason of its own."""
    text = str(error).strip()
    return f"{_ENDED.get(code_of(error), 'PostgreSQL does not answer')} ({text})"


def code_of(error: BaseException) -> str:
    """PostgreSQL's code of an error; empty where it has none, as where it did not answer."""
    return getattr(error.__cause__, "sqlstate", None) or getattr(error, "sqlstate", None) or ""


def is_away(error: BaseException) -> bool:
    """Whether PostgreSQL did not answer, or answered what the driver makes no sense of, as a pooler may that loses its
    server in the middle of a statement. Errors of PostgreSQL's own have a code."""
    return isinstance(error, DATABASE_AWAY) or (isinstance(error, InternalError) and not code_of(error))


def may_pass(error: BaseException) -> bool:
    """Whether an error may be gone at the next try: PostgreSQL is away, or somebody holds a row.

    What exceeds a limit of PostgreSQL's (class 54 of its codes), as a list of 256 MB does, comes as the same kind.
    """
    return is_away(error) and not code_of(error).startswith("54")


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
        except (*DATABASE_AWAY, InternalError) as error:
            if not is_away(error):
                raise
            for connection in connections.all(initialized_only=True):
                connection.close()
            if time.monotonic() + pause > deadline:
                raise
            logger.warning("%s; trying again in %.1f s.", what_happened(error), pause)
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        repeated = True
