"""Django's task API on the ledger, with the built-in one of Django 6.0 or with its backport."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import django
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from jobs import django_tasks, services
from jobs.django_tasks import ledger_priority
from jobs.models import Job
from jobs.tasks import run_django_task
from jobs.testing import run_due_jobs
from tests import sample_django_tasks, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until

if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django.tasks import TaskResultStatus, default_task_backend, task, task_backends
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
    from django.tasks.signals import task_enqueued, task_finished, task_started
else:
    from django_tasks import TaskResultStatus, default_task_backend, task, task_backends
    from django_tasks.exceptions import InvalidTaskError as InvalidTask
    from django_tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
    from django_tasks.signals import task_enqueued, task_finished, task_started

HOUR = timedelta(hours=1)
SUCCESS = (("enqueued", "READY"), ("started", "RUNNING"), ("finished", "SUCCESSFUL"))


@pytest.fixture
def told() -> Iterator[list[tuple[str, str, str]]]:
    """What the signals say: which, of which task, in which state."""
    seen: list[tuple[str, str, str]] = []
    receivers = []
    for name, signal in (("enqueued", task_enqueued), ("started", task_started), ("finished", task_finished)):

        def receive(task_result: Any, sender: Any, name: str = name, **_: Any) -> None:
            assert sender is django_tasks.LedgerTaskBackend
            seen.append((name, task_result.task.name, task_result.status))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield seen
    for signal, receive in receivers:
        signal.disconnect(receive)


def status_of(result: Any) -> str:
    result.refresh()
    return str(result.status)


# -- Enqueueing --------------------------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_a_call_is_a_job_with_what_the_task_says() -> None:
    result = sample_django_tasks.add.enqueue(1, y=2)
    assert (result.status, result.args, result.kwargs) == (TaskResultStatus.READY, [1], {"y": 2})
    assert (result.started_at, result.finished_at, result.attempts, result.errors) == (None, None, 0, [])
    assert abs(timezone.now() - result.enqueued_at) < HOUR
    job = Job.objects.get()
    assert (str(job.pk), job.task, job.queue, job.priority) == (result.id, "jobs.tasks.run_django_task", "default", 5)
    assert (job.max_attempts, job.soft_time_limit_seconds, job.time_limit_seconds) == (1, 60, 75)
    assert sample_django_tasks.add.get_result(result.id) == result


@pytest.mark.django_db
def test_using_changes_queue_priority_and_moment_of_one_call() -> None:
    moment = timezone.now() + HOUR
    task = sample_django_tasks.add.using(priority=-100, queue_name="video", run_after=moment)
    result = task.enqueue(1, 2)
    job = Job.objects.get()
    assert (job.queue, job.priority, job.state, job.run_at) == ("video", 9, "delayed", moment)
    assert (job.soft_time_limit_seconds, job.time_limit_seconds) == (1800, 1860)
    assert (result.task, result.status) == (task, TaskResultStatus.READY)
    assert run_due_jobs() == []
    run_due_jobs(ahead=2 * HOUR)
    result.refresh()
    assert (result.task, result.status, result.return_value) == (task, TaskResultStatus.SUCCESSFUL, 3)


@pytest.mark.django_db(transaction=True)
def test_a_call_is_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        result = sample_django_tasks.add.enqueue(1, 2)
        result.refresh()
        transaction.set_rollback(True)
    assert not Job.objects.exists()
    with pytest.raises(TaskResultDoesNotExist):
        result.refresh()


@pytest.mark.django_db(transaction=True)
def test_async_code_awaits_aenqueue_and_is_told_so() -> None:
    async def call() -> Any:
        with pytest.raises(SynchronousOnlyOperation, match=r"await add\.aenqueue"):
            sample_django_tasks.add.enqueue(1, 2)
        result = await sample_django_tasks.add.aenqueue(1, 2)
        await result.arefresh()
        return await sample_django_tasks.add.aget_result(result.id)

    result = async_to_sync(call)()
    assert (str(Job.objects.get().pk), result.status) == (result.id, TaskResultStatus.READY)


@pytest.mark.django_db
@pytest.mark.parametrize("argument", [object(), datetime(2026, 1, 1, tzinfo=UTC), "a\0b", "x" * 300_000])
def test_arguments_that_cannot_be_kept_are_refused_before_anything_is_written(argument: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        sample_django_tasks.echo.enqueue(argument)
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_arguments_and_return_values_become_json_as_django_says() -> None:
    result = sample_django_tasks.echo.enqueue((1, 2), b"bytes", nested={"a": (None,)})
    (job,) = run_due_jobs()
    assert (result.args, result.kwargs) == ([[1, 2], "bytes"], {"nested": {"a": [None]}})
    assert job.result == [[1, 2], "bytes", {"nested": {"a": [None]}}]


@pytest.mark.django_db
def test_what_no_worker_could_run_is_refused() -> None:
    with pytest.raises(InvalidTask, match="nowhere"):
        sample_django_tasks.add.using(queue_name="nowhere")
    with pytest.raises(InvalidTask):
        sample_django_tasks.add.using(priority=101)
    with pytest.raises(InvalidTask):
        task(lambda: None)
    # What is at this path is the function and not the task, so a worker would not know how it is to be called.
    hidden = task(ledger_priority)
    with pytest.raises(InvalidTask, match="is not this task"):
        hidden.enqueue(1)
    assert not Job.objects.exists()


@given(st.integers(-100, 100), st.integers(-100, 100))
def test_a_higher_priority_of_django_is_never_a_later_one_of_the_ledger(one: int, other: int) -> None:
    assert 0 <= ledger_priority(one) <= 9
    if one > other:
        assert ledger_priority(one) <= ledger_priority(other)
    assert (ledger_priority(one) > 5) == (one < 0)
    assert (ledger_priority(one) < 5) == (one > 0)


def test_the_ends_of_one_scale_are_the_ends_of_the_other() -> None:
    assert [ledger_priority(priority) for priority in (100, 0, -100)] == [0, 5, 9]


# -- Running -----------------------------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_a_result_follows_its_job(told: list[Any]) -> None:
    result = sample_django_tasks.tell_attempt.enqueue()
    (job,) = run_due_jobs()
    assert (job.queue, job.priority, job.result) == ("crm", 2, [1, result.id, "RUNNING", 0])
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value
    result.refresh()
    assert (result.status, result.is_finished, result.return_value) == ("SUCCESSFUL", True, job.result)
    assert (result.started_at, result.last_attempted_at) == (job.started_at, job.started_at)
    assert (result.finished_at, result.worker_ids, result.errors) == (job.finished_at, [str(job.worker_id)], [])
    assert told == [(event, "tell_attempt", status) for event, status in SUCCESS]


@pytest.mark.django_db
def test_a_coroutine_is_run() -> None:
    result = sample_django_tasks.add_later.enqueue(1, 2)
    run_due_jobs()
    result.refresh()
    assert [result.status, result.return_value] == ["SUCCESSFUL", 3]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("own", "tests.sample_django_tasks.OutOfPaper"),
        ("builtin", "builtins.ValueError"),
        ("permanent", "jobs.errors.Permanent"),
    ],
)
def test_a_task_that_raises_has_failed_with_that_error(kind: str, path: str, told: list[Any]) -> None:
    result = sample_django_tasks.fail.enqueue(kind)
    (job,) = run_due_jobs()
    result.refresh()
    (error,) = result.errors
    assert (result.status, job.state, job.attempt) == ("FAILED", "failed", 1)
    assert error.exception_class_path == path
    assert issubclass(error.exception_class, Exception)
    assert f"{kind} error" in error.traceback
    assert error.traceback.startswith("Traceback")
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value
    assert told[-1] == ("finished", "fail", "FAILED")


@pytest.mark.django_db
def test_a_return_value_that_is_no_json_is_a_failure() -> None:
    result = sample_django_tasks.return_what_is_no_json.enqueue()
    run_due_jobs()
    result.refresh()
    assert [error.exception_class for error in result.errors] == [TypeError]


@pytest.mark.django_db
def test_a_job_that_is_run_again_keeps_the_errors_of_its_earlier_runs() -> None:
    result = sample_django_tasks.fail.enqueue("own")
    run_due_jobs()
    services.retry_job(job_id=Job.objects.get().pk, actor="somebody")
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == ("READY", 1, 1)
    Job.objects.update(kwargs={**Job.objects.get().kwargs, "args": ["builtin"]})
    run_due_jobs()
    result.refresh()
    assert [error.exception_class for error in result.errors] == [Exception, ValueError]
    assert (result.attempts, result.started_at < result.last_attempted_at) == (2, True)


@pytest.mark.django_db
def test_a_cancelled_job_has_failed_without_a_run() -> None:
    result = sample_django_tasks.add.enqueue(1, 2)
    services.cancel_job(job_id=Job.objects.get().pk, actor="somebody")
    result.refresh()
    (error,) = result.errors
    assert (result.status, result.attempts, error.traceback) == ("FAILED", 0, "Cancelled by somebody.")
    assert error.exception_class.__name__ == "TaskRevokedError"


@pytest.mark.django_db
def test_errors_and_fences_of_the_ledger_mean_in_it_what_they_mean_elsewhere(told: list[Any]) -> None:
    fenced = sample_django_tasks.write_without_the_job.enqueue()
    run_due_jobs()
    assert (status_of(fenced), Group.objects.count()) == ("RUNNING", 0)
    told_to_wait = sample_django_tasks.be_told_to_wait.enqueue()
    run_due_jobs()
    assert (status_of(told_to_wait), told_to_wait.errors) == ("READY", [])
    assert "finished" not in [event for event, *_ in told]


@pytest.mark.django_db
def test_a_result_is_found_by_the_task_and_the_backend_that_it_belongs_to() -> None:
    result = sample_django_tasks.add.enqueue(1, 2)
    assert default_task_backend.get_result(result.id).task == sample_django_tasks.add
    with pytest.raises(TaskResultMismatch):
        sample_django_tasks.echo.get_result(result.id)
    for other in (str(uuid4()), "no id at all", sample_tasks.add.delay(1, 2).id):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(other)


# -- Settings ----------------------------------------------------------------------------------------------------------
def test_without_queues_in_the_settings_all_that_are_declared_may_be_used() -> None:
    assert "video" in task_backends["default"].queues
    backend = django_tasks.LedgerTaskBackend("narrow", {"QUEUES": ["crm"]})
    with pytest.raises(InvalidTask, match="default"):
        backend.validate_task(sample_django_tasks.add)


def test_a_queue_in_the_settings_that_is_not_declared_is_refused_at_start() -> None:
    backend = django_tasks.LedgerTaskBackend("default", {"QUEUES": ["default", "nowhere"]})
    assert [(error.id, "nowhere" in error.msg) for error in backend.check()] == [("jobs.E005", True)]
    assert list(task_backends["default"].check()) == []


def test_the_backend_says_what_it_can() -> None:
    backend = task_backends["default"]
    assert isinstance(backend, django_tasks.LedgerTaskBackend)
    assert (backend.supports_defer, backend.supports_async_task) == (True, True)
    assert (backend.supports_get_result, backend.supports_priority) == (True, True)


# -- With a worker -----------------------------------------------------------------------------------------------------
@pytest.mark.django_db(transaction=True)
@POOLS
def test_a_worker_runs_tasks_of_modules_that_it_was_never_told_of(processes: Processes, pool: str) -> None:
    processes.worker("default", "crm", pool=pool, include=())
    results: list[Any] = [
        sample_django_tasks.add.enqueue(1, 2),
        sample_django_tasks.tell_attempt.enqueue(),
        sample_django_tasks.add_later.enqueue(3, 4),
        sample_django_tasks.database_of_the_run.enqueue(),
    ]
    for result in results:
        wait_until(lambda result=result: status_of(result) == "SUCCESSFUL")  # type: ignore[misc]
    assert [results[0].return_value, results[2].return_value, results[3].return_value] == [3, 7, 1]
    assert results[1].return_value == [1, results[1].id, "RUNNING", 0]
    assert_ledger_consistent()


@pytest.mark.everywhere
@pytest.mark.django_db(transaction=True)
def test_a_task_whose_worker_is_killed_runs_again_elsewhere(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    victim = processes.worker("default", include=())
    result = sample_django_tasks.append_line.enqueue(str(file), 1)
    wait_until(lambda: status_of(result) == "RUNNING" and file.exists() and "begin" in file.read_text())
    victim.kill()
    processes.worker("default", include=())
    wait_until(lambda: status_of(result) == "SUCCESSFUL")
    assert [line.split()[0] for line in file.read_text().splitlines()] == ["begin", "begin", "end"]
    assert (result.attempts, len(set(result.worker_ids))) == (2, 2)
    assert [error.exception_class.__name__ for error in result.errors] == ["WorkerLostError"]
    assert result.started_at < result.last_attempted_at < result.finished_at
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("deaths", "status"), [(1, "SUCCESSFUL"), (9, "FAILED")])
def test_a_task_that_kills_its_process_is_tried_twice(processes: Processes, deaths: int, status: str) -> None:
    worker = processes.worker("default", include=())
    result = sample_django_tasks.die_at_first.enqueue(deaths)
    wait_until(lambda: status_of(result) == status)
    assert (result.attempts, len(result.errors)) == (2, min(deaths, 2))
    # Django's own logger listens to the signal, in whatever process wrote the end.
    path = "tests.sample_django_tasks.die_at_first"
    wait_until(lambda: f"Task id={result.id} path={path} state={status}" in worker.output)
    assert Job.objects.get().task == run_django_task.name
    assert_ledger_consistent()
