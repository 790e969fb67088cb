"""Backlogs that were inserted by one statement are jobs as an enqueue would have left them."""

import pytest
from django.db import connection
from django.db.models.functions import Now

from bench.backlog import LIMITS
from bench.rows import insert_ended, insert_waiting
from jobs.dispatcher.retention import KEPT_AT_LEAST
from jobs.limits import COLUMNS, lane_of
from jobs.models import Job

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("limits", LIMITS)
def test_the_lane_of_each_job_is_that_of_its_limits(limits: str) -> None:
    insert_waiting(connection.connection, 1001, queues=("default", "images"), limited=LIMITS[limits])
    jobs = list(Job.objects.all())
    assert len(jobs) == 1001
    assert {job.lane for job in jobs} == {lane_of({name: getattr(job, name) for name in COLUMNS}) for job in jobs}
    assert len({job.lane for job in jobs}) == LIMITS[limits].key_count
    assert {job.queue for job in jobs} == {"default", "images"}


def test_a_past_lies_within_the_time_in_which_retention_removes_nothing() -> None:
    insert_ended(connection.connection, 50)
    ended = Job.objects.filter(state="completed", finished_at__lte=Now())
    assert ended.count() == 50
    assert not ended.filter(finished_at__lte=Now() - KEPT_AT_LEAST).exists()
