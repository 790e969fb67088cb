"""Celery's pool of processes, except that a job which has begun is never given to another process, and that a process
which has just died is no reason for the worker to end.

When a process is found dead, the pool looks at the others as well, and gives the job of one that has just died too to
another process, unless that one has said that it has begun. What it has said may still lie in its pipe. Then the job
would run again without being counted, and one that kills its process would be tried more often than it may.
"""

from typing import Any

from celery.concurrency.asynpool import AsynPool


class LedgerPool(AsynPool):
    """Hears a process out before it takes its job for one that has not begun."""

    def on_job_process_down(self, job: Any, pid_gone: int) -> None:
        """The process of a job is dead. One whose job has begun after all is found again at the next look."""
        if not job._accepted:
            self.process_flush_queues(job._write_to or job._scheduled_for)
            if job._accepted:
                return
        super().on_job_process_down(job, pid_gone)

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        """Watches for the end of a process, unless that was seen already and the process is not taken out yet.

        After a lost connection to the broker, Celery watches all of them anew, and fails where one has nothing left to
        be watched.
        """
        if getattr(proc, "_sentinel_poll", proc) is not None:
            super()._track_child_process(proc, hub)
