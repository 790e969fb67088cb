"""`jobs.testing`, used as projects use it: in Django's TestCase, without a worker."""

from datetime import timedelta
from typing import Any

import pytest
from celery import chain, shared_task
from django.contrib.auth.models import Group
from django.db import IntegrityError, transaction
from django.test import TestCase, TransactionTestCase

from jobs.app import UnknownTask
from jobs.errors import Permanent
from jobs.models import Job, QueueControl, Worker
from jobs.testing import EndlessJobs, assert_enqueued, assert_not_enqueued, run_due_jobs
from jobs.worker import identity
from tests import sample_tasks

HOUR = timedelta(hours=1)
SEEN: list[str] = []


@shared_task(queue="default")
def group_users(name: str, *, size: int = 3, tags: Any = ()) -> str:
    Group.objects.create(name=name)
    transaction.on_commit(lambda: SEEN.append(name))
    sample_tasks.add.delay(size, 1)
    return name


@shared_task(queue="default", autoretry_for=(IntegrityError,), retry_backoff=4, max_retries=2)
def make_the_same_group() -> None:
    Group.objects.create(name="the same")


@shared_task(queue="default")
def swallow_a_failed_query() -> str:
    try:
        Group.objects.create(name="the same")
    except IntegrityError:
        return "swallowed"
    return "made"


@shared_task(bind=True, queue="default", atomic=True)
def write_report_and_fail(self: Any) -> None:
    Group.objects.create(name="rolled back")
    self.progress(40, 100, "nearly")
    raise Permanent("no")


@shared_task(queue="default")
def enqueue_itself() -> None:
    enqueue_itself.delay()


class EnqueuedTests(TestCase):
    def test_arguments_are_compared_by_name_however_they_were_passed(self) -> None:
        group_users.delay("ada", tags=("a", "b"))
        newest = group_users.apply_async(kwargs={"name": "ada", "size": 4})
        assert str(assert_enqueued(group_users, name="ada").pk) == newest.id
        assert assert_enqueued(group_users, size=3, tags=("a", "b")).args == ["ada"]
        assert_enqueued("tests.jobs.test_testing.group_users")
        sample_tasks.report_progress.delay()
        assert_enqueued(sample_tasks.report_progress)

    def test_a_failure_lists_what_was_enqueued(self) -> None:
        with pytest.raises(AssertionError, match=r"add\(x=1\) was enqueued\. Nothing was enqueued at all"):
            assert_enqueued(sample_tasks.add, x=1)
        sample_tasks.add.apply_async((1,), {"y": 2}, countdown=60)
        with pytest.raises(AssertionError) as failure:
            assert_enqueued(sample_tasks.add, x=1, y=3)
        assert "No job of tests.sample_tasks.add(x=1, y=3) was enqueued." in str(failure.value)
        assert "  tests.sample_tasks.add(1, y=2), delayed in default" in str(failure.value)

    def test_that_nothing_was_enqueued_is_asserted_too(self) -> None:
        assert_not_enqueued(sample_tasks.add)
        sample_tasks.add.delay(1, 2)
        assert_not_enqueued(sample_tasks.add, x=2)
        with pytest.raises(AssertionError, match=r"A job of tests\.sample_tasks\.add\(x=1\) was enqueued"):
            assert_not_enqueued(sample_tasks.add, x=1)

    def test_a_mistake_in_the_test_itself_is_no_silent_success(self) -> None:
        with pytest.raises(TypeError, match="add has no argument z: it is called as"):
            assert_not_enqueued(sample_tasks.add, z=1)
        with pytest.raises(UnknownTask, match="There is no task"):
            assert_not_enqueued("tests.gone")


class RunTests(TestCase):
    def test_jobs_and_those_that_they_enqueue_run_by_priority_and_age(self) -> None:
        SEEN.clear()
        group_users.delay("ada")
        sample_tasks.add.apply_async((5, 5), priority=9)
        sample_tasks.add.apply_async((7, 7), priority=0)
        ran = run_due_jobs()
        assert [(job.state, job.result) for job in ran] == [
            ("completed", 14),
            ("completed", "ada"),
            ("completed", 4),
            ("completed", 10),
        ]
        assert Group.objects.get().name == "ada"
        assert SEEN == ["ada"]
        assert run_due_jobs() == []

    def test_an_error_of_a_task_is_in_its_job_and_not_raised(self) -> None:
        sample_tasks.fail_with.delay(7)
        (job,) = run_due_jobs()
        assert (job.state, job.error) == ("failed", "cannot go on with 7")
        assert "fail_with" in job.traceback
        assert job.attempts.get().outcome == "failed"

    def test_what_is_not_due_stays_and_with_time_ahead_it_runs_in_the_order_of_time(self) -> None:
        for minutes in (50, 10, 90):
            sample_tasks.add.apply_async((minutes, 0), countdown=60 * minutes)
        sample_tasks.add.delay(0, 0)
        assert [job.result for job in run_due_jobs()] == [0]
        assert [job.result for job in run_due_jobs(ahead=HOUR)] == [10, 50]
        assert Job.objects.filter(state="delayed").count() == 1

    def test_retries_are_runs_of_their_own_once_their_time_has_come(self) -> None:
        sample_tasks.fail_until.delay(3)
        (first,) = run_due_jobs()
        assert (first.state, first.attempt, first.error) == ("delayed", 2, "Flaky: not yet: run 1")
        assert [(job.state, job.attempt) for job in run_due_jobs(ahead=HOUR)] == [("delayed", 3), ("completed", 3)]

    def test_what_expires_before_its_time_comes_is_cancelled(self) -> None:
        expired = sample_tasks.add.apply_async((1, 1), countdown=60, expires=30)
        sample_tasks.add.apply_async((2, 2), countdown=60, expires=90)
        assert [job.result for job in run_due_jobs(ahead=HOUR)] == [4]
        assert Job.objects.get(pk=expired.id).state == "cancelled"

    def test_a_chain_a_link_and_an_errback_run_to_their_end(self) -> None:
        whole = chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(10)).apply_async()
        sample_tasks.fail_for_good.apply_async(link_error=sample_tasks.remember_failed_id.s())
        assert [job.state for job in run_due_jobs()] == ["completed", "failed", "completed", "completed"]
        assert whole.get(timeout=1) == 13

    def test_a_failed_query_in_a_body_breaks_neither_the_end_nor_the_test(self) -> None:
        Group.objects.create(name="the same")
        make_the_same_group.delay()
        ran = run_due_jobs(ahead=HOUR)
        assert [job.state for job in ran] == ["delayed", "delayed", "failed"]
        assert ran[-1].error.startswith("IntegrityError")
        swallow_a_failed_query.delay()
        assert [job.result for job in run_due_jobs()] == ["swallowed"]
        assert Group.objects.count() == 1

    def test_an_atomic_task_and_its_progress(self) -> None:
        write_report_and_fail.delay()
        (job,) = run_due_jobs()
        assert (job.state, job.error) == ("failed", "no")
        assert not Group.objects.exists()
        sample_tasks.report_progress.delay()
        (job,) = run_due_jobs()
        assert (job.state, job.result, job.progress_message) == ("completed", "done", "half way")

    def test_jobs_without_end_end_the_test(self) -> None:
        enqueue_itself.delay()
        with pytest.raises(EndlessJobs, match=r"More than 7 runs, and tests\.jobs\.test_testing\.enqueue_itself"):
            run_due_jobs(at_most=7)

    def test_a_paused_queue_stays_paused(self) -> None:
        QueueControl.objects.create(name="default", paused_at="2026-01-01T00:00Z")
        sample_tasks.add.delay(1, 2)
        assert run_due_jobs(ahead=HOUR) == []

    def test_nothing_of_the_worker_is_left(self) -> None:
        sample_tasks.add.delay(1, 2)
        before = dict(vars(sample_tasks.add))
        run_due_jobs()
        assert not Worker.objects.exists()
        assert dict(vars(sample_tasks.add)) == before
        with pytest.raises(identity.NotAWorker):
            identity.incarnation()


class CommittingTests(TransactionTestCase):
    def test_it_works_outside_of_a_transaction_too(self) -> None:
        SEEN.clear()
        group_users.delay("ada")
        assert [job.state for job in run_due_jobs()] == ["completed", "completed"]
        assert SEEN == ["ada"]
        sample_tasks.report_progress.delay()
        assert [job.progress_message for job in run_due_jobs()] == ["half way"]
