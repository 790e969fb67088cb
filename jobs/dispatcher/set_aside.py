"""What a duty of the dispatcher cannot process: set aside with a growing wait, and failed when that does not help. Rows
of jobs, and of flows, whose failure is that of the jobs that wait for them.

Only an error that a job causes counts: raised again when the job is tried alone, while another job of the same duty
succeeded in the same look. Lock waits, time-outs, outages and errors of all jobs never count: then the duty fails, and
`/health` says so. So no job keeps its neighbours waiting, and no fault of ours fails a whole queue.

What was not processed is left out of batches from then on, whether its error counted or not, and is only tried alone.
So each look comes to other jobs, however many cannot be processed.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections
from django.db.models import QuerySet

from jobs import audit, settle
from jobs.ends import end
from jobs.models import Attempt, Job
from jobs.patience import may_pass
from jobs.states import Cause, State
from jobs.told import Told

logger = logging.getLogger(__name__)

_TRIES = 5
# Doubled by each further try, some times.
_FIRST_WAIT_SECONDS = 1.0
_MOST_DOUBLINGS = 9
# A duty fails no more than so many jobs within this time.
_MOST_FAILED, _WITHIN_SECONDS = 10, 60.0
# Each may have taken as long as PostgreSQL lets a statement wait.
_MOST_PASSING = 3
# More are not remembered: then something else is wrong than a job.
_MOST_ASIDE = 2000
# So many are tried alone at one look, and so many of those that have waited.
_MOST_ALONE = 100
# What was not tried again so long after its wait is gone.
_GONE_SECONDS = 600.0
ACTOR = "the dispatcher"


class TooManyFailed(RuntimeError):
    """A duty cannot process so many jobs that it is no longer believed that they are at fault."""


class Aside(NamedTuple):
    """How often a job was tried in vain, as far as it counts, until when it waits, and what it raised, where it would
    have been failed if a duty failed any number."""

    tries: int
    until: float
    unfailed: Exception | None = None


class SetAside:
    """The rows that one duty has set aside, in the memory of the process that leads. `fail_one` fails one of them with
    the reason; those of jobs, where none is given."""

    def __init__(self, duty: str, fail_one: Callable[[UUID, str], object] | None = None) -> None:
        self._duty = duty
        self._fail_one = fail_one or fail
        self._aside: dict[UUID, Aside] = {}
        self._failed_at: deque[float] = deque()
        # How many rows the looks are past that could not be processed and are not remembered, because there are too
        # many.
        self._passed_over = 0
        self.told = Told()

    def known(self) -> list[UUID]:
        """All that could not be processed when they were last tried."""
        return list(self._aside)

    def left_out(self) -> list[UUID]:
        """Those that are to wait."""
        now = time.monotonic()
        return [job_id for job_id, aside in self._aside.items() if aside.until > now]

    def to_try(self, found: QuerySet[Any, UUID], *, most: int = _MOST_ALONE) -> list[UUID]:
        """Which of these rows are to be tried alone at this look: the first that are not known, and, as far as they are
        still among them, some of the known that have waited."""
        unknown = found.exclude(pk__in=self.known())
        page = list(unknown[self._passed_over : self._passed_over + most])
        if self._passed_over and not page:
            self._passed_over = 0
            page = list(unknown[:most])
        return [*page, *self.to_try_again(found)]

    def to_try_again(self, found: QuerySet[Any, UUID]) -> list[UUID]:
        """Those of these rows that are known and have waited, the longest first, as many as one look tries."""
        now = time.monotonic()
        waited = sorted((aside.until, job_id) for job_id, aside in self._aside.items() if aside.until <= now)
        ids = [job_id for _, job_id in waited[:_MOST_ALONE]]
        still = list(found.filter(pk__in=ids)) if ids else []
        for gone in set(ids).difference(still):
            del self._aside[gone]
        return still

    def each(self, job_ids: Iterable[UUID], act: Callable[[UUID], object], *, others_count: int = 0) -> int:
        """Acts on each of these jobs alone, in a transaction of its own; returns how many could be processed.

        `others_count` were processed in the same look already. Raises the last error where none could, TooManyFailed,
        and what PostgreSQL raises where it is away. Where it has ended a statement, because somebody holds a row for
        example, the others are tried before that is raised.
        """
        succeeded: list[UUID] = []
        errors: dict[UUID, Exception] = {}
        passing: list[Exception] = []
        for job_id in job_ids:
            try:
                with settle.atomic():
                    act(job_id)
                succeeded.append(job_id)
            except Exception as error:  # whatever it is, the others are tried
                if job_id not in self._aside and self.told.is_new(error, str(job_id)):
                    words = "id=%s cannot be processed by the dispatcher's duty %s: %s"
                    # Of many that raise the same, one traceback is enough.
                    logger.error(words, job_id, self._duty, error, exc_info=self.told.is_new(error, self._duty))
                if not may_pass(error):
                    errors[job_id] = error
                    continue
                passing.append(error)
                if len(passing) >= _MOST_PASSING or not connections[settle.ledger()].is_usable():
                    raise
        self.judge(succeeded, errors, others_count=others_count)
        if passing:
            raise passing[-1]
        return len(succeeded)

    def judge(self, succeeded: Collection[UUID], errors: Mapping[UUID, Exception], *, others_count: int = 0) -> None:
        """One look is over: these rows were processed, as so many others were, and those raised, each tried alone.

        Raises the last error where none could be processed; and TooManyFailed, as long as rows are to be failed and too
        many were.
        """
        for job_id in succeeded:
            self._aside.pop(job_id, None)
        counts = bool(succeeded) or others_count > 0
        for job_id, raised in errors.items():
            self._set_aside(job_id, raised, counts=counts)
        self._forget_what_is_gone()
        if errors and not counts:
            raise list(errors.values())[-1]
        if self._passed_over and errors:
            last = list(errors.values())[-1]
            raise TooManyFailed(f"More than {_MOST_ASIDE:,} jobs could not be processed. The last: {last}") from last
        unfailed = [aside.unfailed for aside in self._aside.values() if aside.unfailed is not None]
        if unfailed:
            raise TooManyFailed(
                f"{_MOST_FAILED} jobs were failed within a minute, and {len(unfailed):,} more could not be processed. "
                f"The last: {unfailed[-1]}"
            ) from unfailed[-1]

    def _forget_what_is_gone(self) -> None:
        gone_before = time.monotonic() - _GONE_SECONDS
        self._aside = {job_id: aside for job_id, aside in self._aside.items() if aside.until > gone_before}

    def _set_aside(self, job_id: UUID, error: Exception, *, counts: bool) -> None:
        before = self._aside.get(job_id)
        if before is None and len(self._aside) >= _MOST_ASIDE:
            self._passed_over += 1
            return
        tries = (before.tries if before else 0) + counts
        wait_seconds = _FIRST_WAIT_SECONDS * 2.0 ** min(tries - 1, _MOST_DOUBLINGS) if counts else 0.0
        self._aside[job_id] = Aside(tries, time.monotonic() + wait_seconds, before.unfailed if before else None)
        if counts and tries >= _TRIES:
            self._fail(job_id, error)

    def _fail(self, job_id: UUID, error: Exception) -> None:
        now = time.monotonic()
        while self._failed_at and now - self._failed_at[0] > _WITHIN_SECONDS:
            self._failed_at.popleft()
        if len(self._failed_at) >= _MOST_FAILED:
            self._aside[job_id] = self._aside[job_id]._replace(unfailed=error)
            return
        self._failed_at.append(now)
        words = f"It could not be processed by the dispatcher's duty {self._duty}: {type(error).__name__}: {error}"
        try:
            self._fail_one(job_id, words)
        except Exception as refusal:  # it stays set aside
            if may_pass(refusal):
                raise
            logger.exception("id=%s cannot even be failed.", job_id)
            self._aside[job_id] = self._aside[job_id]._replace(unfailed=None)
        else:
            self._aside.pop(job_id, None)


def fail(job_id: UUID, error: str) -> bool:
    """Fails a job that a duty cannot process, and records that. Returns whether it was alive.

    `manage.py jobs retry` undoes it.
    """
    with settle.atomic():
        job = Job.objects.select_for_update().filter(pk=job_id).first()
        if job is None:
            return False
        outcome = Attempt.Outcome.FAILED if job.state == State.ACTIVE else None
        if not end(job, Cause.SET_ASIDE, error=error, outcome=outcome):
            return False
        audit.record(actor=ACTOR, thing=job, what=f"Failed (was {job.state}): {error}"[:1000])
    return True


def in_a_batch_or_alone(
    batch: Callable[[Collection[UUID]], int],
    aside: SetAside,
    found: QuerySet[Any, UUID],
    one: Callable[[UUID], object],
) -> int:
    """Acts on a batch, but for those that could not be processed before; where that raises, on the first of `found`
    that are left, each alone. In both cases also on some of those, each alone, that have waited."""
    count = 0
    try:
        with settle.atomic():
            count = batch(aside.known())
    except Exception as error:  # whatever it was, it comes of one of them, or of all
        if may_pass(error):
            raise
        if aside.told.is_new(error):
            logger.exception("A batch of the dispatcher's duty cannot be processed: each job is tried alone.")
        alone = aside.to_try(found)
    else:
        alone = aside.to_try_again(found)
    return count + aside.each(alone, one, others_count=count)


def all_of(*parts: Callable[[], int]) -> int:
    """Does each part of a duty, whatever becomes of the others; returns the sum of what they return.

    Raises, once all are done, the first error; at once where the connection is broken.
    """
    total, first = 0, None
    for part in parts:
        try:
            total += part()
        except Exception as error:  # whatever it is, the other parts are done
            if not connections[settle.ledger()].is_usable():
                raise
            if first is None:
                first = error
            else:
                logger.exception("Another part of the duty fails as well.")
    if first is not None:
        raise first
    return total
