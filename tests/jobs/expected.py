"""What the model in `test_protocol.py` knows of each job and each run, and as which worker it acts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from celery._state import _task_stack
from celery.app.task import Context
from django.contrib.auth.models import Group

from jobs.models import Attempt, Job, JobEvent
from jobs.worker import identity, lease
from jobs.worker.requests import headers_of
from tests.jobs.factories import make_worker

# However slow the machine is, a lease runs out and a job is due when the model says so. In seconds.
LEASE_SECONDS = LATER = 86_400
HALF_A_LEASE = timedelta(seconds=LEASE_SECONDS / 2)


@dataclass
class Expected:
    """What the model knows of one job."""

    id: UUID
    task: Any
    name: str
    state: str = "waiting"
    due: bool = True
    expired: bool = False
    key: str | None = None
    link: str | None = None
    attempt: int = 1
    allowed_attempts: int = 2
    stalled_count: int = 0
    owner: "Run | None" = None
    last_claim: tuple[UUID, str] | None = None
    history: list[str] = field(default_factory=list)
    started: bool = False
    successor: "Expected | None" = None


@dataclass(eq=False)
class Run:
    """A run that has begun, as its pool process sees it. It stays when it has lost its job: then it is a zombie."""

    job_id: UUID
    task: Any
    worker_id: UUID
    request: Any
    attempt: int
    name: str

    def told_by_the_main_process(self) -> Any:
        """The request as the worker's main process has it: it has claimed the job, and has not begun the run."""
        return Context(**headers_of(self.request.claim))


@contextmanager
def running_on(worker_id: UUID, task: Any = None, request: Any = None) -> Iterator[None]:
    """This process is that worker for a moment, and runs that request of that task."""
    identity.assume(worker_id)
    if task is not None:
        _task_stack.push(task)
        task.request_stack.push(request)
    try:
        yield
    finally:
        if task is not None:
            task.request_stack.pop()
            _task_stack.pop()


def fresh_worker() -> UUID:
    """A worker that has just started. Of slots it has enough: nothing that it claims waits for one."""
    worker_id: UUID = make_worker(concurrency=100, lease_expires_at=lease.lease_end()).pk
    return worker_id


def everything() -> list[Any]:
    """All that a run could have changed."""
    return [list(model.objects.order_by("pk").values()) for model in (Job, Attempt, JobEvent, Group)]
