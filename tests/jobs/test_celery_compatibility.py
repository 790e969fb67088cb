"""What Celery's users know, on the ledger, with a real worker."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from celery import chain, shared_task
from celery.exceptions import TaskRevokedError
from django.db.models.functions import Now

from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


INCLUDE = ("tests.sample_tasks", "tests.jobs.test_celery_compatibility")


def end_so(self: Any, how: str) -> str:
    if how == "fails":
        raise ValueError(how)
    if how == "is killed" and Job.objects.get(pk=self.request.id).stalled_count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return how


plain = shared_task(bind=True, queue="default", name="tests.says_nothing")(end_so)
otherwise = shared_task(
    bind=True,
    queue="default",
    name="tests.says_otherwise",
    acks_late=False,
    acks_on_failure_or_timeout=False,
    reject_on_worker_lost=True,
    track_started=True,
    store_errors_even_if_ignored=False,
)(end_so)


def leave_a_mark(self: Any, error: Any, task_id: str, args: Any, kwargs: Any, info: Any) -> None:
    Path(kwargs["mark"]).touch()


@shared_task(bind=True, queue="default", on_failure=leave_a_mark)
def dies_or_fails(self: Any, how: str, *, mark: str) -> None:
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError(how)


def ended(result: Any) -> Job:
    """The job, once it has ended."""
    wait_until(lambda: Job.objects.filter(pk=result.id, finished_at__isnull=False).exists(), timeout=30)
    return Job.objects.get(pk=result.id)


def test_results_states_and_errors_are_celerys(processes: Processes) -> None:
    delayed = sample_tasks.add.apply_async((1, 2), countdown=600)
    assert delayed.state == "PENDING"
    processes.worker("default", concurrency=2)
    done, failed = sample_tasks.add.delay(1, 2), sample_tasks.fail_for_good.delay()
    assert done.get(timeout=30) == 3
    assert (done.state, done.result, done.successful()) == ("SUCCESS", 3, True)
    with pytest.raises(Exception, match="the mailbox does not exist") as error:
        failed.get(timeout=30)
    assert type(error.value).__name__ == "Permanent"
    assert failed.state == "FAILURE"
    assert "fail_for_good" in failed.traceback
    Job.objects.filter(pk=delayed.id).update(state="cancelled", finished_at="2026-01-01T00:00Z", error="enough")
    with pytest.raises(TaskRevokedError, match="enough"):
        delayed.get(timeout=30)


def test_what_a_body_may_raise_ends_its_job(processes: Processes) -> None:
    processes.worker("default", concurrency=2)
    ignored, rejected = sample_tasks.ignore.delay(), sample_tasks.reject.delay(False)
    requeued, replaced = sample_tasks.reject.delay(True), sample_tasks.become_a_sum.delay(1, 2)
    grouped, hungry = sample_tasks.become_a_group.delay(), sample_tasks.run_out_of_memory.delay()
    assert ended(ignored).state == "completed"
    assert (ended(rejected).state, ended(rejected).error) == ("failed", "Rejected: not mine")
    assert (ended(requeued).state, ended(requeued).attempt) == ("failed", 3)
    assert (ended(replaced).result, ended(replaced).task) == (3, sample_tasks.add.name)
    assert ended(grouped).result == [3, 7]
    assert ended(hungry).error == "RuntimeError: Out of memory: no more"
    assert processes.started[0].status is None
    assert_ledger_consistent()


def test_a_task_that_declares_no_retries_fails_at_once_whatever_its_queue_allows(processes: Processes) -> None:
    processes.worker("default")
    job = ended(sample_tasks.fail_unexpectedly.delay())
    assert (job.state, job.attempt, job.max_attempts) == ("failed", 1, 3)
    assert job.error == "ValueError: nobody expected this"


def test_an_error_that_postgresql_could_not_keep_is_kept_escaped(processes: Processes) -> None:
    processes.worker("default")
    job = ended(sample_tasks.fail_with_a_nul.delay())
    assert (job.state, job.stalled_count) == ("failed", 0)
    assert job.error == "ValueError: the other side said: \\x00 \\udcff"


def test_a_report_that_would_wait_for_its_own_transaction_is_dropped(processes: Processes) -> None:
    processes.worker("default", pool="threads")
    assert ended(sample_tasks.report_after_a_nested_fence.delay()).state == "completed"


def test_each_start_end_retry_and_failure_is_one_line_in_the_log(processes: Processes) -> None:
    worker = processes.worker("default")
    again, failed = ended(sample_tasks.fail_until.delay(2)), ended(sample_tasks.fail_for_good.delay())
    task = "task=tests.sample_tasks.fail_until queue=default"
    expected = [
        rf"INFO jobs.run: started id={again.pk} {task} attempt=1/3 ms=\d+$",
        rf"WARNING jobs.run: retried id={again.pk} {task} attempt=1/3 ms=\d+ in=1 error=Flaky: not yet: run 1$",
        rf"INFO jobs.run: started id={again.pk} {task} attempt=2/3 ms=\d+$",
        rf"INFO jobs.run: completed id={again.pk} {task} attempt=2/3 ms=\d+$",
        rf"WARNING jobs.run: failed id={failed.pk} .* attempt=1/3 ms=\d+ error=the mailbox does not exist$",
    ]
    wait_until(lambda: all(re.search(line, worker.output, re.MULTILINE) for line in expected))
    assert len(re.findall(rf"jobs.run: .*{again.pk}", worker.output)) == 4


def test_a_hard_time_limit_fails_the_job_once(processes: Processes) -> None:
    processes.worker("default")
    job = ended(sample_tasks.sleep_through_the_limits.delay())
    assert (job.state, job.error) == ("failed", "It ran longer than its time limit of 2 seconds, and was ended.")
    assert [attempt.outcome for attempt in job.attempts.all()] == ["failed"]
    assert ended(sample_tasks.add.delay(1, 2)).result == 3
    assert_ledger_consistent()


def test_a_task_that_retries_by_itself_is_retried_after_a_hard_time_limit_too(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default")
    job = ended(sample_tasks.wait_for_file_at_first.apply_async((str(tmp_path / "never"),), time_limit=1))
    assert (job.state, job.attempt, job.result) == ("completed", 2, 1)
    assert "longer than its time limit" in job.attempts.get().error
    assert_ledger_consistent()


def test_what_a_task_says_of_its_message_changes_nothing(processes: Processes) -> None:
    worker = processes.worker("default", include=INCLUDE)
    jobs = {}
    for task in (plain, otherwise):
        for how in ("returns", "fails", "is killed"):
            for ignore_result in (False, True):
                job = ended(task.apply_async((how,), ignore_result=ignore_result))
                jobs[task, how, ignore_result] = (job.state, job.attempt, job.stalled_count, job.result, job.error)
    for (_, how, ignore_result), found in jobs.items():
        assert found == jobs[plain, how, ignore_result]
    assert worker.output.count("started id=") == len(jobs) + 4
    assert_ledger_consistent()


def test_the_handler_for_failures_is_not_called_for_a_job_that_was_lost_with_its_process(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default", include=INCLUDE)
    marks = {how: tmp_path / how for how in ("dies", "fails")}
    for how, mark in marks.items():
        assert ended(dies_or_fails.delay(how, mark=str(mark))).state == "failed"
    wait_until(marks["fails"].exists)
    assert not marks["dies"].exists()
    assert_ledger_consistent()


def test_a_chain_passes_results_on_and_its_rest_is_cancelled_when_a_step_fails(processes: Processes) -> None:
    processes.worker("default", concurrency=2)
    whole = chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(10), sample_tasks.add.s(100)).apply_async()
    assert whole.get(timeout=30) == 113
    assert Job.objects.get(pk=whole.id).root_id == Job.objects.get(pk=whole.parent.parent.id).pk
    broken = chain(sample_tasks.add.s(1, 2), sample_tasks.fail_with.s(), sample_tasks.add.s(1)).apply_async()
    job = ended(broken)
    assert (job.state, job.error) == ("cancelled", f"An earlier step of its chain failed: job {broken.parent.id}.")
    assert_ledger_consistent()


def test_revoking_cancels_in_the_ledger_and_forgets_nothing(processes: Processes) -> None:
    delayed = sample_tasks.add.apply_async((1, 2), countdown=600)
    delayed.revoke()
    delayed.revoke()
    assert (delayed.state, Job.objects.get().error) == ("REVOKED", "Revoked.")
    processes.worker("default")
    # An operator wants it after all.
    Job.objects.update(state="waiting", finished_at=None, run_at=Now())
    assert ended(delayed).result == 3


def test_links_and_errbacks_follow(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    processes.worker("default", concurrency=2)
    sample_tasks.add.apply_async((1, 2), link=sample_tasks.append_line.si(str(file), "linked"))
    sample_tasks.fail_for_good.apply_async(link_error=sample_tasks.append_line.si(str(file), "errback"))
    wait_until(lambda: file.exists() and file.read_text().count("end ") == 2)
    assert "end linked" in file.read_text()
    assert "end errback" in file.read_text()


def test_a_task_that_ignores_its_result_ends_and_keeps_none(processes: Processes) -> None:
    processes.worker("default")
    job = ended(sample_tasks.ignore_result.delay())
    assert (job.state, job.result) == ("completed", None)


def test_a_custom_state_is_seen_while_the_job_runs(processes: Processes, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    processes.worker("default")
    result = sample_tasks.custom_state.delay(str(gate))
    wait_until(lambda: result.state == "COUNTING")
    assert result.info == {"counted": 3}
    gate.touch()
    assert ended(result).state == "completed"
    assert result.state == "SUCCESS"
