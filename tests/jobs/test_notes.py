"""Log lines and progress of running jobs: kept with the job, in time, and never in its way."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery.app.task import Context
from django.db import connection, connections, transaction
from django.utils import timezone

from jobs import settle
from jobs.errors import LeaseLost
from jobs.models import Job, LogLine
from jobs.testing import run_due_jobs
from jobs.worker import identity
from jobs.worker.notes import own_notes
from jobs.worker.step import LedgerStep
from tests import hostile_tasks, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import claim_job, make_job, make_worker
from tests.processes import Processes
from tests.variants import POOLS
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


@pytest.mark.django_db(transaction=True)
@POOLS
def test_a_report_that_cannot_be_kept_is_worth_no_job_and_no_later_line(processes: Processes, pool: str) -> None:
    processes.worker("default", pool=pool, include=("tests.sample_tasks", "tests.hostile_tasks"))
    odd = hostile_tasks.reports_oddly.delay()
    after = sample_tasks.talk.delay(3)
    wait_until(lambda: len(lines_of(after)) == 3)
    wait_until(lambda: Job.objects.get(pk=odd.id).state == "completed")
    assert lines_of(odd) == [f"of a {where} logger" for where in ("first", "second")]
    assert Job.objects.get(pk=odd.id).result == "done"
    assert_ledger_consistent()


@pytest.mark.django_db
def test_lines_go_with_their_job() -> None:
    result = sample_tasks.talk.delay(3)
    run_due_jobs()
    Job.objects.filter(pk=result.id).delete()
    assert not LogLine.objects.exists()


@pytest.mark.django_db(transaction=True)
@POOLS
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


def flush_elsewhere() -> None:
    try:
        own_notes().flush()
    finally:
        connections.close_all()


def is_anybody_waiting_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        return bool(cursor.fetchone()[0])


@pytest.fixture
def count_progress_writes(transactional_db: None) -> Iterator[Callable[[], int]]:
    """Counts writes of progress in the database itself."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE SEQUENCE progress_writes;"
            "CREATE FUNCTION count_progress_write() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM nextval('progress_writes'); RETURN NEW; END $$;"
            "CREATE TRIGGER count_progress_write BEFORE UPDATE ON jobs_job FOR EACH ROW"
            " WHEN (NEW.progress_message IS DISTINCT FROM OLD.progress_message)"
            " EXECUTE FUNCTION count_progress_write();"
        )

    def count() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT last_value FROM progress_writes")
            return int(cursor.fetchone()[0])

    yield count
    with connection.cursor() as cursor:
        cursor.execute(
            "DROP TRIGGER count_progress_write ON jobs_job; DROP FUNCTION count_progress_write();"
            "DROP SEQUENCE progress_writes"
        )


def test_progress_is_written_at_most_twice_a_second(
    processes: Processes, count_progress_writes: Callable[[], int]
) -> None:
    processes.worker("default")
    result = sample_tasks.report_often.delay(150)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=30)
    # The first one comes at once, the last one with the end.
    assert 3 <= count_progress_writes() <= 2 * result.get() + 2
    assert Job.objects.get(pk=result.id).progress_message == "at 149"


@pytest.mark.django_db(transaction=True)
def test_the_last_progress_is_kept_also_where_the_connection_broke_before_the_end() -> None:
    result = sample_tasks.report_and_lose_the_connection.delay()
    run_due_jobs()
    job = Job.objects.get(pk=result.id)
    assert (job.state, job.progress_message) == ("failed", "at 20")


@pytest.mark.django_db(transaction=True)
def test_an_older_progress_that_is_being_written_does_not_overtake_a_newer_one() -> None:
    run = claim_job(make_job(), make_worker())
    request = Context(run=run, reported_at=time.monotonic(), is_lost=False)
    with own_notes().by_caller(), ThreadPoolExecutor(1) as writer:
        assert not own_notes().may_write(request, progress_percent=20)
        with transaction.atomic():
            run.row().select_for_update().get()
            writing = writer.submit(flush_elsewhere)
            wait_until(is_anybody_waiting_for_a_lock)
            request.reported_at = 0.0
            assert not own_notes().may_write(request, progress_percent=30)
        writing.result()
        own_notes().flush()
    assert Job.objects.get(pk=run.job_id).progress_percent == 30


@pytest.mark.django_db
def test_a_run_whose_progress_others_write_is_told_that_it_has_lost_its_job() -> None:
    run = claim_job(make_job(), make_worker())
    request = Context(run=run, reported_at=time.monotonic(), is_lost=False)
    settle.give_back(run)
    with own_notes().by_caller():
        assert not own_notes().may_write(request, progress_percent=20)
        own_notes().flush()
        task = sample_tasks.report_progress
        task.request_stack.push(request)
        with pytest.raises(LeaseLost):
            task.progress(30)
        task.request_stack.pop()


@pytest.mark.django_db
def test_a_worker_that_ends_writes_the_last_lines() -> None:
    worker, job = make_worker(), make_job()
    with identity.assumed(worker.pk), own_notes().by_caller():
        line = LogLine(job=job, attempt=1, at=timezone.now(), level=20, logger="x", message="the last")
        own_notes().say(line)
        LedgerStep(worker).resign()
    assert LogLine.objects.get().message == "the last"


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
