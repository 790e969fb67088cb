"""Quiet hours, as in "22:00-07:00 Europe/Berlin": from the first time of day to the second, on the clocks of a zone.

Where clocks are put forward over one of the two times, it is taken for the moment at which they were. Where a time
comes twice, the quiet begins at its first coming and ends at its second: rather too quiet than too loud.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from jobs.rates import InvalidLimit

_WRITTEN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d) (\S+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A time of each day in which nothing starts. It lies over midnight where it begins later than it ends."""

    begin: time
    end: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidLimit for what is no time of day, or for a zone that nobody knows."""
        found = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        try:
            if found is None:
                raise ValueError
            begin, end = time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))
            zone = ZoneInfo(found[5])
        except (ValueError, OSError, LookupError):
            raise InvalidLimit(
                f'{text!r} are no quiet hours: expected two times and a zone, as in "22:00-07:00 Europe/Berlin".'
            ) from None
        if begin == end:
            raise InvalidLimit(f"{text!r}: quiet hours that begin and end at the same time say nothing.")
        return cls(begin, end, zone)

    def until(self, now: datetime) -> datetime | None:
        """When the quiet ends in which `now` lies; None where it lies in none."""
        return next((end for begin, end in self._around(now) if begin <= now < end), None)

    def next_begin(self, now: datetime) -> datetime:
        """When it is quiet next, later than `now`."""
        return next(begin for begin, _ in self._around(now) if begin > now)

    def _around(self, now: datetime) -> list[tuple[datetime, datetime]]:
        """The quiet hours of the days around a moment, in UTC, the earliest first."""
        today = now.astimezone(self.zone).date()
        days = [today + timedelta(days=number) for number in (-2, -1, 0, 1, 2)]
        over_midnight = timedelta(days=1 if self.end < self.begin else 0)
        hours = [
            (self._moment(day, self.begin, fold=0), self._moment(day + over_midnight, self.end, fold=1)) for day in days
        ]
        # Clocks that skip all of them leave none on that day.
        return [(begin, end) for begin, end in hours if begin < end]

    def _moment(self, day: date, clock: time, *, fold: int) -> datetime:
        there = datetime.combine(day, clock, self.zone)
        first, second = (there.replace(fold=number).astimezone(UTC) for number in (0, 1))
        if first > second:
            # The clocks skip this time. Between the two readings lies the moment at which they are put forward.
            return _skipping(second, first, self.zone)
        return second if fold else first


def _skipping(earlier: datetime, later: datetime, zone: ZoneInfo) -> datetime:
    """The moment between the two at which the clocks of a zone are put forward, to the second."""
    before = earlier.astimezone(zone).utcoffset()
    while later - earlier > timedelta(seconds=1):
        middle = earlier + (later - earlier) // 2
        if middle.astimezone(zone).utcoffset() == before:
            earlier = middle
        else:
            later = middle
    return later.replace(microsecond=0)
