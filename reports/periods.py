"""The days that a report is about."""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo

# A leap year; longer reports would mostly be tables that nobody reads.
LONGEST_DAYS = 366


@dataclass(frozen=True, kw_only=True)
class Period:
    """From the first moment of one day to the last of another, in a time zone."""

    from_date: date
    to_date: date
    zone: tzinfo

    @property
    def start_at(self) -> datetime:
        """The first moment."""
        return datetime.combine(self.from_date, time.min, tzinfo=self.zone)

    @property
    def end_at(self) -> datetime:
        """The first moment after it."""
        return datetime.combine(self.to_date + timedelta(days=1), time.min, tzinfo=self.zone)

    @property
    def day_count(self) -> int:
        """How many days it has."""
        return (self.to_date - self.from_date).days + 1

    def days(self) -> list[date]:
        """All of its days."""
        return [self.from_date + timedelta(days=number) for number in range(self.day_count)]

    def local(self, moment: datetime) -> str:
        """A moment as the reader's clock showed it."""
        return moment.astimezone(self.zone).strftime("%Y-%m-%d %H:%M")
