"""Loaded into a worker by `--include`: its processes kill themselves at a named point of a job, once.

A test names the point in a file before it enqueues the job: CRASH_POINTS is the folder, the job's id the name of the
file, its text the point. CRASH_VICTIM says who dies: the pool process ("process") or all of the worker ("worker"). A
claim is made by the main process, with which all of the worker dies. With CRASH_DRAINING, a folder, the worker gets
SIGTERM at the point, and the death comes when it takes no more jobs.
"""

import os
import signal
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import shared_task
from django.contrib.auth.models import Group

from jobs import claims, flows, runs, settle
from jobs.backend import LedgerBackend
from jobs.worker.claimer import Claimer


def reached(point: str, job_id: object) -> None:
    """The run of a job is at a point: dies there if the test said so."""
    file = Path(os.environ["CRASH_POINTS"]) / str(job_id)
    if file.exists() and file.read_text() == point:
        file.unlink()
        if "CRASH_DRAINING" in os.environ:
            _drain()
        is_process = os.environ["CRASH_VICTIM"] == "process" and not point.startswith("claim")
        os.kill(os.getpid() if is_process else 0, signal.SIGKILL)


def _drain() -> None:
    # The main process leads the group, and says by a file of its pid that it claims no more.
    main = os.getpgid(0)
    os.kill(main, signal.SIGTERM)
    while not (Path(os.environ["CRASH_DRAINING"]) / str(main)).exists():
        time.sleep(0.01)


def _tells_that_it_drains(stop: Callable[..., Any]) -> Any:
    @wraps(stop)
    def and_tell(claimer: Any) -> Any:
        stop(claimer)
        (Path(os.environ["CRASH_DRAINING"]) / str(os.getpid())).touch()

    return and_tell


def _around(function: Callable[..., Any], step: str, after: str, job_id_of: Callable[..., object]) -> Any:
    @wraps(function)
    def with_points(*args: Any, **kwargs: Any) -> Any:
        reached(f"{step}: before", job_id_of(*args))
        result = function(*args, **kwargs)
        reached(f"{step}: {after}", job_id_of(*args))
        return result

    return with_points


def _around_claims(function: Callable[..., Any]) -> Any:
    @wraps(function)
    def with_points(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        for claim in found:
            reached("claim: committed", claim.job_id)
        return found

    return with_points


def _holders(flow: Any) -> Any:
    return iter(flows.held(flow).values_list("pk", flat=True))


def _write(task: Any, name: str, retries: int) -> str:
    Group.objects.create(name=f"{name} {uuid4()}")
    reached("run: in the middle", task.request.id)
    if task.request.retries < retries:
        raise task.retry(countdown=0)
    return name


@shared_task(bind=True, queue="default", atomic=True, max_retries=5)
def write_atomically(self: Any, name: str, retries: int = 0) -> str:
    return _write(self, name, retries)


@shared_task(bind=True, queue="default", max_retries=5)
def write(self: Any, name: str, retries: int = 0) -> str:
    return _write(self, name, retries)


@shared_task(bind=True, queue="default", max_retries=5)
def split(self: Any, name: str) -> Any:
    """Goes on as `write` when three others have ended."""
    children = [write_atomically.s(f"part {number} of {name}") for number in range(3)]
    return flows.fan_out(self, children, then=write.si(name))


if "CRASH_POINTS" in os.environ:
    claims.claim_next = _around_claims(claims.claim_next)
    runs.begin = _around(runs.begin, "begin", "begun", lambda task, request, *_: request.id)
    settle.complete = _around(settle.complete, "end", "written", lambda run: run.job_id)
    flows.close_if_ended = _around(flows.close_if_ended, "close", "committed", lambda flow_id: flow_id)
    flows.release = _around(flows.release, "release", "written", lambda job, *_: job.awaited_flow_id)
    flows.hold = _around(flows.hold, "hold", "committed", lambda run, *_: run.job_id)
    flows.insert = _around(flows.insert, "hold", "written", lambda flow, *_: next(_holders(flow)))
    settle.retry = _around(settle.retry, "retry", "committed", lambda run: run.job_id)
    LedgerBackend.mark_as_done = _around(  # type: ignore[method-assign]
        LedgerBackend.mark_as_done, "answer", "committed", lambda backend, task_id, *_: task_id
    )
if "CRASH_DRAINING" in os.environ:
    Claimer.stop = _tells_that_it_drains(Claimer.stop)  # type: ignore[method-assign]
