"""Jobs that were running when a backup was taken: in a restored database their workers are of another time."""

from functools import partial

from celery.exceptions import WorkerLostError
from django.db.models.functions import Now

from jobs import selectors, settle
from jobs.ends import end
from jobs.models import Attempt, Job, Worker
from jobs.states import Cause, State
from jobs.transitions import transition

ERROR = "It was running when the backup was taken that this database was restored from; whether it ended is not known."


class WorkersLive(Exception):
    """A worker holds a lease: either the database is not a restored one, or the backup is seconds old."""


def run_again() -> int:
    """Every active job waits again, with nothing counted, but for those that nobody can change; returns how many.

    Raises WorkersLive. Twice is as good as once; a process that dies in the middle leaves everything as it was.
    """
    with settle.atomic():
        _bury_workers()
        running = Job.objects.filter(state=State.ACTIVE)
        return sum(settle.done_alone(job, partial(_hand_back, job)) for job in running.select_for_update())


def fail() -> int:
    """Every active job fails, with a sentence that says why, to be run again one by one; returns how many. Those that
    nobody can change stay.

    What hangs on a failure happens as always: steps that follow are cancelled, receivers of `job_failed` hear of it.
    Raises WorkersLive. Twice is as good as once; a process that dies in the middle leaves everything as it was.
    """
    failed_count = 0
    with settle.atomic():
        _bury_workers()
        for job in Job.objects.filter(state=State.ACTIVE).select_for_update():
            failed_count += settle.done_alone(job, partial(_fail, job))
    return failed_count


def _hand_back(job: Job) -> bool:
    return transition(Job.objects.filter(pk=job.pk), Cause.HANDED_BACK) > 0


def _fail(job: Job) -> bool:
    return end(job, Cause.FAILED, error=ERROR, raised=WorkerLostError(ERROR), outcome=Attempt.Outcome.FAILED)


def _bury_workers() -> None:
    living = selectors.living_workers().first()
    if living is not None:
        raise WorkersLive(
            f"Worker {living.node} has a lease until {living.lease_expires_at:%H:%M:%S} UTC. Stop all workers, and "
            "wait until then."
        )
    Worker.objects.filter(dead_at__isnull=True).update(dead_at=Now())
