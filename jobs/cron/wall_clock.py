"""When the hands of a clock show the times of a crontab, as moments: also on the days on which clocks are changed.

* A time that a clock never shows, because it was put forward, comes at the first moment after the gap.
* A time that a clock shows twice, because it was put back, comes once, the first time. Only a crontab for every hour
  of the day comes both times, as it counts minutes rather than names an hour: otherwise it would rest for an hour.

Celery parses the crontab. Its own arithmetic (`remaining_delta`) is not used: it answers with an hour's rest in the one
case, and shifts a time that does not exist by the length of the gap, onto another tick perhaps, in the other.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from celery.schedules import crontab

_DAY = timedelta(days=1)
_HOURS = 24
# February 29 on a given weekday comes every 28 years, over a turn of the century every 40.
_LONGEST_SEARCH_DAYS = 41 * 366


def moments(schedule: crontab, zone: tzinfo, *, after: datetime) -> Iterator[datetime]:
    """The moments of a crontab after another one, in UTC and in order. Ends where none follows in 41 years."""
    days, last = 0, after
    day = after.astimezone(zone).date()
    while days < _LONGEST_SEARCH_DAYS:
        if _is_day(schedule, day):
            for moment in _of_day(schedule, zone, day, after=last):
                days, last = 0, moment
                yield moment
        days += 1
        day += _DAY


def _is_day(schedule: crontab, day: date) -> bool:
    return (
        day.month in schedule.month_of_year
        and day.day in schedule.day_of_month
        and day.isoweekday() % 7 in schedule.day_of_week
    )


def _of_day(schedule: crontab, zone: tzinfo, day: date, *, after: datetime) -> Iterator[datetime]:
    begin, end = _at(day, zone), _at(day + _DAY, zone)
    if begin.utcoffset() != end.utcoffset():
        yield from sorted(moment for moment in _of_changing_day(schedule, zone, day) if moment > after)
        return
    midnight = begin.astimezone(UTC)
    first_hour = max(0, int((after - midnight) / timedelta(hours=1)))
    minutes = sorted(schedule.minute)
    for hour in sorted(schedule.hour):
        if hour >= first_hour:
            for minute in minutes:
                moment = midnight + timedelta(hours=hour, minutes=minute)
                if moment > after:
                    yield moment


def _of_changing_day(schedule: crontab, zone: tzinfo, day: date) -> set[datetime]:
    found = set()
    for hour in schedule.hour:
        for minute in schedule.minute:
            wall = datetime.combine(day, time(hour, minute), tzinfo=zone)
            first, second = (wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
            if first > second:
                # Read with the offset before the gap, a time within it lies after the change, and vice versa.
                found.add(_change(zone, second, first))
                continue
            found.add(first)
            if len(schedule.hour) == _HOURS:
                found.add(second)
    return found


def _change(zone: tzinfo, before: datetime, after: datetime) -> datetime:
    """The moment between the two at which clocks were changed, to the second."""
    old = before.astimezone(zone).utcoffset()
    low, high = int(before.timestamp()), int(after.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == old:
            low = middle
        else:
            high = middle
    return datetime.fromtimestamp(high, UTC)


def _at(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time.min, tzinfo=zone)
