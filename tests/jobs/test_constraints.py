"""Each invariant of the ledger's tables is held by the database: here somebody tries to break it."""

from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from jobs.models import Job
from tests.jobs.factories import make_job

BROKEN: dict[str, dict[str, Any]] = {
    "job_finished_at_iff_ended": {"state": "completed", "finished_at": None},
    "job_active_has_owner": {"state": "active"},
    "job_priority_0_to_9": {"priority": 10},
    "job_progress_0_to_100": {"progress_percent": 101},
    "job_attempt_within_max": {"attempt": 2, "max_attempts": 1},
    "job_lane_iff_limited": {"rate_key": "tenant:42"},
    "job_rate_limit_has_key": {"rate_limit": "5/s"},
    "job_concurrency_key_has_limit": {"concurrency_key": "user:42", "lane": "its own"},
}


@pytest.mark.django_db
@pytest.mark.parametrize("constraint", BROKEN)
def test_the_database_refuses_what_breaks(constraint: str) -> None:
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        Job.objects.create(**{"task": "t", "queue": "default", "state": "waiting", **BROKEN[constraint]})


@pytest.mark.django_db
def test_the_database_refuses_a_state_that_nobody_knows() -> None:
    with pytest.raises(IntegrityError, match="job_finished_at_iff_ended"), transaction.atomic():
        Job.objects.create(task="t", queue="default", state="lost")


@pytest.mark.django_db
def test_the_database_refuses_a_live_job_with_a_time_of_ending() -> None:
    with pytest.raises(IntegrityError, match="job_finished_at_iff_ended"), transaction.atomic():
        Job.objects.create(task="t", queue="default", state="waiting", finished_at=Now())


@pytest.mark.django_db
def test_the_database_refuses_a_second_live_job_with_a_dedup_key() -> None:
    make_job(dedup_key="key")
    with pytest.raises(IntegrityError, match="job_one_live_per_dedup_key"), transaction.atomic():
        make_job(dedup_key="key", state="delayed")
    make_job(dedup_key="key", state="completed")


@pytest.mark.django_db
def test_every_constraint_is_tried() -> None:
    named = {constraint.name for constraint in Job._meta.constraints}
    assert named == {*BROKEN, "job_one_live_per_dedup_key"}
