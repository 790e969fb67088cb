"""The looks for delayed jobs that are due and for jobs that expired, beside old snapshots too."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from jobs import below, claims
from jobs.dispatcher import due
from jobs.dispatcher.due import Due
from jobs.models import Job
from tests.jobs.connections import another_connection
from tests.jobs.factories import make_job, state_of
from tests.jobs.plans import pages_read
from tests.waiting import wait_until

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


def act(looks: Due) -> None:
    """One round of the thread that makes jobs due."""
    seconds = looks.seconds_to_next()
    if seconds is not None and seconds <= 0:
        looks.run_once()


def pages_of_a_look(looks: Due) -> int:
    due_since, expired_since = looks._floors.values()
    return pages_read(claims.NEXT_DUE, {"due_since": due_since, "expired_since": expired_since, "seconds": 0.4})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "fields",
    [
        {"state": "delayed", "run_at": Now() - MINUTE},
        {"state": "waiting", "expires_at": Now() - MINUTE},
        # Both have left the index long before their time.
        {"state": "delayed", "run_at": Now() + MINUTE, "expires_at": Now() - MINUTE},
        {"state": "delayed", "run_at": Now() - MINUTE, "expires_at": Now() + MINUTE},
    ],
    ids=["due", "expired", "expired before it was due", "run before it expired"],
)
def test_what_died_beside_an_old_snapshot_costs_a_look_nothing(fields: dict[str, Any], settings: Any) -> None:
    looks = Due()
    act(looks)
    before = pages_of_a_look(looks)
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM jobs_job")
        for _ in range(4):
            Job.objects.bulk_create([Job(task="t", queue="default", **fields) for _ in range(500)])
            # No longer delayed or to expire, all at once.
            due.run_once()
            Job.objects.filter(state="waiting").update(state="cancelled", finished_at=Now())
        assert not Job.objects.filter(state__in=["waiting", "delayed"]).exists()
        looks.seconds_to_next()
        assert pages_of_a_look(looks) <= before + 10
        other.commit()


def slow() -> Due:
    """As after a slow look that has found nothing."""
    looks = Due()
    act(looks)
    looks.is_slow = True
    return looks


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fields", [{"run_at": Now() - MINUTE}, {"run_at": Now() + MINUTE, "expires_at": Now() - MINUTE}]
)
def test_once_looks_are_slow_what_was_committed_late_is_found_by_the_walk_below(fields: dict[str, Any]) -> None:
    looks = slow()
    late, prompt = make_job(state="delayed", **fields), make_job(state="delayed", run_at=Now() - SECOND)
    looks._walk._at = float("inf")
    act(looks)
    assert (state_of(late.pk), state_of(prompt.pk)) == ("delayed", "waiting")
    for _ in range(20):
        looks._walk._at = 0.0
        act(looks)
    assert state_of(late.pk) in {"waiting", "cancelled"}


@pytest.mark.django_db
def test_what_somebody_has_locked_is_found_by_the_looks_that_follow() -> None:
    looks = Due()
    make_job(state="delayed", run_at=Now() - MINUTE)
    looks.seconds_to_next()
    looks.is_slow = True
    # As if it had been locked: seen and not moved.
    for _ in range(3):
        looks._walk._at = float("inf")
        seconds = looks.seconds_to_next()
        assert seconds is not None
        assert seconds < -50


@pytest.mark.django_db
def test_where_nothing_is_left_to_walk_over_looks_begin_at_the_beginning_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine is.
    monkeypatch.setattr(below, "_NOISE_SECONDS", 3600)
    monkeypatch.setattr(due, "SLOW_SECONDS", 3600)
    looks = slow()

    def is_over() -> bool:
        looks._walk._at = 0.0
        looks.seconds_to_next()
        return not looks.is_slow

    wait_until(is_over)


@pytest.mark.django_db
def test_a_job_that_expired_long_ago_is_cancelled() -> None:
    job = make_job(expires_at=datetime(1815, 12, 10, tzinfo=UTC))
    act(Due())
    assert state_of(job.pk) == "cancelled"


@pytest.mark.django_db
def test_a_job_that_expired_at_the_beginning_of_time_and_cannot_be_cancelled_yet_stops_no_walk() -> None:
    make_job(expires_at=datetime(1, 1, 1, 0, 0, 5, tzinfo=UTC))
    looks = Due()
    looks.seconds_to_next()
    looks.is_slow = True
    for _ in range(3):
        looks._walk._at = 0.0
        seconds = looks.seconds_to_next()
        assert seconds is not None
        assert seconds < 0


@pytest.mark.django_db
def test_what_is_due_after_the_next_look_is_left_to_it(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine is.
    monkeypatch.setattr(due, "SLOW_SECONDS", 3600)
    settings.JOBS_DISPATCH_SECONDS = 0.4
    make_job(state="delayed", run_at=Now() + SECOND)
    looks = Due()
    assert looks.seconds_to_next() is None
    make_job(state="delayed", run_at=Now() + SECOND / 4)
    seconds = looks.seconds_to_next()
    assert seconds is not None
    assert 0 < seconds < 0.3
