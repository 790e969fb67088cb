"""What a duty of the dispatcher cannot process: set aside with a growing wait, and failed when that does not help. Rows
of jobs, and of flows, whose failure is that of the jobs that wait for them.

Only an error that a job causes counts: raised again when the job is tried alone, while another job of the same duty
succeeded in the same look. Lock waits, time-outs, outages and errors of all jobs never count: then the duty fails, and
`/health` says so. So no job keeps its neighbours waiting, and no fault of ours fails a whole queue.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple
from uuid import UUID

from django.db import connections

from jobs import audit, settle
from jobs.ends import end
from jobs.models import Attempt, Job
from jobs.patience import DATABASE_AWAY, may_pass
from jobs.states import Cause, State
from jobs.told import Told

logger = logging.getLogger(__name__)

_TRIES = 5
# Doubled by each further try.
_FIRST_WAIT_SECONDS = 1.0
# A duty fails no more than so many jobs within this time.
_MOST_FAILED, _WITHIN_SECONDS = 10, 60.0
# Each may have taken as long as PostgreSQL lets a statement wait.
_MOST_PASSING = 3
# More are not remembered: then something else is wrong than a job.
_MOST_ASIDE = 1000
ACTOR = "the dispatcher"


class TooManyFailed(RuntimeError):
    """A duty cannot process so many jobs that it is no longer believed that they are at fault."""


class Aside(NamedTuple):
    """How often a job was tried in vain, and until when it is left out."""

    tries: int
    until: float


class SetAside:
    """The rows that one duty has set aside, in the memory of the process that leads. `fail_one` fails one of them with
    the reason; those of jobs, where none is given."""

    def __init__(self, duty: str, fail_one: Callable[[UUID, str], object] | None = None) -> None:
        self._duty = duty
        self._fail_one = fail_one or fail
        self._aside: dict[UUID, Aside] = {}
        self._failed_at: deque[float] = deque()
        self.told = Told()

    def left_out(self) -> list[UUID]:
        """Those that are to wait."""
        now = time.monotonic()
        return [job_id for job_id, aside in self._aside.items() if aside.until > now]

    def each(self, job_ids: Iterable[UUID], act: Callable[[UUID], object]) -> int:
        """Acts on each of these jobs alone, in a transaction of its own; returns how many could be processed.

        Raises the last error where none could, TooManyFailed, and what PostgreSQL raises where it is away. Where it has
        ended a statement, because somebody holds a row for example, the others are tried before that is raised.
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
                if self.told.is_new(error, str(job_id)):
                    logger.exception("id=%s cannot be processed by the dispatcher's duty %s.", job_id, self._duty)
                if not may_pass(error):
                    errors[job_id] = error
                    continue
                passing.append(error)
                if len(passing) >= _MOST_PASSING or not connections[settle.ledger()].is_usable():
                    raise
        if errors or succeeded:
            self.judge(succeeded, errors)
        if passing:
            raise passing[-1]
        return len(succeeded)

    def judge(self, succeeded: Collection[UUID], errors: Mapping[UUID, Exception]) -> None:
        """One look is over: these rows were processed, and those raised, each tried alone.

        Raises the last error where none could be processed, and TooManyFailed.
        """
        for job_id in succeeded:
            self._aside.pop(job_id, None)
        if errors and not succeeded:
            raise list(errors.values())[-1]
        for job_id, raised in errors.items():
            self._set_aside(job_id, raised)

    def _set_aside(self, job_id: UUID, error: Exception) -> None:
        tries = self._aside[job_id].tries + 1 if job_id in self._aside else 1
        self._aside[job_id] = Aside(tries, time.monotonic() + _FIRST_WAIT_SECONDS * 2.0 ** (tries - 1))
        if len(self._aside) > _MOST_ASIDE:
            self._aside.clear()
            raise TooManyFailed(f"More than {_MOST_ASIDE:,} jobs could not be processed. The last: {error}") from error
        if tries >= _TRIES:
            self._fail(job_id, error)

    def _fail(self, job_id: UUID, error: Exception) -> None:
        now = time.monotonic()
        while self._failed_at and now - self._failed_at[0] > _WITHIN_SECONDS:
            self._failed_at.popleft()
        if len(self._failed_at) >= _MOST_FAILED:
            raise TooManyFailed(f"{_MOST_FAILED} jobs were failed within a minute. The last: {error}") from error
        self._failed_at.append(now)
        words = f"It could not be processed by the dispatcher's duty {self._duty}: {type(error).__name__}: {error}"
        try:
            self._fail_one(job_id, words)
        except DATABASE_AWAY:
            raise
        except Exception:  # it stays set aside
            logger.exception("id=%s cannot even be failed.", job_id)
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
    next_ids: Callable[[], list[UUID]],
    one: Callable[[UUID], object],
) -> int:
    """Acts on a batch, but for those that are set aside; where that raises, on each of `next_ids` alone."""
    left_out = aside.left_out()
    try:
        with settle.atomic():
            return batch(left_out)
    except Exception as error:  # whatever it was, it comes of one of them, or of all
        if may_pass(error):
            raise
        if aside.told.is_new(error):
            logger.exception("A batch of the dispatcher's duty cannot be processed: each job is tried alone.")
    waiting = set(left_out)
    return aside.each([job_id for job_id in next_ids() if job_id not in waiting], one)


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
