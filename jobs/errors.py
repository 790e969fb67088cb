"""Errors that tasks raise to tell the ledger what to do."""

from functools import partial
from typing import Any

from celery.exceptions import Ignore

LONGEST_PAUSE_SECONDS = 7 * 24 * 3600


class Permanent(Exception):
    """The job cannot succeed however often it is tried: it fails at once, with this sentence as its error."""


class Interrupted(Ignore):
    """A run ended through no fault of its task and left nothing behind: its job waits again, and nothing is counted."""


class RateLimited(Ignore):
    """The other side takes no more calls for `retry_after_seconds`, as an HTTP status 429 says.

    All jobs with the rate key of this one start nothing for that time, or, where it has none, all of its queue, on all
    workers. The job waits again at its place in the queue, and nothing is counted; `autoretry_for` never sees this.
    Raises ValueError for a time that is none, is negative, or is longer than a week.
    """

    def __init__(self, message: str = "", *, retry_after_seconds: float) -> None:
        if not 0 <= retry_after_seconds <= LONGEST_PAUSE_SECONDS:
            raise ValueError(f"retry_after_seconds={retry_after_seconds!r}: expected 0 to {LONGEST_PAUSE_SECONDS:,}.")
        super().__init__(message or f"The other side takes no more calls for {retry_after_seconds:g} s.")
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> Any:
        # A pool process hands it to the worker's main process, which would end if it could not be made again there.
        return partial(type(self), retry_after_seconds=self.retry_after_seconds), self.args


class LeaseLost(Exception):
    """This run no longer owns its job: the worker was given up, or somebody cancelled the job.

    Whatever the run still writes to the ledger is refused, so the best it can do is to stop.
    """


class JobCancelled(LeaseLost):
    """Somebody cancelled the job of this run, which is ended with its process if it does not stop by itself."""
