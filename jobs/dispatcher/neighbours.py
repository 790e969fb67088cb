"""Workers of the same host whose process is gone are given up at once, long before their lease ends.

Every worker looks, not only the leader, who may be on another host. So does a worker that has just been restarted.
"""

import os

from jobs.dispatcher.rescue import give_up
from jobs.models import Worker
from jobs.worker import identity, process


def run_once() -> None:
    """One look."""
    space = process.pid_space()
    if not space:
        return
    neighbours = Worker.objects.filter(dead_at__isnull=True, pid_space=space).exclude(pk=identity.incarnation())
    for worker in neighbours:
        # What has our pid is what we were before we replaced ourselves.
        if worker.pid == os.getpid() or process.is_gone(worker.pid, worker.pid_started_ticks):
            give_up(worker, neighbours, evidence=f"the process of worker {worker.node} (pid {worker.pid}) is gone")
