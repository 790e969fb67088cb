"""What becomes of jobs, as Django signals that any app may connect to.

Each is sent once, after the commit that made it true, by the process that wrote it: the pool process for an end of the
body, the worker's main process for a hard time limit or a lost pool process, the dispatcher's thread for a lost worker.
A process that dies in the instant between its commit and the signal sends none: what must not be missed belongs into a
job of its own, enqueued by the task. An error of a receiver is logged and stops nobody; a slow one keeps the worker.

Arguments: `job_id` (UUID), `task`, `queue`, `attempt` (of the run, from 1), `payload` (`{"args": [...], "kwargs":
{...}}`, secrets hidden), `error` (a sentence, empty on success), `traceback` (text) and `correlation_id`. The sender is
the model `Job`.
"""

from functools import partial

from django.dispatch import Signal

from jobs import commits
from jobs.models import Job
from jobs.redaction import redact

job_completed = Signal()
job_failed = Signal()
job_retried = Signal()
job_stalled = Signal()


def announce(signal: Signal, job: Job, *, error: str = "", traceback: str = "") -> None:
    """Sends a signal about a job, as it is now, once the current transaction has committed."""
    if not signal.has_listeners(Job):
        return
    facts = {
        "job_id": job.pk,
        "task": job.task,
        "queue": job.queue,
        "attempt": job.attempt,
        "payload": redact({"args": job.args, "kwargs": job.kwargs}),
        "error": error,
        "traceback": traceback,
        "correlation_id": job.correlation_id,
    }
    commits.then(partial(signal.send_robust, Job, **facts))
