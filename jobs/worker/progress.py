"""Tells monitors such as Flower how far jobs are. Celery has no event for that; a custom one becomes a state."""

from typing import Any
from uuid import UUID

from jobs.ids import id_of_message
from jobs.models import Job
from jobs.settle import Run
from jobs.worker.requests import running_tokens, started


class TellProgress:
    """Sends `task-progress` for what the jobs of this worker have reported, with the words as their result for now.

    Read from the rows, in the worker and not in its runs: no run waits for Redis, and nothing is read or sent while no
    monitor listens.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._told: dict[UUID, str] = {}

    def run_once(self) -> None:
        """One look. The main thread sends: it knows which runs have ended meanwhile."""
        consumer = self._worker.consumer
        dispatcher = getattr(consumer, "event_dispatcher", None)
        if dispatcher is None or not dispatcher.enabled:
            return
        running = started()
        ids = {id_of_message(request.id) for request in running.values()}
        words = {}
        # By their ids alone, and no more than there are slots.
        for job in Job.objects.filter(pk__in=ids).only("task", "claim_token", "progress_percent", "progress_message"):
            if job.progress_percent is None or job.claim_token not in running:
                continue
            words[job.pk] = f"{job.progress_percent} % {job.progress_message}".rstrip()
            if self._told.get(job.pk) != words[job.pk]:
                consumer.call_soon(_tell, dispatcher, Run(job.pk, job.claim_token), job.task, words[job.pk])
        self._told = words


def _tell(dispatcher: Any, run: Run, task: str, words: str) -> None:
    # Later, it would take the place of the result. With the name, for monitors that have missed the beginning.
    if run.token in running_tokens():
        dispatcher.send("task-progress", uuid=str(run.job_id), name=task, result=words)
