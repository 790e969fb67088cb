"""How a run ends. Every function here is fenced by the claim token and says whether its write landed.

0 rows mean that the run no longer owned its job: it was given up and another run has it, or somebody cancelled it. Then
nothing of this run is kept. Called twice for one run, the second call finds 0 rows.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

from billiard.exceptions import WorkerLostError
from django.conf import settings
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, F, QuerySet, When
from django.db.models.functions import Greatest, Now
from django.db.models.sql import UpdateQuery
from django.db.models.sql.constants import ROW_COUNT

from jobs import claims, follow_ups, limits, publish, sessions, signals
from jobs.claims import Claim
from jobs.ends import end, keep_attempt, lead_on
from jobs.errors import JobCancelled, LeaseLost
from jobs.models import LIVE, Attempt, Job
from jobs.patience import DATABASE_AWAY, may_pass, what_happened
from jobs.queues import PACED_QUEUES, QUEUES
from jobs.statements import rows_of
from jobs.states import Cause, State
from jobs.told import Told
from jobs.transitions import transition

logger = logging.getLogger(__name__)

# Each thread's second connection to the ledger, in autocommit.
_beside = threading.local()
_told = Told()
_RENEWALS_WAITED_FOR = 2
_SECOND_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one job, as both the pool process and the worker's main process can name it."""

    job_id: UUID
    token: str

    def row(self) -> QuerySet[Job]:
        """The job's row, if this run still owns it."""
        return Job.objects.filter(pk=self.job_id, state="active", claim_token=self.token)

    def landed(self, **expected: Any) -> bool:
        """Whether an end of this run whose answer was lost did land: its token is still on the row, and it looks so."""
        return Job.objects.filter(pk=self.job_id, claim_token=self.token, **expected).exists()

    def owns(self) -> bool:
        """Whether this run still owns its job, as committed at this moment; True where PostgreSQL does not say."""
        return _is_there(self.row(), unless_known=True)

    def loss(self, consequence: str) -> LeaseLost:
        """What to raise in this run once it has found its job to be no longer its own."""
        mine = Attempt.objects.filter(job_id=self.job_id, claim_token=self.token)
        if _is_there(mine.filter(outcome=Attempt.Outcome.CANCELLED), unless_known=False):
            return JobCancelled(f"Job {self.job_id} was cancelled: {consequence}.")
        return LeaseLost(f"Job {self.job_id} is no longer this run's: {consequence}.")


def ledger() -> str:
    """The alias of the ledger's database."""
    return router.db_for_write(Job)


def atomic() -> transaction.Atomic:
    """A transaction on the ledger's database."""
    return transaction.atomic(using=ledger())


def bound_lock_waits(milliseconds: int) -> None:
    """Until the current transaction ends, a statement that waits for a lock for longer raises OperationalError."""
    with connections[ledger()].cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{milliseconds}ms"])


def complete(run: Run, *, result: Any, claim: Claim | None = None) -> bool:
    """The body returned: keeps the result, if anybody wants it, and inserts what follows.

    Without a claim: the body left without a result, and nothing follows.
    """
    kept = None if claim is not None and claim.ignore_result else result
    # One statement, and no transaction around it, where nothing else is to be written.
    if claim is not None and not claim.follow_ups and claims.complete({run.job_id: (run.token, kept)}):
        _announce_completed(run)
        return True
    with atomic():
        # The claim says enough of a job that is no member of a flow: one fenced update, without a lock before it.
        may_write = claim is not None and claim.follow_ups and claim.flow_id is None
        if claim is not None and may_write and claims.complete({run.job_id: (run.token, kept)}):
            known = _as_claimed(claim)
            lead_on(known, partial(follow_ups.insert, known, claim.follow_ups, claim.root_id, result))
            _announce_completed(run)
            return True
        # What follows is in the claim. In the middle of a long chain, that is all that a row has to say.
        job = run.row().select_for_update().defer(*(["follow_ups"] if claim is not None else [])).first()
        if job is None:
            return False
        follow = None
        if claim is not None:
            follow = partial(follow_ups.insert, job, claim.follow_ups, claim.root_id, result)
        return end(job, Cause.COMPLETED, follow=follow, result=kept, progress_percent=100)


def fail(
    run: Run, *, error: str, exception: Any = None, traceback: str = "", cause: BaseException | None = None
) -> bool:
    """The run failed for good. `exception` as Celery stores it; `cause`: the exception itself, where it is at hand."""
    with atomic():
        job = run.row().select_for_update().first()
        return job is not None and end(
            job,
            Cause.FAILED,
            error=error,
            exception=exception,
            traceback=traceback,
            raised=cause,
            outcome=Attempt.Outcome.FAILED,
        )


def retry(run: Run, *, delay: Any, error: str, exception: Any = None, traceback: str = "", **changes: Any) -> bool:
    """Another run later: `delay` in seconds, or the moment itself. Counts the attempt. `changes`: new args, expiry …"""
    run_at = Now() + timedelta(seconds=delay) if isinstance(delay, (int, float)) else delay
    one_more = Greatest(F("max_attempts"), F("attempt") + 1)
    with atomic():
        job = run.row().select_for_update().first()
        if job is None:
            return False
        keep_attempt(job, Attempt.Outcome.RETRIED, error, traceback)
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
            **{"redelivered": False, **changes},
        )
        signals.announce(signals.job_retried, job, error=error, traceback=traceback)
    return True


def cancel(run: Run, *, reason: str) -> bool:
    """The run was ended on somebody's wish."""
    with atomic():
        job = run.row().select_for_update().first()
        return job is not None and end(job, Cause.CANCELLED, error=reason, outcome=Attempt.Outcome.CANCELLED)


def stop(jobs: QuerySet[Job], *, reason: str) -> int:
    """Cancels those of these jobs that are alive, but for rows that others hold or that nobody can change; returns how
    many."""
    count = 0
    with atomic():
        for job in jobs.filter(state__in=LIVE).select_for_update(skip_locked=True, of=("self",)):
            outcome = Attempt.Outcome.CANCELLED if job.state == State.ACTIVE else None
            count += done_alone(job, partial(end, job, Cause.CANCELLED, error=reason, outcome=outcome))
    return count


def done_alone(job: Job, act: Callable[[], bool]) -> bool:
    """Acts on one of many jobs in a savepoint; False, and a line in the log, where that cannot be done."""
    try:
        with atomic():
            return act()
    except Exception as error:  # whatever is wrong with one of them, the others go on
        if may_pass(error):
            raise
        logger.exception("id=%s cannot be changed; the others are.", job.pk)
        return False


def lose(
    jobs: QuerySet[Job], *, evidence: str, note: Callable[[UUID, Exception | None], None] | None = None
) -> tuple[int, int]:
    """The process of these active jobs died: each runs again, or fails when it has stalled too often (G06).

    Returns how many go on and how many failed. `note` is told of each of these, and of each with which neither could be
    done, with the error. Rows that a transaction of the dead run still holds are left for the next look. Not counted as
    an attempt: that the worker died says nothing about the job, until it happens repeatedly.
    """
    again = failed = 0
    with atomic():
        for job_id in jobs.filter(state="active").values_list("pk", flat=True):
            refusal: Exception | None = None
            cause: Cause | None = None
            try:
                with atomic():
                    cause = _lose_one(jobs.filter(pk=job_id), evidence)
            except Exception as error:  # whatever is wrong with one of them, the others are not lost with it
                if may_pass(error):
                    raise
                if _told.is_new(error, str(job_id)):
                    logger.exception("id=%s could not be taken from its worker; the next look tries again.", job_id)
                refusal = error
            again += cause is Cause.STALLED
            failed += cause is Cause.FAILED
            if note is not None and (cause or refusal):
                note(job_id, refusal)
    return again, failed


def _lose_one(jobs: QuerySet[Job], evidence: str, *, what: str = "Its worker died") -> Cause | None:
    """What became of the one active job among these; None where it is that no more, or somebody has locked it."""
    job = jobs.filter(state="active").select_for_update(skip_locked=True, of=("self",)).first()
    if job is None:
        return None
    keep_attempt(job, Attempt.Outcome.STALLED, evidence)
    queue = QUEUES.get(job.queue)
    stalls: dict[str, Any] = {"stalled_count": F("stalled_count") + 1}
    if queue is not None and job.stalled_count >= queue.max_stalls:
        error = f"{what} {job.stalled_count + 1} times while running it. The last time: {evidence}"
        end(job, Cause.FAILED, error=error, raised=WorkerLostError(error), **stalls)
        return Cause.FAILED
    transition(Job.objects.filter(pk=job.pk), Cause.STALLED, run_alone=True, **stalls)
    signals.announce(signals.job_stalled, job, error=evidence)
    publish.after_commit(publish.Ring.of(job))
    return Cause.STALLED


def give_back(run: Run, *, skip_locked: bool = False) -> bool:
    """The run left nothing behind, through no fault of its task: the job waits again, and nothing is counted.

    `skip_locked`: False, too, where somebody else has locked the job at this moment.
    """
    with atomic():
        job = run.row().select_for_update(skip_locked=skip_locked).first()
        if job is None:
            return False
        transition(run.row(), Cause.HANDED_BACK)
        publish.after_commit(publish.Ring.of(job))
    return True


# The start of a job with limits stays the moment of its claim, which its limits count.
# Locks: the job's row, for the length of this statement; one that somebody else holds is passed over.
# Index: primary key. Two at once: the second passes over the row, and the token fences.
BEGIN = """
WITH own AS (
    SELECT id FROM jobs_job
    WHERE id = %(job_id)s AND CASE state WHEN 'active' THEN claim_token = %(token)s ELSE FALSE END
      AND lane = '' AND queue <> ALL (%(paced_queues)s::text[])
      AND NOT EXISTS (
          SELECT FROM jobs_queuecontrol AS control
          WHERE control.name = jobs_job.queue
            AND num_nonnulls(control.rate_limit, control.concurrency_limit, control.quiet_hours) > 0)
    FOR UPDATE SKIP LOCKED
)
UPDATE jobs_job AS job SET started_at = clock_timestamp() FROM own WHERE job.id = own.id
RETURNING job.id
"""


def begin(run: Run) -> bool:
    """The body of a job that was claimed some time ago begins now; False where the run does not own its job any more.

    A row that somebody has locked keeps the moment of the claim: nobody waits for it. So it does where PostgreSQL does
    not answer, and then the run is taken to own its job.
    """
    parameters = {"job_id": run.job_id, "token": run.token, "paced_queues": PACED_QUEUES}
    try:
        return bool(rows_of(BEGIN, parameters)) or run.row().exists()
    except DATABASE_AWAY as error:
        logger.warning("id=%s begins without PostgreSQL (%s).", run.job_id, what_happened(error))
        connections[ledger()].close()
        return True


# Whether PostgreSQL has answered this run's worker ever since the run began, and was not started meanwhile; whether the
# worker was answered after a moment; and the moment now. No row where the run does not own its job any more.
# Locks: nothing. Index: primary keys. Two at once: they read.
WORKER_WAS_ANSWERED = """
SELECT worker.answered_since <= job.started_at AND pg_postmaster_start_time() <= job.started_at,
    worker.renewed_at > COALESCE(%(since)s::timestamptz, statement_timestamp()), statement_timestamp()
FROM jobs_job AS job JOIN jobs_worker AS worker ON worker.id = job.worker_id
WHERE job.id = %(job_id)s AND job.state = 'active' AND job.claim_token = %(token)s
"""


def broke_alone(run: Run) -> bool:
    """Whether the connection of this run broke while PostgreSQL answered its worker's others, so that it was no outage.

    Waits until the worker has renewed its lease once more, or has not done so in time. Raises what PostgreSQL raises.
    """
    deadline = time.monotonic() + _RENEWALS_WAITED_FOR * settings.JOBS_HEARTBEAT_SECONDS
    since = None
    while True:
        rows = rows_of(WORKER_WAS_ANSWERED, {"job_id": run.job_id, "token": run.token, "since": since})
        if not rows or not rows[0][0]:
            return False
        [(_, is_renewed, now)] = rows
        if is_renewed or time.monotonic() > deadline:
            return bool(is_renewed)
        since = since or now
        time.sleep(_SECOND_LOOK_SECONDS)


def count_broken(run: Run, *, evidence: str) -> bool:
    """The connection of an atomic task broke, and no outage was to blame: as where its worker dies, it runs again, or
    fails where that has happened too often."""
    with atomic():
        return _lose_one(run.row(), evidence, what="Its connection to PostgreSQL broke") is not None


def rate_limit(run: Run, *, seconds: float) -> bool:
    """The other side takes no more calls: nothing of the job's rate key, or of its queue, starts for so many seconds.

    The job waits again, at its place, and nothing is counted. A pause that lasts longer already stays.
    """
    with atomic():
        # The job first, then the limit, as in a claim.
        job = run.row().select_for_update().first()
        if job is None:
            return False
        limits.pause(job, seconds=seconds)
        transition(run.row(), Cause.RATE_LIMITED)
    return True


def hand_back(worker_id: UUID, *, but: Collection[UUID] = ()) -> int:
    """A worker that ends gives back what still runs, but for these: to be done by others at once, not counted.

    A job that cannot be given back stays the worker's, and is taken from it as from one that died.
    """
    mine = Job.objects.filter(worker_id=worker_id, state="active").exclude(pk__in=but)

    def hand(jobs: Collection[Job]) -> int:
        with atomic():
            rows = Job.objects.filter(pk__in=[job.pk for job in jobs], worker_id=worker_id)
            count = transition(rows, Cause.HANDED_BACK)
            for job in jobs:
                publish.after_commit(publish.Ring.of(job))
        return count

    with atomic():
        jobs = list(mine.only("queue", "priority", "lane", "run_at"))
        try:
            return hand(jobs)
        except Exception as error:  # whatever it is, it comes of one of them, or of all
            if may_pass(error):
                raise
            logger.exception("Not all jobs of a worker can be given back at once: each is given back alone.")
        count = 0
        for job in jobs:
            try:
                count += hand([job])
            except Exception as error:  # whatever is wrong with one of them, the others go back
                if may_pass(error):
                    raise
                logger.exception("id=%s cannot be given back.", job.pk)
        return count


def report(run: Run, *, repeated: bool = False, **changes: Any) -> bool:
    """Progress or a custom state of a running job: visible at once and kept, whatever becomes of a transaction around.

    Inside a transaction it therefore goes over a connection of its own, which the thread keeps; and so it does where
    the body has changed its session.
    """
    if not _is_bodys_own(connections[ledger()]):
        return bool(run.row().update(**changes))
    connection = _connection_beside()
    query = cast(UpdateQuery, run.row().query.chain(UpdateQuery))
    query.add_update_values(changes)
    try:
        with _patient_for_a_second(connection):
            return bool(query.get_compiler(connection=connection).execute_sql(ROW_COUNT))
    except DATABASE_AWAY as error:
        is_stale = connection.connection is not None and not connection.is_usable()
        connection.close()
        if is_stale and not repeated:
            # PostgreSQL was restarted since the last report.
            return report(run, repeated=True, **changes)
        # A report is never worth a job; whether the run still owns its job is asked again at its end.
        logger.warning("id=%s could not report (%s)", run.job_id, str(error).strip())
        return True


@contextmanager
def reporting_inside() -> Iterator[None]:
    """Lets this thread report inside its transactions for a moment: for tests, whose jobs no other connection sees."""
    before = getattr(_beside, "connection", None)
    _beside.connection = connections[ledger()]
    try:
        yield
    finally:
        _beside.connection = before


def _is_bodys_own(connection: Any) -> bool:
    """Whether what the ledger says or asks meanwhile would be part of what the body does to its connection."""
    return connection.in_atomic_block or sessions.is_changed(connection)


def _connection_beside() -> BaseDatabaseWrapper:
    connection: BaseDatabaseWrapper | None = getattr(_beside, "connection", None)
    if connection is None:
        _beside.connection = connection = connections.create_connection(ledger())
    return connection


@contextmanager
def _patient_for_a_second(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """A transaction of that connection's own, in which a statement that waits for a lock for longer fails.

    A transaction of this very thread may hold the row: then the report is dropped, instead of waiting for ever. The
    bound ends with the transaction, so that it holds behind PgBouncer too, which knows nothing of a session's options.
    """
    if connection.in_atomic_block:
        # Only in tests, whose jobs no other connection sees.
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("BEGIN; SET LOCAL lock_timeout = '1s'")
        try:
            yield
        except BaseException:
            connection.close()
            raise
        cursor.execute("COMMIT")


def _is_there(rows: QuerySet[Any], *, unless_known: bool) -> bool:
    """Whether there are such rows. Asked beside a transaction, which may be aborted, or see the world as it was."""
    connection: Any = connections[ledger()]
    if _is_bodys_own(connection):
        connection = _connection_beside()
    try:
        return bool(rows.query.exists().get_compiler(connection=connection).has_results())
    except DATABASE_AWAY as error:
        logger.warning("Could not ask whether a job is still its run's (%s)", str(error).strip())
        connection.close()
        return unless_known


def close_beside() -> None:
    """Closes this thread's second connection, if it has one."""
    connection: BaseDatabaseWrapper | None = getattr(_beside, "connection", None)
    if connection is not None:
        connection.close()


def _as_claimed(claim: Claim) -> Job:
    """A claimed job without flow and successor. Its other columns are read when they are used."""
    known = {"id": claim.job_id, "flow_id": None, "successor": None}
    names = [field.attname for field in Job._meta.concrete_fields if field.attname in known]
    return Job.from_db(ledger(), names, [known[name] for name in names])


def _announce_completed(run: Run) -> None:
    if signals.job_completed.has_listeners(Job):
        for job in Job.objects.filter(pk=run.job_id):
            signals.announce(signals.job_completed, job)
