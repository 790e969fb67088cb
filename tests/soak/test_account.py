"""The account of a storm must not be kind: what was lost or doubled is told."""

from collections import Counter
from datetime import timedelta

import pytest
from django.contrib.auth.models import Group
from django.utils import timezone

from jobs.models import Attempt, Tick
from tests.jobs.cron.schedules import make_schedule
from tests.jobs.factories import make_job
from tests.soak.account import Account, Death

pytestmark = pytest.mark.django_db


def account(*names: str, deaths: list[Death] | None = None) -> Account:
    for name in names:
        Group.objects.create(name=name)
    return Account.of(deaths or [], Counter())


def test_one_effect_for_each_wish_is_nothing_to_complain_of() -> None:
    found = account("wish whole a", "effect whole a 1", "wish fenced b", "effect fenced b 1", "effect fenced b 2")
    assert (found.lost, found.doubled, found.complaints) == (0, 0, [])


def test_an_effect_that_never_came_is_lost() -> None:
    found = account("wish whole a")
    assert (found.lost, found.complaints) == (1, ["Lost: whole a"])


def test_a_job_that_did_not_complete_is_lost() -> None:
    make_job(state="waiting")
    assert account().lost == 1


def test_an_effect_that_came_twice_is_doubled() -> None:
    found = account("wish whole a", "effect whole a 1", "effect whole a 2")
    assert (found.doubled, found.complaints) == (1, ["Doubled: whole a"])


def test_an_effect_of_a_transaction_that_was_rolled_back_is_told() -> None:
    assert account("effect undone a 1").doubled == 1


def test_what_was_seen_during_the_storm_is_told() -> None:
    assert Account.of([], Counter(), complaints=["redis killed: nothing moved"]).complaints == [
        "redis killed: nothing moved"
    ]


def test_ticks_that_are_missing_skipped_or_doubled_are_told() -> None:
    schedule = make_schedule()
    begin = timezone.now().replace(microsecond=0)
    moments = [begin + timedelta(seconds=number) for number in (0, 1, 3)]
    for moment in moments:
        Tick.objects.create(schedule=schedule, scheduled_for=moment, outcome="skipped")
        make_job(state="completed", progress_percent=100, headers={"scheduled_for": moment.isoformat()})
    make_job(state="completed", progress_percent=100, headers={"scheduled_for": begin.isoformat()})
    told = [complaint for complaint in account().complaints if complaint.startswith("Ticks: ")]
    assert len(told) == 5
    assert sum("is not enqueued" in complaint for complaint in told) == 3
    assert sum("none between" in complaint for complaint in told) == 1
    assert f"Ticks: 2 jobs for {begin.isoformat()}" in told


def test_recovery_is_the_time_from_the_death_to_the_next_run() -> None:
    now = timezone.now()
    job = make_job(state="completed", stalled_count=1, started_at=now + timedelta(seconds=7))
    Attempt.objects.create(
        job=job, number=1, outcome="stalled", started_at=now - timedelta(seconds=1), ended_at=now + timedelta(seconds=6)
    )
    other = make_job(state="completed", started_at=now - timedelta(seconds=1))
    found = account(deaths=[Death(now, [job.pk, other.pk])])
    assert found.recoveries == pytest.approx([7.0])
