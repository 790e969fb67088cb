"""Which of the ticks that have come run."""

from datetime import UTC, datetime, timedelta

import pytest

from jobs.cron.catch_up import Decision, decide
from jobs.models import CatchUp

NOW = datetime(2026, 3, 29, 12, tzinfo=UTC)


def ago(**length: float) -> datetime:
    return NOW - timedelta(**length)


HOURLY = [ago(hours=hours) for hours in range(9, 0, -1)]


def decided(moments: list[datetime], policy: str = "once", *, one_off: bool = False, **limits: int) -> Decision:
    return decide(moments, now=NOW, wishes=CatchUp(policy=policy, **limits), one_off=one_off)


@pytest.mark.parametrize("policy", CatchUp.Policy.values)
def test_what_is_on_time_runs_whatever_the_policy(policy: str) -> None:
    every_ten_seconds = [ago(seconds=30), ago(seconds=20), ago(seconds=10), NOW]
    assert decided(every_ten_seconds, policy) == Decision(dict.fromkeys(every_ten_seconds, ""), {})


def test_by_default_the_last_of_those_that_were_missed_runs() -> None:
    decision = decided(HOURLY)
    assert decision.run == {ago(hours=1): "1 h late"}
    assert list(decision.skip) == HOURLY[:-1]
    assert decision.skip[ago(hours=7)] == "missed, and more than 360 min ago"
    assert decision.skip[ago(hours=6)] == "missed, and a later one runs"


def test_by_default_nothing_runs_that_is_more_than_six_hours_late() -> None:
    assert decided([ago(hours=6)]).run == {ago(hours=6): "6 h late"}
    assert decided([ago(hours=6, seconds=1)]) == Decision(
        {}, {ago(hours=6, seconds=1): "missed, and more than 360 min ago"}
    )


def test_a_tick_on_time_is_the_one_that_makes_up_for_those_before_it() -> None:
    assert decided([ago(hours=1), NOW]) == Decision({NOW: ""}, {ago(hours=1): "missed, and a later one runs"})


def test_skip_runs_none_of_those_that_were_missed() -> None:
    assert decided([ago(hours=1), ago(seconds=31), NOW], "skip") == Decision(
        {NOW: ""}, {ago(hours=1): "missed", ago(seconds=31): "missed"}
    )


def test_all_runs_each_within_its_limits() -> None:
    assert list(decided(HOURLY, "all").run) == HOURLY[3:]
    assert list(decided(HOURLY, "all", within_minutes=120).run) == HOURLY[-2:]
    assert list(decided(HOURLY, "all", most_count=3).run) == HOURLY[-3:]


@pytest.mark.parametrize("policy", CatchUp.Policy.values)
def test_a_schedule_that_runs_once_runs_the_last_alone(policy: str) -> None:
    assert list(decided([ago(hours=1), ago(seconds=5), NOW], policy, one_off=True).run) == [NOW]
