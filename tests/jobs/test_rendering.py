"""Times and lengths of time in words, also such as nobody means."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from jobs.rendering import duration, exact


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0.34, "340 ms"),
        (4.2, "4.2 s"),
        (timedelta(minutes=3, seconds=20), "3 min 20 s"),
        (-5, "0 ms"),
        (float("inf"), "without end"),
        (float("nan"), "–"),
        (float("-inf"), "–"),
    ],
)
def test_a_length_of_time_is_told_in_its_largest_units(value: timedelta | float | None, words: str) -> None:
    assert duration(value) == words


@pytest.mark.parametrize(("zone", "year"), [("Pacific/Kiritimati", 9999), ("America/New_York", 1)])
def test_a_time_beyond_the_calendar_of_a_zone_is_told_as_it_is_kept(zone: str, year: int) -> None:
    edge = datetime(9999, 12, 31, 23, tzinfo=UTC) if year == 9999 else datetime(1, 1, 1, 1, tzinfo=UTC)
    with timezone.override(zone):
        assert exact(edge).endswith(" UTC")
        assert not exact(datetime(2026, 1, 1, tzinfo=UTC)).endswith(" UTC")
