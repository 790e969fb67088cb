"""Log lines and progress of running jobs: kept with the job, in time, and never in its way."""

import logging
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from jobs.models import Job, LogLine
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until


def lines_of(result: Any) -> list[str]:
    return list(LogLine.objects.filter(job_id=result.id).values_list("message", flat=True))


@pytest.mark.django_db
def test_what_is_logged_in_a_run_is_kept_with_its_job() -> None:
    logging.getLogger("somebody.elses").warning("outside of any job")
    result = sample_tasks.talk.delay(3)
    run_due_jobs()
    logging.getLogger("somebody.elses").warning("after it")
    assert lines_of(result) == [f"line {number} of {result.id}" for number in range(3)]
    line = LogLine.objects.filter(job_id=result.id)[0]
    assert (line.level, line.logger, line.attempt) == (logging.INFO, "somebody.elses", 1)
    assert LogLine.objects.count() == 3


@pytest.mark.django_db
def test_lines_of_a_run_are_bounded_in_number_and_in_bytes(settings: Any) -> None:
    settings.JOBS_LOG_LINES = 2
    result = sample_tasks.talk.delay(5)
    run_due_jobs()
    end = "What this run has logged from here on is not kept."
    assert lines_of(result) == [f"line 0 of {result.id}", f"line 1 of {result.id}", end]
    settings.JOBS_LOG_LINES, settings.JOBS_LOG_BYTES = 1000, 100
    second = sample_tasks.talk.delay(5)
    run_due_jobs()
    assert lines_of(second) == [f"line 0 of {second.id}", f"line 1 of {second.id}", end]


@pytest.mark.django_db
def test_the_last_progress_is_kept_also_of_a_run_that_fails_and_lines_that_postgresql_could_not_keep_are_mended() -> (
    None
):
    result = sample_tasks.talk_and_fail.delay()
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.state, job.progress_percent, job.progress_message) == ("failed", 30, "at 30")
    assert lines_of(result) == ["nothing \\x00 works"]


@pytest.mark.django_db
def test_lines_go_with_their_job() -> None:
    result = sample_tasks.talk.delay(3)
    run_due_jobs()
    Job.objects.filter(pk=result.id).delete()
    assert not LogLine.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_lines_and_the_last_progress_are_there_while_the_job_runs(
    processes: Processes, tmp_path: Path, pool: str
) -> None:
    processes.worker("default", pool=pool, env={"PGAPPNAME": "noted"})
    result = sample_tasks.talk.delay(50, str(tmp_path / "gate"))
    wait_until(lambda: len(lines_of(result)) == 50)
    wait_until(lambda: Job.objects.get(pk=result.id).progress_message == "at 49")
    assert Job.objects.get(pk=result.id).state == "active"
    (tmp_path / "gate").touch()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    assert Job.objects.get(pk=result.id).progress_percent == 100
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_line_that_cannot_be_formatted_fails_no_job(processes: Processes) -> None:
    worker = processes.worker("default")
    result = sample_tasks.log_what_cannot_be_formatted.delay()
    wait_until(lambda: Job.objects.get(pk=result.id).finished_at is not None)
    assert result.state == "SUCCESS"
    wait_until(lambda: lines_of(result) == ["after it"])
    assert "--- Logging error ---" in worker.output


@pytest.mark.django_db(transaction=True)
def test_a_job_does_not_wait_for_its_lines(processes: Processes) -> None:
    result = sample_tasks.talk.delay(50)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE jobs_logline IN ACCESS EXCLUSIVE MODE")
        processes.worker("default")
        wait_until(lambda: result.state == "SUCCESS")
    wait_until(lambda: len(lines_of(result)) == 50)
