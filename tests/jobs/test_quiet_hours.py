from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from jobs.quiet_hours import QuietHours
from jobs.rates import InvalidLimit

NIGHT = QuietHours.parse("22:00-07:00 Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "until"),
    [
        # Winter, one hour ahead of UTC.
        ("2026-01-15 20:59:59", None),
        ("2026-01-15 21:00", "2026-01-16 06:00"),
        ("2026-01-16 00:30", "2026-01-16 06:00"),
        ("2026-01-16 05:59:59", "2026-01-16 06:00"),
        ("2026-01-16 06:00", None),
        # Summer, two hours ahead.
        ("2026-07-15 19:59", None),
        ("2026-07-15 20:00", "2026-07-16 05:00"),
        # The night in which the clocks are put forward, and the one in which they are put back.
        ("2026-03-28 21:00", "2026-03-29 05:00"),
        ("2026-10-24 20:00", "2026-10-25 06:00"),
    ],
)
def test_a_night_is_one_of_its_zone_also_where_the_clocks_are_changed(now: str, until: str | None) -> None:
    assert NIGHT.until(utc(now)) == (utc(until) if until else None)


def test_hours_of_one_day_lie_in_it() -> None:
    noon = QuietHours.parse("12:00-13:30 UTC")
    assert noon.until(utc("2026-01-15 12:00")) == utc("2026-01-15 13:30")
    assert noon.until(utc("2026-01-15 13:30")) is None
    assert noon.next_begin(utc("2026-01-15 12:00")) == utc("2026-01-16 12:00")


@pytest.mark.parametrize(
    ("written", "begin", "end"),
    [
        # In New York 2:30 does not come on 8 March 2026: the clocks go from 2:00 to 3:00, which is 7:00 UTC.
        ("02:30-04:00 America/New_York", "2026-03-08 07:00", "2026-03-08 08:00"),
        ("01:00-02:30 America/New_York", "2026-03-08 06:00", "2026-03-08 07:00"),
        # On 1 November 1:30 comes twice, at 5:30 and at 6:30 UTC.
        ("01:30-04:00 America/New_York", "2026-11-01 05:30", "2026-11-01 09:00"),
        ("00:30-01:30 America/New_York", "2026-11-01 04:30", "2026-11-01 06:30"),
    ],
)
def test_times_that_never_come_or_come_twice_have_their_moment(written: str, begin: str, end: str) -> None:
    hours = QuietHours.parse(written)
    assert hours.next_begin(utc(begin) - timedelta(hours=2)) == utc(begin)
    assert hours.until(utc(begin)) == hours.until(utc(end) - timedelta(seconds=1)) == utc(end)
    assert hours.until(utc(begin) - timedelta(seconds=1)) is None
    assert hours.until(utc(end)) is None


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe"])
@pytest.mark.parametrize("times", ["22:00-07:00", "02:00-02:30", "01:45-02:15", "00:00-23:59"])
@pytest.mark.parametrize("month", ["2026-03-15 00:00", "2026-09-25 00:00"])
def test_quiet_and_loud_follow_each_other_also_where_clocks_are_changed(zone: str, times: str, month: str) -> None:
    hours = QuietHours.parse(f"{times} {zone}")
    moments = [utc(month) + timedelta(minutes=15 * number) for number in range(4 * 24 * 40)]
    for now, later in pairwise(moments):
        until, begin = hours.until(now), hours.next_begin(now)
        assert until is None or until > now
        # Nothing begins between two looks that neither saw nor foresaw it.
        assert until is not None or (hours.until(later) is None) == (begin > later)


@pytest.mark.parametrize(
    "written",
    ["", "22:00-07:00", "22-07 UTC", "24:00-07:00 UTC", "22:00-22:00 UTC", "22:00-07:00 Mars/Base", "x", None],
)
def test_what_says_nothing_is_refused(written: Any) -> None:
    with pytest.raises(InvalidLimit):
        QuietHours.parse(written)


@pytest.mark.parametrize("zone", ["../../etc/passwd", "/etc/localtime", "\0", "Europe"])
def test_a_zone_is_no_path(zone: str) -> None:
    with pytest.raises(InvalidLimit):
        QuietHours.parse(f"22:00-07:00 {zone}")
