"""The moments of a crontab, above all on days on which clocks are changed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.cron import wall_clock

MINUTE = timedelta(minutes=1)
BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")


def local(zone: ZoneInfo, day: str, schedule: crontab, count: int) -> list[str]:
    """The first moments from a local midnight on, as the clock on the wall shows them, with the offset."""
    after = datetime.fromisoformat(day).replace(tzinfo=zone) - MINUTE
    found = islice(wall_clock.moments(schedule, zone, after=after.astimezone(UTC)), count)
    return [moment.astimezone(zone).strftime("%d %H:%M%z") for moment in found]


# -- Hours that come twice ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("zone", "day", "minute", "hour", "expected"),
    [
        (BERLIN, "2026-10-25", 30, 2, ["25 02:30+0200", "26 02:30+0100"]),
        (NEW_YORK, "2026-11-01", 30, 1, ["01 01:30-0400", "02 01:30-0500"]),
        (LORD_HOWE, "2026-04-05", 45, 1, ["05 01:45+1100", "06 01:45+1030"]),
        (LORD_HOWE, "2026-04-05", 15, 1, ["05 01:15+1100", "06 01:15+1030"]),
    ],
    ids=["Berlin", "New York", "Lord Howe, twice", "Lord Howe, before"],
)
def test_a_time_that_comes_twice_is_taken_once_and_the_first_time(
    zone: ZoneInfo, day: str, minute: int, hour: int, expected: list[str]
) -> None:
    assert local(zone, day, crontab(minute, hour), 2) == expected


def test_a_crontab_for_every_hour_does_not_rest_while_the_hour_is_repeated() -> None:
    assert local(NEW_YORK, "2026-11-01", crontab("*/30"), 6) == [
        "01 00:00-0400", "01 00:30-0400", "01 01:00-0400", "01 01:30-0400", "01 01:00-0500", "01 01:30-0500",
    ]  # fmt: skip


# -- Times that never come ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("zone", "day", "minute", "hour", "expected"),
    [
        (BERLIN, "2026-03-29", 30, 2, ["29 03:00+0200", "30 02:30+0200"]),
        (NEW_YORK, "2026-03-08", 30, 2, ["08 03:00-0400", "09 02:30-0400"]),
        (LORD_HOWE, "2026-10-04", 10, 2, ["04 02:30+1100", "05 02:10+1100"]),
        (LORD_HOWE, "2026-10-04", 40, 2, ["04 02:40+1100", "05 02:40+1100"]),
    ],
    ids=["Berlin", "New York", "Lord Howe, never", "Lord Howe, after"],
)
def test_a_time_that_never_comes_is_taken_once_at_the_first_moment_after_the_gap(
    zone: ZoneInfo, day: str, minute: int, hour: int, expected: list[str]
) -> None:
    assert local(zone, day, crontab(minute, hour), 2) == expected


def test_all_times_of_a_gap_are_one_tick_and_that_of_the_hour_after_it_is_its_own() -> None:
    assert local(BERLIN, "2026-03-29", crontab("*/10", "2"), 2) == ["29 03:00+0200", "30 02:00+0200"]
    assert local(BERLIN, "2026-03-29", crontab("30", "2,3"), 2) == ["29 03:00+0200", "29 03:30+0200"]
    assert local(BERLIN, "2026-03-29", crontab("0,30", "2,3"), 2) == ["29 03:00+0200", "29 03:30+0200"]


def test_a_day_that_a_zone_has_left_out_is_taken_at_its_end() -> None:
    assert local(ZoneInfo("Pacific/Apia"), "2011-12-29", crontab("0", "8"), 3) == [
        "29 08:00-1000", "31 00:00+1400", "31 08:00+1400",
    ]  # fmt: skip


# -- Days --------------------------------------------------------------------------------------------------------------
def test_a_day_must_be_meant_by_all_three_fields() -> None:
    friday_the_13th = crontab("0", "0", day_of_week="fri", day_of_month="13")
    assert local(ZoneInfo("UTC"), "2026-01-01", friday_the_13th, 3) == ["13 00:00+0000"] * 3


def test_the_rarest_day_is_found_and_a_crontab_can_have_an_end() -> None:
    monday_february_29 = crontab("0", "0", day_of_week="mon", day_of_month="29", month_of_year="2")
    after = datetime(2024, 3, 1, tzinfo=UTC)
    assert next(wall_clock.moments(monday_february_29, UTC, after=after)) == datetime(2044, 2, 29, tzinfo=UTC)


# -- Against a clock that is looked at every minute --------------------------------------------------------------------
@cache
def on_the_wall(zone: ZoneInfo, moment: datetime) -> datetime:
    """What the clock shows."""
    return moment.astimezone(zone).replace(tzinfo=None)


def watched(schedule: crontab, zone: ZoneInfo, after: datetime, until: datetime) -> Iterator[datetime]:
    """Looks at the wall every minute, and remembers what the clock has shown."""

    def is_meant(wall: datetime) -> bool:
        return (
            wall.minute in schedule.minute
            and wall.hour in schedule.hour
            and wall.day in schedule.day_of_month
            and wall.month in schedule.month_of_year
            and wall.isoweekday() % 7 in schedule.day_of_week
        )

    counts_minutes = schedule.hour == set(range(24))
    moment = after - timedelta(days=2)
    shown = on_the_wall(zone, moment)
    shown_before = shown
    while moment < until:
        moment += MINUTE
        wall = on_the_wall(zone, moment)
        is_new, jump = wall > shown_before, wall - shown
        is_tick = is_meant(wall) and (is_new or counts_minutes)
        if jump > MINUTE and not is_tick:
            is_tick = any(is_meant(shown + MINUTE * step) for step in range(1, jump // MINUTE))
        if is_tick and moment > after:
            yield moment
        shown, shown_before = wall, max(wall, shown_before)


# A zone, and days around which its clocks are changed.
CHANGES = [
    ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"), ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04"),
    # At midnight, from midnight, and a whole day.
    ("Africa/Cairo", "2026-04-24"), ("Africa/Cairo", "2026-10-30"), ("Atlantic/Azores", "2026-10-25"),
    ("America/Asuncion", "2023-03-26"), ("America/Santiago", "2026-09-06"), ("America/Havana", "2026-11-01"),
    ("Pacific/Apia", "2011-12-30"), ("Asia/Kathmandu", "2026-01-10"), ("UTC", "2026-02-28"),
]  # fmt: skip


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    some = st.sets(st.integers(low, high), min_size=1, max_size=4).map(lambda found: ",".join(map(str, sorted(found))))
    return st.one_of(st.just("*"), some, st.sampled_from(["*/2", "*/5", f"{low}-{(low + high) // 2}"]))


# Ten thousand examples take minutes.
@pytest.mark.timeout(900)
@given(
    change=st.sampled_from(CHANGES),
    minutes_before=st.integers(0, 2 * 24 * 60),
    minute=fields(0, 59),
    hour=st.one_of(fields(0, 23), st.sampled_from(["0", "1", "2", "3", "23", "0-3", "0-23"])),
    day_of_week=st.one_of(st.just("*"), fields(0, 6)),
)
@example(change=CHANGES[0], minutes_before=60, minute="30", hour="2", day_of_week="*")
@example(change=CHANGES[1], minutes_before=60, minute="30", hour="2", day_of_week="*")
@example(change=CHANGES[4], minutes_before=60, minute="*/7", hour="*", day_of_week="*")
def test_the_moments_are_those_at_which_a_clock_on_the_wall_shows_them(
    change: tuple[str, str], minutes_before: int, minute: str, hour: str, day_of_week: str
) -> None:
    zone, schedule = ZoneInfo(change[0]), crontab(minute, hour, day_of_week)
    day = datetime.fromisoformat(change[1]).replace(hour=12, tzinfo=UTC)
    after, until = day - minutes_before * MINUTE, day + timedelta(days=2)
    found = []
    for moment in wall_clock.moments(schedule, zone, after=after):
        if moment > until:
            break
        found.append(moment)
    assert found == list(watched(schedule, zone, after, until))
