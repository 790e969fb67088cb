"""What `jobs.limits.obstacle` says of a waiting job: which limit, until when, or who runs instead."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now

from jobs import claims, settle
from jobs.limits import Obstacle, obstacle
from jobs.models import Job, QueueControl
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.jobs.factories import claim_job, make_job, make_worker

pytestmark = pytest.mark.django_db


def told(found: Obstacle | None) -> Obstacle:
    assert found is not None
    return found


def test_nothing_is_in_the_way_of_a_job_that_may_start() -> None:
    assert obstacle(make_job()) is None
    assert (
        obstacle(make_job(queue="email", rate_key="t", rate_limit="1/h", concurrency_key="u", concurrency_limit=1))
        is None
    )


def test_an_exhausted_rate_says_until_when() -> None:
    fields = {"rate_key": "t", "rate_limit": "1/h"}
    claim_job(make_job(**fields), make_worker())
    found = told(obstacle(make_job(**fields)))
    assert found.text == "Rate key t has had its 1/h starts."
    assert found.until is not None
    assert timedelta(minutes=59) < found.until - claims.now() <= timedelta(hours=1)


def test_a_full_key_and_a_full_queue_say_who_runs() -> None:
    worker, fields = make_worker(), {"concurrency_key": "u", "concurrency_limit": 1}
    run = claim_job(make_job(**fields), worker)
    assert told(obstacle(make_job(**fields))) == Obstacle(text="At most 1 of key u run at once.", job_ids=(run.job_id,))
    QueueControl.objects.create(name="default", concurrency_limit=1)
    assert told(obstacle(make_job())) == Obstacle(text="At most 1 of queue default run at once.", job_ids=(run.job_id,))


def test_a_pause_and_quiet_hours_say_until_when_and_the_longest_counts() -> None:
    hour, now = timedelta(hours=1), claims.now()
    settle.rate_limit(claim_job(make_job(rate_key="host"), make_worker()), seconds=60)
    job = make_job(rate_key="host")
    assert told(obstacle(job)).text == "The other side of rate key host takes no more calls for now."
    QueueControl.objects.create(name="default", rate_limited_until=Now() + timedelta(minutes=5))
    assert told(obstacle(job)).text == "The other side of queue default takes no more calls for now."
    QueueControl.objects.update(quiet_hours=f"{now - hour:%H:%M}-{now + hour:%H:%M} UTC")
    assert told(obstacle(job)).text == "It is in its quiet hours."


def test_in_a_test_neither_rates_nor_quiet_hours_make_a_job_wait_but_a_429_does() -> None:
    hour, now = timedelta(hours=1), claims.now()
    for _ in range(15):
        quiet = f"{now - hour:%H:%M}-{now + hour:%H:%M} UTC"
        sample_tasks.add.apply_async((1, 2), queue="email", rate_limit="1/h", quiet_hours=quiet)
    assert [job.state for job in run_due_jobs()] == ["completed"] * 15
    QueueControl.objects.create(name="email", rate_limited_until=Now() + hour)
    sample_tasks.add.apply_async((1, 2), queue="email")
    assert run_due_jobs() == []


def test_the_latest_call_with_a_dedup_key_brings_its_limits() -> None:
    options = {"dedup_key": "k", "dedup_latest": True}
    first = sample_tasks.add.apply_async((1, 2), rate_key="old", rate_limit="1/h", **options)
    assert sample_tasks.add.apply_async((1, 2), concurrency_key="new", **options).id == first.id
    job = Job.objects.get()
    assert (job.rate_key, job.rate_limit, job.concurrency_key) == (None, None, "new")
    assert '"new"' in job.lane
