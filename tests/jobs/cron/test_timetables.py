"""When intervals, moments and events of the sun tick."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cron.timetables import Clocked, Interval, Passed, Solar

NOON = datetime(2026, 3, 29, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
seconds = st.integers(-5000, 5000).map(lambda count: timedelta(seconds=count))


def test_an_interval_ticks_after_its_anchor_and_at_it_only_where_that_is_to_come() -> None:
    hourly = Interval(timedelta(hours=1), NOON)
    assert hourly.next_after(NOON) == NOON + timedelta(hours=1)
    assert hourly.next_after(NOON - timedelta(days=3)) == NOON
    assert hourly.next_after(NOON + 61 * MINUTE) == NOON + timedelta(hours=2)


def test_a_day_is_24_hours_whatever_clocks_show() -> None:
    daily = Interval(timedelta(days=1), NOON - timedelta(days=1))
    assert daily.next_after(NOON) == NOON + timedelta(days=1)


@given(after=seconds, length=seconds.map(abs), period=st.integers(1, 900), most=st.integers(1, 20))
def test_the_ticks_of_a_span_are_those_that_come_one_after_the_other(
    after: timedelta, length: timedelta, period: int, most: int
) -> None:
    interval = Interval(timedelta(seconds=period), NOON)
    begin = NOON + after
    found = []
    moment = interval.next_after(begin)
    while moment is not None and moment <= begin + length:
        found.append(moment)
        moment = interval.next_after(moment)
    assert interval.passed(after=begin, until=begin + length, most=most) == Passed(len(found), found[-most:])


def test_thirty_years_of_microseconds_are_counted_in_no_time() -> None:
    interval = Interval(timedelta(microseconds=1), NOON)
    passed = interval.passed(after=NOON, until=NOON + timedelta(days=10_000), most=3)
    assert passed.count == 864_000_000_000_000
    assert passed.last[-1] == NOON + timedelta(days=10_000)


def test_a_moment_ticks_once() -> None:
    clocked = Clocked(NOON)
    assert clocked.next_after(NOON - MINUTE) == NOON
    assert clocked.next_after(NOON) is None
    assert clocked.passed(after=NOON - MINUTE, until=NOON, most=5) == Passed(1, [NOON])
    assert clocked.passed(after=NOON, until=NOON + MINUTE, most=5) == Passed(0, [])


@pytest.mark.parametrize("event", ["sunrise", "sunset", "solar_noon", "dawn_civil", "dusk_astronomical"])
def test_the_sun_ticks_once_a_day_on_whole_minutes(event: str) -> None:
    berlin = Solar(event, 52.52, 13.405)
    moment, found = NOON, []
    for _ in range(30):
        following = berlin.next_after(moment)
        assert following is not None
        moment = following
        found.append(moment)
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert all(timedelta(hours=23, minutes=50) < gap < timedelta(hours=24, minutes=10) for gap in gaps)
    assert {(moment.second, moment.microsecond) for moment in found} == {(0, 0)}
    passed = berlin.passed(after=NOON, until=found[9], most=3)
    assert (passed.count, passed.last) == (10, found[7:10])


def test_the_sun_rises_over_berlin_when_the_almanac_says() -> None:
    # 21 June 2026: 04:43 and some seconds, Central European Summer Time.
    assert Solar("sunrise", 52.52, 13.405).next_after(datetime(2026, 6, 21, tzinfo=UTC)) == datetime(
        2026, 6, 21, 2, 44, tzinfo=UTC
    )
