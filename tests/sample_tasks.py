"""Tasks for tests: a worker loads them with `-I tests.sample_tasks`."""

import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Task, group, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from django.contrib.auth.models import Group
from django.db import DatabaseError, InterfaceError, connection, transaction

from jobs import fenced
from jobs.errors import Permanent, RateLimited


class Flaky(Exception):
    """Goes away by itself."""


@shared_task(queue="default")
def add(x: int, y: int) -> int:
    return x + y


@shared_task(queue="default")
def echo(value: Any) -> Any:
    return value


@shared_task(queue="default")
def raise_error(value: Any) -> None:
    raise ValueError(value)


@shared_task(queue="default")
def evaluate(expression: str) -> Any:
    """Returns what no caller could have passed."""
    return eval(expression)


@shared_task(queue="default", atomic=True)
def evaluate_atomically(expression: str) -> Any:
    return eval(expression)


@shared_task(queue="default")
def raise_evaluated(expression: str) -> None:
    raise ValueError(eval(expression))


@shared_task(bind=True, queue="default")
def leave_evaluated(self: Any, expression: str, how: str) -> None:
    """Leaves what no caller could have passed, in another way than as a result."""
    value = eval(expression)
    if how == "state":
        self.update_state(state="COUNTING", meta=value)
    elif how == "retry":
        raise self.retry(args=(value, how), countdown=0, max_retries=3)
    elif how == "replace":
        raise self.replace(echo.s(value))


@shared_task(bind=True, queue="default")
def retry_evaluated(self: Any, countdown: str) -> None:
    raise self.retry(countdown=eval(countdown), max_retries=3)


@shared_task(bind=True, queue="default")
def report_evaluated(self: Any, expression: str) -> None:
    words = eval(expression)
    self.progress(1, 2, words)
    self.update_state(state=words)


@shared_task(bind=True, queue="default")
def headers_seen(self: Any) -> Any:
    return self.request.headers


@shared_task(queue="default")
def count_items(items: list[Any]) -> int:
    return len(items)


@shared_task(queue="default")
def append_line(path: str, line: str, seconds: float = 0) -> str:
    """Leaves a line in a file for each run, before and after its work."""
    with Path(path).open("a") as file:
        file.write(f"begin {line} {os.getpid()}\n")
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write(f"end {line} {os.getpid()}\n")
    return line


@shared_task(bind=True, queue="default", autoretry_for=(Flaky,), retry_backoff=1, max_retries=2)
def fail_until(self: Any, attempt: int) -> int:
    """Fails until its attempt of that number."""
    if self.request.retries + 1 < attempt:
        raise Flaky(f"not yet: run {self.request.retries + 1}")
    return self.request.retries + 1


@shared_task(bind=True, queue="default")
def kill_own_process(self: Any, times: int = 1) -> str:
    """Kills the process it runs in, in its first runs; the count is in a custom state of nobody's but the ledger's."""
    from jobs.models import Job

    if Job.objects.get(pk=self.request.id).stalled_count < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@shared_task(queue="default")
def fail_for_good() -> None:
    raise Permanent("the mailbox does not exist")


@shared_task(bind=True, queue="default")
def scheduled_moment(self: Any) -> str | None:
    """The tick that the job was made for."""
    return self.scheduled_for.isoformat() if self.scheduled_for else None


@shared_task(base=Task)
def plain(text: str) -> str:
    """A task that is no job."""
    return text


@shared_task(bind=True, queue="default")
def report_progress(self: Any) -> str:
    self.progress(1, 2, "half way")
    return "done"


@shared_task(bind=True, queue="default")
def wait_for_file(self: Any, path: str) -> int:
    """Runs until the file is there; returns its process."""
    self.progress(10, 100, "waiting")
    while not Path(path).exists():
        time.sleep(0.05)
    self.progress(100, 100, "seen")
    return os.getpid()


@shared_task(bind=True, queue="default")
def retry_in(self: Any, seconds: float) -> int:
    """Asks once for another run."""
    if self.request.retries == 0:
        raise self.retry(countdown=seconds)
    return self.request.retries + 1


@shared_task(bind=True, queue="default")
def retry_in_a_transaction(self: Any) -> None:
    with transaction.atomic():
        if self.request.retries == 0:
            raise self.retry(countdown=0)


@shared_task(queue="default")
def ignore() -> None:
    raise Ignore("nothing to do")


@shared_task(queue="default")
def reject(requeue: bool) -> None:
    raise Reject("not mine", requeue=requeue)


@shared_task(bind=True, queue="default")
def become_a_sum(self: Any, x: int, y: int) -> None:
    raise self.replace(add.s(x, y))


@shared_task(bind=True, queue="default")
def become_a_group(self: Any) -> None:
    raise self.replace(group(add.s(1, 2), add.s(3, 4)))


@shared_task(queue="default")
def run_out_of_memory() -> None:
    raise MemoryError("no more")


@shared_task(queue="default", soft_time_limit=1, time_limit=2)
def sleep_through_the_limits() -> None:
    """Swallows the soft limit, and is ended by the hard one."""
    for _ in range(2):
        with suppress(SoftTimeLimitExceeded):
            time.sleep(60)


@shared_task(queue="default", ignore_result=True)
def ignore_result() -> int:
    return 7


@shared_task(bind=True, queue="default")
def custom_state(self: Any, path: str) -> None:
    """Tells a state of its own, and waits for the file."""
    self.update_state(state="COUNTING", meta={"counted": 3})
    while not Path(path).exists():
        time.sleep(0.05)


@shared_task(queue="default")
def fail_with(value: int) -> None:
    raise Permanent(f"cannot go on with {value}")


@shared_task(queue="default")
def remember_failed_id(job_id: str) -> str:
    """An errback of the kind that gets an id."""
    return job_id


FAILURES_SEEN: list[tuple[str, BaseException, str]] = []


@shared_task(queue="default")
def see_failure(request: Any, error: BaseException, traceback: str) -> None:
    """An errback of the kind that is called in place."""
    FAILURES_SEEN.append((request.id, error, traceback))


@shared_task(queue="default")
def fail_unexpectedly() -> None:
    raise ValueError("nobody expected this")


def _write_and_wait(task: Any, name: str, path: str) -> None:
    """A database effect that nothing makes unique, then a pause in which the test can strike."""
    Group.objects.create(name=f"{name} {uuid4()}")
    task.progress(50, 100, "written")
    while not Path(path).exists():
        time.sleep(0.05)


@shared_task(bind=True, queue="default", atomic=True)
def write_atomically(self: Any, name: str, path: str) -> str:
    _write_and_wait(self, name, path)
    return "written"


@shared_task(bind=True, queue="default")
def write_fenced(self: Any, name: str, path: str) -> str:
    with fenced():
        _write_and_wait(self, name, path)
    return "written"


@shared_task(bind=True, queue="default", atomic=True)
def write_atomically_and_fail(self: Any, name: str) -> None:
    Group.objects.create(name=name)
    self.progress(50, 100, "written")
    raise Permanent("after all, no")


@shared_task(bind=True, queue="default", atomic=True)
def write_atomically_and_retry(self: Any, name: str) -> int:
    Group.objects.create(name=f"{name} {uuid4()}")
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    transaction.on_commit(lambda: 1 / 0)
    return self.request.retries


@shared_task(
    queue="default", autoretry_for=(DatabaseError, InterfaceError), retry_backoff=1, max_retries=20, atomic=True
)
def write_after_a_while(name: str) -> None:
    """An effect that is unique by nothing but its job's completion."""
    time.sleep(0.05)
    Group.objects.create(name=f"{name} {uuid4()}")


def effects() -> int:
    """How often something was written."""
    return Group.objects.count()


@shared_task(queue="default")
def run_for(seconds: float) -> None:
    time.sleep(seconds)


@shared_task(queue="default")
def fail_with_a_nul() -> None:
    raise ValueError("the other side said: \0 \udcff")


@shared_task(bind=True, queue="default", atomic=True)
def report_after_a_nested_fence(self: Any) -> None:
    """The row is locked by this transaction until its end."""
    with fenced():
        Group.objects.create(name="fenced")
    self.progress(50, 100, "after the fence")


@shared_task(bind=True, queue="default", autoretry_for=(Flaky,), retry_backoff=1, max_retries=1)
def wait_for_file_at_first(self: Any, path: str) -> int:
    """Runs until the file is there, and in a retry not at all."""
    while self.request.retries == 0 and not Path(path).exists():
        time.sleep(0.05)
    return self.request.retries


@shared_task(bind=True, queue="default", atomic=True)
def hold_the_row_for(self: Any, seconds: float) -> None:
    """Locks its own job's row, as a task may that reads its job, and reports beside the transaction."""
    from jobs.models import Job

    Job.objects.select_for_update().get(pk=self.request.id)
    for step in range(10):
        time.sleep(seconds / 10)
        self.progress(step, 10)


@shared_task(bind=True)
def note_the_time(self: Any, path: str, seconds: float) -> None:
    _note(path, f"{self.request.id} {time.time()}")
    time.sleep(seconds)


def _note(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line} {os.getpid()}\n")


@shared_task(bind=True, queue="default", autoretry_for=(Exception,), max_retries=3)
def count_for_ever(self: Any, path: str, asks: str) -> None:
    """Cooperates: by its progress, or by asking. Notes its beginning, and how it was told to stop."""
    _note(path, "begin")
    try:
        for number in range(1_000_000):
            if asks == "progress":
                self.progress(number, 1_000_000)
            else:
                self.check_cancelled()
            # Much sooner than a report may be written.
        time.sleep(0.02)
    except Exception as error:
        _note(path, type(error).__name__)
        raise


@shared_task(bind=True, queue="default", max_retries=3)
def go_on_at_first(self: Any, path: str, gate: str) -> str:
    """Its first run goes on whatever it is told, until the gate is there; the next one ends at once."""
    is_first = not Path(path).exists()
    _note(path, "begin")
    while is_first and not Path(gate).exists():
        with suppress(Exception):
            self.progress(10, 100, "goes on")
        time.sleep(0.05)
    return f"ran by {os.getpid()}"


@shared_task(queue="default", concurrency_key="tenant:{tenant_id}")
def for_a_tenant(tenant_id: int) -> int:
    return tenant_id


@shared_task(bind=True, queue="default")
def talk(self: Any, lines: int, gate: str = "") -> str:
    """Logs, reports in quick succession, and waits for the file."""
    logger = logging.getLogger("somebody.elses")
    for number in range(lines):
        logger.info("line %d of %s", number, self.request.id)
        self.progress(number, lines, f"at {number}")
    while gate and not Path(gate).exists():
        time.sleep(0.05)
    return "done"


@shared_task(bind=True, queue="default")
def report_often(self: Any, times: int) -> float:
    """Reports so often; returns how long that took."""
    began = time.monotonic()
    for number in range(times):
        self.progress(number, times, f"at {number}")
        # Much sooner than a report may be written.
        time.sleep(0.02)
    return time.monotonic() - began


@shared_task(bind=True, queue="default")
def report_and_lose_the_connection(self: Any) -> None:
    for percent in (10, 20):
        self.progress(percent, 100, f"at {percent}")
    with suppress(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    raise Permanent("it failed")


@shared_task(bind=True, queue="default")
def talk_and_fail(self: Any) -> None:
    for percent in (10, 20, 30):
        self.progress(percent, 100, f"at {percent}")
    logging.getLogger("somebody.elses").error("nothing \0 works")
    raise Permanent("it failed")


@shared_task(queue="default")
def log_what_cannot_be_formatted() -> str:
    logger = logging.getLogger("somebody.elses")
    logger.info("%d items", "many")
    logger.info("after it")
    return "done"


@shared_task(bind=True, queue="default")
def enqueue_child(self: Any, depth: int) -> str:
    logging.getLogger("somebody.elses").info("depth %d", depth)
    if depth:
        enqueue_child.delay(depth - 1)
    return str(self.request.correlation_id)


@shared_task(queue="default")
def be_told_to_wait(path: str, seconds: float) -> str:
    """The other side answers 429 to the first call, and leaves a mark."""
    mark = Path(path)
    if not mark.exists():
        mark.touch()
        raise RateLimited(retry_after_seconds=seconds)
    return "taken"


@shared_task(queue="default", atomic=True, autoretry_for=(Exception,), max_retries=3)
def write_and_be_told_to_wait(path: str) -> str:
    """An effect, then a 429, once."""
    mark = Path(path)
    Group.objects.create(name=f"told to wait {uuid4()}")
    if not mark.exists():
        mark.touch()
        raise RateLimited("429 Too Many Requests", retry_after_seconds=0.5)
    return "taken"
