"""What a job is given and what it leaves, as JSON: kept as it is, or refused in words."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.models import Job
from jobs.testing import run_due_jobs
from tests import sample_tasks

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


@pytest.mark.parametrize("how", ["state", "retry", "replace"])
@pytest.mark.parametrize("text", ["'\\0'", "'\\ud800'"])
def test_a_body_that_leaves_something_else_that_cannot_be_kept_fails_there(how: str, text: str) -> None:
    result = sample_tasks.leave_evaluated.delay(text, how)
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.task, job.state) == ("tests.sample_tasks.leave_evaluated", "failed")
    assert "in leave_evaluated" in job.traceback
