"""How a run ends. Every function here is fenced by the claim token and says whether its write landed.

0 rows mean that the run no longer owned its job: it was given up and another run has it, or somebody cancelled it. Then
nothing of this run is kept. Called twice for one run, the second call finds 0 rows.
"""

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, F, QuerySet, When
from django.db.models.functions import Greatest, Now
from django.db.models.sql import UpdateQuery
from django.db.models.sql.constants import ROW_COUNT

from jobs import publish
from jobs.models import Attempt, Job
from jobs.patience import DATABASE_AWAY
from jobs.queues import QUEUES
from jobs.states import Cause
from jobs.transitions import transition

logger = logging.getLogger(__name__)

# Each thread's second connection to the ledger, in autocommit.
_beside = threading.local()


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one job, as both the pool process and the worker's main process can name it."""

    job_id: UUID
    token: str

    def row(self) -> QuerySet[Job]:
        """The job's row, if this run still owns it."""
        return Job.objects.filter(pk=self.job_id, state="active", claim_token=self.token)

    def ended(self) -> bool:
        """Whether this run has ended its job already: its token is the last one on a row that is no longer active."""
        return Job.objects.filter(pk=self.job_id, claim_token=self.token).exclude(state="active").exists()


def ledger() -> str:
    """The alias of the ledger's database."""
    return router.db_for_write(Job)


def atomic() -> transaction.Atomic:
    """A transaction on the ledger's database."""
    return transaction.atomic(using=ledger())


def complete(run: Run, *, result: Any) -> bool:
    """The body returned: keeps the result."""
    return bool(
        transition(
            run.row(),
            Cause.COMPLETED,
            finished_at=Now(),
            result=result,
            progress_percent=100,
            error="",
            exception=None,
            traceback="",
        )
    )


def fail(run: Run, *, error: str, exception: Any = None, traceback: str = "") -> bool:
    """The run failed for good."""
    with atomic():
        return _record(run, Attempt.Outcome.FAILED, error, traceback) and bool(
            transition(
                run.row(),
                Cause.FAILED,
                finished_at=Now(),
                error=error,
                exception=exception,
                traceback=traceback,
            )
        )


def retry(run: Run, *, delay: Any, error: str, exception: Any = None, traceback: str = "", **changes: Any) -> bool:
    """Another run later: `delay` in seconds, or the moment itself. Counts the attempt. `changes`: new args, expiry …"""
    run_at = Now() + timedelta(seconds=delay) if isinstance(delay, (int, float)) else delay
    one_more = Greatest(F("max_attempts"), F("attempt") + 1)
    with atomic():
        return _record(run, Attempt.Outcome.RETRIED, error, traceback) and bool(
            transition(
                run.row(),
                Cause.RETRIED,
                run_at=run_at,
                attempt=F("attempt") + 1,
                # GREATEST ignores NULL, which here means "without end".
                max_attempts=Case(When(max_attempts__isnull=True, then=None), default=one_more),
                error=error,
                exception=exception,
                traceback=traceback,
                **changes,
            )
        )


def cancel(run: Run, *, reason: str) -> bool:
    """The run was ended on somebody's wish."""
    with atomic():
        return _record(run, Attempt.Outcome.CANCELLED, reason) and bool(
            transition(run.row(), Cause.CANCELLED, finished_at=Now(), error=reason)
        )


def lose(jobs: QuerySet[Job], *, evidence: str) -> tuple[int, int]:
    """The process of these active jobs died: each runs again, or fails when it has stalled too often (G06).

    Returns how many go on and how many failed. Rows that a transaction of the dead run still holds are left for the
    next look. Not counted as an attempt: that the worker died says nothing about the job, until it happens repeatedly.
    """
    again = failed = 0
    with atomic():
        for job in jobs.filter(state="active").select_for_update(skip_locked=True, of=("self",)):
            run = Run(job.pk, job.claim_token)
            _record(run, Attempt.Outcome.STALLED, evidence)
            queue = QUEUES.get(job.queue)
            if queue is not None and job.stalled_count >= queue.max_stalls:
                error = f"Its worker died {job.stalled_count + 1} times while running it. The last time: {evidence}"
                failed += transition(
                    run.row(),
                    Cause.FAILED,
                    finished_at=Now(),
                    stalled_count=F("stalled_count") + 1,
                    error=error,
                    exception=None,
                    traceback="",
                )
            else:
                again += transition(run.row(), Cause.STALLED, stalled_count=F("stalled_count") + 1, run_alone=True)
                transaction.on_commit(partial(publish.soon, publish.Hint.of(job)), using=ledger(), robust=True)
    return again, failed


def replace(run: Run, *, task: str, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """The job goes on as another task's, under the same id; its attempts go on counting."""
    return bool(transition(run.row(), Cause.REPLACED, task=task, args=args, kwargs=kwargs, run_at=Now()))


def give_back(run: Run) -> bool:
    """The run left nothing behind, through no fault of its task: the job waits again, and nothing is counted."""
    return bool(transition(run.row(), Cause.HANDED_BACK))


def hand_back(worker_id: UUID) -> int:
    """A worker that ends gives back what still runs: to be done by others at once, not counted as anything."""
    return transition(Job.objects.filter(worker_id=worker_id), Cause.HANDED_BACK)


def report(run: Run, **changes: Any) -> bool:
    """Progress or a custom state of a running job: visible at once and kept, whatever becomes of a transaction around.

    Inside a transaction it therefore goes over a connection of its own, which the thread keeps.
    """
    if not connections[ledger()].in_atomic_block:
        return bool(run.row().update(**changes))
    connection: BaseDatabaseWrapper | None = getattr(_beside, "connection", None)
    if connection is None:
        connection = connections.create_connection(ledger())
        # A transaction of this very thread may hold the row: then the report is dropped, instead of waiting for ever.
        options = {**connection.settings_dict["OPTIONS"], "options": "-c lock_timeout=1s"}
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
        _beside.connection = connection
    query = cast(UpdateQuery, run.row().query.chain(UpdateQuery))
    query.add_update_values(changes)
    try:
        return bool(query.get_compiler(connection=connection).execute_sql(ROW_COUNT))
    except DATABASE_AWAY as error:
        # A report is never worth a job; whether the run still owns its job is asked again at its end.
        logger.warning("id=%s could not report (%s)", run.job_id, str(error).strip())
        connection.close()
        return True


def _record(run: Run, outcome: Attempt.Outcome, error: str, traceback: str = "") -> bool:
    """Keeps the history of a run that did not simply succeed and holds its row, if the run still owns the job."""
    job = run.row().select_for_update().values("attempt", "worker_id", "started_at").first()
    if job is None:
        return False
    Attempt.objects.create(
        job_id=run.job_id,
        number=job["attempt"],
        outcome=outcome,
        worker_id=job["worker_id"],
        started_at=job["started_at"],
        error=error,
        traceback=traceback,
    )
    return True
