"""The jobs of one canvas, written together: by a statement for each thousand, with one ring for each queue."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models.functions import Now

from jobs import dedup, publish
from jobs.models import Job

_BATCH = 1000
_of_thread = threading.local()


class _Clock(Now):
    """The moment at which a row is made, not that of its statement: jobs of one call start in its order."""

    def as_postgresql(self, compiler: Any, connection: Any, **extra_context: Any) -> Any:
        return self.as_sql(compiler, connection, template="CLOCK_TIMESTAMP()", **extra_context)


class _Call(NamedTuple):
    job: Job
    ring: publish.Ring | None
    # Raises what is to be said where there is another job under the id.
    refuse: Callable[[], None]


class Calls:
    """Jobs without dedup keys that are to be written in the current transaction."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._calls: dict[UUID, _Call] = {}

    def add(self, job: Job, ring: publish.Ring | None, refuse: Callable[[], None]) -> None:
        """One more of them, which may be written later."""
        if job.pk in self._calls or len(self._calls) == _BATCH:
            self.write()
        self._calls[job.pk] = _Call(job, ring, refuse)

    def write(self) -> None:
        """Writes what was not written yet. Raises what the first has to say that finds another job under its id."""
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            if type(call.job.run_at) is Now:
                # The second comes second: what is due later than it was made has an `eta`.
                call.job.run_at, call.job.created_at = _Clock(), _Clock()
        written = dedup.insert([call.job for call in calls], self._using)
        for call in calls:
            if call.job.pk not in written:
                call.refuse()
        for ring, count in Counter(call.ring for call in calls if call.job.pk in written).items():
            if ring is not None:
                publish.after_commit(replace(ring, is_of_many=count > 1))


@contextmanager
def together(using: str) -> Iterator[None]:
    """Around calls in one transaction: their jobs are written when it ends. Inside of another one, when that ends."""
    if calls_of_thread() is not None:
        yield
        return
    calls = _of_thread.calls = Calls(using)
    try:
        yield
        calls.write()
    finally:
        _of_thread.calls = None


def calls_of_thread() -> Calls | None:
    """Where this thread's jobs are to be written together with others."""
    calls: Calls | None = getattr(_of_thread, "calls", None)
    return calls
