"""What a job is given and what it leaves, as JSON: kept as it is, or refused in words."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import group

from jobs.models import Job
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.jobs.factories import state_of

pytestmark = pytest.mark.django_db

# As Celery marks dates, decimals and UUIDs, but with nothing that it could make of them.
LOOKALIKES: list[Any] = [
    {"__type__": "x", "__value__": 1},
    {"__type__": ["x"], "__value__": 1},
    {"__type__": "uuid", "__value__": "no"},
    {"__type__": "decimal", "__value__": "no"},
    {"__type__": "bytes", "__value__": 1},
    {"__type__": "datetime", "__value__": [{"__type__": "x", "__value__": 1}]},
]


@pytest.fixture(autouse=True)
def _no_log_in_the_report() -> Iterator[None]:
    """Half a character that Celery logs could not travel in the report of a test, which is UTF-8."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("value", [*LOOKALIKES, "a path: C:\\u0000\\ud800", "\N{PILE OF POO}"])
def test_what_only_looks_like_something_special_is_kept_as_it_is(value: Any) -> None:
    result = sample_tasks.echo.delay(value)
    run_due_jobs()
    assert Job.objects.get(pk=result.id).args == [value]
    assert result.get() == value


def test_an_error_that_holds_a_lookalike_is_kept() -> None:
    result = sample_tasks.raise_error.delay(LOOKALIKES[0])
    run_due_jobs()
    assert Job.objects.get(pk=result.id).error == f"ValueError: {LOOKALIKES[0]}"


@pytest.mark.parametrize("text", ["'\\0'", "'\\ud800'", "{'\\udcff': 1}", "float('nan')", "object()"])
@pytest.mark.parametrize("task", [sample_tasks.evaluate, sample_tasks.evaluate_atomically])
def test_a_result_that_cannot_be_kept_fails_its_job(task: Any, text: str) -> None:
    result = task.delay(text)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.state, job.result) == ("failed", None)
    assert job.error.startswith("NotKept: ")


@pytest.mark.parametrize("text", ["'\\0'", "'\\ud800'", "float('nan')"])
def test_an_error_that_postgresql_cannot_keep_is_mended(text: str) -> None:
    result = sample_tasks.raise_evaluated.delay(text)
    run_due_jobs()
    assert Job.objects.get(pk=result.id).error.startswith("ValueError: ")


@pytest.mark.parametrize("text", ["'\\0'", "'\\ud800'"])
def test_a_state_that_cannot_be_kept_as_it_is_is_worth_no_job(text: str) -> None:
    result = sample_tasks.leave_evaluated.delay(text, "state")
    run_due_jobs()
    assert Job.objects.get(pk=result.id).state == "completed"


@pytest.mark.parametrize("how", ["retry", "replace"])
@pytest.mark.parametrize("text", ["'\\0'", "'\\ud800'"])
def test_a_body_that_leaves_something_else_that_cannot_be_kept_fails_there(how: str, text: str) -> None:
    result = sample_tasks.leave_evaluated.delay(text, how)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.task, job.state) == ("tests.sample_tasks.leave_evaluated", "failed")
    assert "in leave_evaluated" in job.traceback


@pytest.mark.parametrize("task", [sample_tasks.evaluate, sample_tasks.evaluate_atomically])
def test_a_result_that_is_too_large_fails_its_job(task: Any) -> None:
    small, large = task.delay("'x' * (2**20 - 2)"), task.delay("'x' * (2**20 - 1)")
    run_due_jobs()
    assert state_of(small.id) == "completed"
    job = Job.objects.get(pk=large.id)
    assert (job.state, job.result) == ("failed", None)
    assert "1,048,577 bytes, more than 1,048,576" in job.error


def test_results_that_are_put_together_are_as_large_as_they_are() -> None:
    result = group(sample_tasks.evaluate.s("'x' * 700_000") for _ in range(2)) | sample_tasks.count_items.s()
    counted = result.apply_async()
    run_due_jobs()
    assert counted.get() == 2


def test_a_long_error_is_cut_in_the_middle() -> None:
    result = sample_tasks.raise_evaluated.delay("'begin' + 'ä' * 2_000_000 + 'end'")
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert job.state == "failed"
    assert job.error.startswith("ValueError: begin")
    assert "bytes left out" in job.error
    assert job.error.endswith("end")
    assert len(job.error.encode()) <= 8192
    assert len(str(job.exception).encode()) <= 9000
    assert len(job.traceback.encode()) <= 65536


def test_an_error_with_deep_arguments_is_kept() -> None:
    result = sample_tasks.raise_evaluated.delay(
        "__import__('functools').reduce(lambda value, _: [value], range(600), 1)"
    )
    run_due_jobs()
    assert state_of(result.id) == "failed"


@pytest.mark.parametrize("delay", ["10**12", "float('inf')", "float('nan')", "'soon'"])
def test_a_retry_after_a_time_that_is_none_fails_its_job_in_words(delay: str) -> None:
    result = sample_tasks.retry_evaluated.delay(delay)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert job.state == "failed"
    assert "countdown=" in job.error


def test_words_of_progress_and_states_that_postgresql_cannot_keep_are_mended() -> None:
    result = sample_tasks.report_evaluated.delay("'a\\0b\\ud800' * 100")
    run_due_jobs()
    assert state_of(result.id) == "completed"
