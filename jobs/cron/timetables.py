"""When a schedule ticks: pure functions of its row. Whatever is wrong with it raises here, in words for its owner."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery.exceptions import ImproperlyConfigured
from celery.schedules import ParseException, crontab, solar
from django_celery_beat.models import PERIOD_CHOICES

from jobs.cron import wall_clock
from jobs.cron.rows import Row

_PERIODS = {name for name, _ in PERIOD_CHOICES}
_MINUTE = timedelta(minutes=1)


class NoTimetable(ValueError):
    """A schedule does not say when it ticks, or says something that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The ticks of a span of time: how many, and the last of them, the earliest first."""

    count: int
    last: list[datetime]


class Timetable(Protocol):
    """The ticks of one schedule."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick after a moment; None where none follows."""

    def passed(self, *, after: datetime, until: datetime, most: int) -> Passed:
        """The ticks after the one moment, up to and with the other."""


@dataclass(frozen=True, slots=True)
class Crontab:
    """Times of day, in a zone."""

    schedule: crontab
    zone: tzinfo

    def next_after(self, moment: datetime) -> datetime | None:
        return next(wall_clock.moments(self.schedule, self.zone, after=moment), None)

    def passed(self, *, after: datetime, until: datetime, most: int) -> Passed:
        return _counted(wall_clock.moments(self.schedule, self.zone, after=after), until, most)


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so often from a moment on, by real time: clocks that are changed do not matter."""

    period: timedelta
    anchor: datetime

    def next_after(self, moment: datetime) -> datetime | None:
        return self._tick(max(0, self._number(moment) + 1))

    def passed(self, *, after: datetime, until: datetime, most: int) -> Passed:
        first, last = max(0, self._number(after) + 1), self._number(until)
        return Passed(
            max(0, last - first + 1), [self._tick(number) for number in range(max(first, last - most + 1), last + 1)]
        )

    def _number(self, moment: datetime) -> int:
        return (moment - self.anchor) // self.period

    def _tick(self, number: int) -> datetime:
        return self.anchor + number * self.period


@dataclass(frozen=True, slots=True)
class Clocked:
    """Once."""

    moment: datetime

    def next_after(self, moment: datetime) -> datetime | None:
        return self.moment if self.moment > moment else None

    def passed(self, *, after: datetime, until: datetime, most: int) -> Passed:
        return _counted(iter([self.moment] if self.moment > after else []), until, most)


@dataclass(frozen=True, slots=True)
class Solar:
    """At an event of the sun, to the whole minute after it, so that machines agree."""

    event: str
    latitude: float
    longitude: float

    def next_after(self, moment: datetime) -> datetime | None:
        schedule = solar(self.event, self.latitude, self.longitude, nowfun=lambda: moment)
        event = moment + schedule.remaining_estimate(moment)
        return event.replace(second=0, microsecond=0) + _MINUTE

    def passed(self, *, after: datetime, until: datetime, most: int) -> Passed:
        return _counted(self._after(after), until, most)

    def _after(self, moment: datetime | None) -> Iterator[datetime]:
        while moment is not None and (moment := self.next_after(moment)) is not None:
            yield moment


def of(row: Row) -> Timetable:
    """The timetable of a row; raises NoTimetable. Where several kinds are set, the first counts, as in the package."""
    try:
        if row.interval_id is not None:
            return _interval(row)
        if row.crontab_id is not None:
            return _crontab(row)
        if row.solar_id is not None:
            return _solar(row)
    except (ValueError, OverflowError, ParseException, ImproperlyConfigured) as error:
        raise NoTimetable(str(error).strip()) from error
    if row.clocked_time is not None:
        return Clocked(row.clocked_time)
    raise NoTimetable("It has no schedule: set a crontab, an interval, a moment or an event of the sun.")


def _interval(row: Row) -> Interval:
    if row.every is None or row.every < 1 or row.period is None or row.period not in _PERIODS:
        raise NoTimetable(f"Every {row.every} {row.period} is no interval.")
    return Interval(timedelta(**{row.period: row.every}), row.anchor)


def _crontab(row: Row) -> Crontab:
    names = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
    try:
        zone: tzinfo = UTC if row.zone == "UTC" else ZoneInfo(row.zone or "")
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise NoTimetable(f"{row.zone!r} is no time zone that is known here.") from error
    return Crontab(crontab(**{name: getattr(row, name) for name in names}), zone)


def _solar(row: Row) -> Solar:
    timetable = Solar(row.event or "", float(row.latitude or 0), float(row.longitude or 0))
    timetable.next_after(row.now)
    return timetable


def _counted(moments: Iterator[datetime], until: datetime, most: int) -> Passed:
    count, last = 0, deque[datetime](maxlen=most)
    for moment in moments:
        if moment > until:
            break
        count += 1
        last.append(moment)
    return Passed(count, list(last))
