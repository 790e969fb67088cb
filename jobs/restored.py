"""Jobs that were running when a backup was taken: in a restored database their workers are of another time."""

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
    """Every active job waits again, with nothing counted; returns how many.

    Raises WorkersLive. Twice is as good as once; a process that dies in the middle leaves everything as it was.
    """
    with settle.atomic():
        _bury_workers()
        return transition(Job.objects.all(), Cause.HANDED_BACK)


def fail() -> int:
    """Every active job fails, with a sentence that says why, to be run again one by one; returns how many.

    What hangs on a failure happens as always: steps that follow are cancelled, receivers of `job_failed` hear of it.
    Raises WorkersLive. Twice is as good as once; a process that dies in the middle leaves everything as it was.
    """
    failed_count = 0
    with settle.atomic():
        _bury_workers()
        for job in Job.objects.filter(state=State.ACTIVE).select_for_update():
            end(job, Cause.FAILED, error=ERROR, raised=WorkerLostError(ERROR), outcome=Attempt.Outcome.FAILED)
            failed_count += 1
    return failed_count


def _bury_workers() -> None:
    living = selectors.living_workers().first()
    if living is not None:
        raise WorkersLive(
            f"Worker {living.node} has a lease until {living.lease_expires_at:%H:%M:%S} UTC. Stop all workers, and "
            "wait until then."
        )
    Worker.objects.filter(dead_at__isnull=True).update(dead_at=Now())
