"""When each duty of the leader last succeeded, and what it last raised. `/health` and the doctor read that."""

import time
from collections.abc import Iterable

from django.db.models.functions import Now

from jobs.bounds import shortened
from jobs.models import Duty

# Those of the prompt thread: delayed jobs that are due, and grants.
DUE, PACING = PROMPT_DUTIES = ("due", "pacing")
# Successes are written so often; a failure at once, but not sooner after the last one.
_WRITE_SECONDS = 10.0
_FAILURE_SECONDS = 5.0
_LONGEST_ERROR_BYTES = 1000


class Record:
    """What one process has seen of its duties since it last wrote that down. Several threads note what they did; one
    writes. `names` are those of all duties: rows of others are of an earlier version."""

    def __init__(self, *names: Iterable[str]) -> None:
        self._names = {name for some in names for name in some}
        self._succeeded: dict[str, float] = {}
        self._write_at = 0.0
        self._failure_at: dict[str, float] = {}

    def succeeded(self, name: str, *, every_seconds: float) -> None:
        """A duty that is due every so many seconds was done."""
        self._succeeded[name] = every_seconds
        self._failure_at.pop(name, None)

    def failed(self, name: str, error: BaseException, *, every_seconds: float) -> None:
        """A duty raised. Raises what PostgreSQL raises."""
        if time.monotonic() < self._failure_at.get(name, 0.0):
            return
        self._failure_at[name] = time.monotonic() + _FAILURE_SECONDS
        self._succeeded.pop(name, None)
        words = shortened(f"{type(error).__name__}: {error}", _LONGEST_ERROR_BYTES)
        row = Duty(name=name, failed_at=Now(), error=words.replace("\0", "\\x00"), every_seconds=every_seconds)
        Duty.objects.bulk_create(
            [row],
            update_conflicts=True,
            unique_fields=["name"],
            update_fields=["failed_at", "error", "every_seconds"],
        )

    def write(self) -> None:
        """Writes down what has succeeded, if it is time. Raises what PostgreSQL raises."""
        if not self._succeeded or time.monotonic() < self._write_at:
            return
        self._write_at = time.monotonic() + _WRITE_SECONDS
        if self._names:
            Duty.objects.filter(every_seconds__isnull=False).exclude(name__in=self._names).delete()
            self._names = set()
        done, self._succeeded = self._succeeded, {}
        rows = [Duty(name=name, succeeded_at=Now(), every_seconds=seconds) for name, seconds in sorted(done.items())]
        Duty.objects.bulk_create(
            rows, update_conflicts=True, unique_fields=["name"], update_fields=["succeeded_at", "every_seconds"]
        )
