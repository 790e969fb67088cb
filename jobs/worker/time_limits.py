"""Hard time limits, and cancelled runs, where nothing can end a run: threads, and the solo pool.

A pool process that runs too long is killed. A thread cannot be: at its limit its job is settled exactly as after such a
kill, which revokes its claim token, and the thread is *stuck*. What it still reports is refused, and its slot is free
again when it returns. Until then Celery holds its message, and so takes none in its place. A run that goes on though
its job was cancelled is stuck likewise. Soft limits are exceptions raised inside of a run, which no other thread can
do: here there are none.
"""

import logging
import time
from typing import Any

from billiard.exceptions import TimeLimitExceeded

from jobs.models import Job, Worker
from jobs.queues import QUEUES
from jobs.worker import cancelling, identity
from jobs.worker.requests import started

logger = logging.getLogger(__name__)


class TimeLimits:
    """Settles jobs that ran longer than they may, and counts the threads that go on with these and cancelled ones."""

    def __init__(self, *, concurrency: int) -> None:
        self.stuck: frozenset[str] = frozenset()
        self._concurrency = concurrency
        self._told_count = 0
        # By the monotonic clock, which nobody sets: when this worker first saw each run.
        self._since: dict[str, float] = {}

    @property
    def half_is_stuck(self) -> bool:
        """Whether so few slots are left that a fresh process is better."""
        return 2 * len(self.stuck) >= self._concurrency

    def run_once(self) -> None:
        """One look. A job that could not be settled, because PostgreSQL was away, is settled at the next one."""
        now = time.monotonic()
        running = started()
        self._since = {token: self._since.get(token, now) for token in running}
        overdue = {token: run for token, run in running.items() if now - self._since[token] > _limit_seconds(run)}
        self.stuck = frozenset(overdue) | cancelling.overdue()
        if overdue:
            self._settle(overdue)
        count = len(self.stuck)
        if count != self._told_count:
            Worker.objects.filter(pk=identity.incarnation()).update(stuck_count=count)
            logger.warning("%d of %d slots are stuck in runs past a limit or cancelled.", count, self._concurrency)
            self._told_count = count

    def _settle(self, overdue: dict[str, Any]) -> None:
        mine = Job.objects.filter(state="active", worker_id=identity.incarnation(), claim_token__in=list(overdue))
        for token in list(mine.values_list("claim_token", flat=True)):
            request = overdue[token]
            error = TimeLimitExceeded(_limit_seconds(request))
            request.task.backend.mark_as_failure(request.id, error, request=request._context)


def _limit_seconds(request: Any) -> float:
    """The job's own limit, as its claim says it; a plain Celery task may have none, and has the queue's."""
    hard_seconds, _ = request.time_limits
    if hard_seconds is None:
        queue = (request.delivery_info or {}).get("routing_key") or request.task.app.conf.task_default_queue
        hard_seconds = request.task.time_limit or QUEUES[queue].time_limit_seconds
    return float(hard_seconds)
