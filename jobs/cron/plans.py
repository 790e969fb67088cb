"""What a row comes to: when it is due and what it calls, or why it is broken."""

from dataclasses import dataclass, replace
from datetime import datetime

from celery import Celery

from jobs.cron import calls, timetables
from jobs.cron.calls import Call
from jobs.cron.rows import Row
from jobs.cron.timetables import Timetable
from jobs.patience import DATABASE_AWAY

_LONGEST_ERROR = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """A row that was understood."""

    row: Row
    timetable: Timetable
    call: Call
    next_at: datetime | None

    @property
    def is_over(self) -> bool:
        """Whether it will never tick again: its expiry has passed, or no tick follows."""
        return self.next_at is None or (self.row.expires is not None and self.row.expires <= self.row.now)

    @property
    def is_due(self) -> bool:
        """Whether there is something to decide."""
        return self.is_over or (self.next_at is not None and self.next_at <= self.row.now)


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that was not understood."""

    row: Row
    error: str


class Plans:
    """The plans of all rows. A row that says what it said at the last look is not understood anew."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._known: dict[int, Plan | Broken] = {}

    def of(self, rows: list[Row]) -> list[Plan | Broken]:
        """What each row comes to, in their order."""
        self._known = {row.pk: self._understood(row) for row in rows}
        return list(self._known.values())

    def _understood(self, row: Row) -> Plan | Broken:
        known = self._known.get(row.pk)
        if known is not None and known.row == row:
            return replace(known, row=row)
        try:
            timetable = timetables.of(row)
            return Plan(row, timetable, calls.of(row, self._app), timetable.next_after(row.decided))
        except DATABASE_AWAY:
            raise
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it must not cost the others their ticks
            return Broken(row, in_words(error))


def in_words(error: Exception) -> str:
    """What is wrong, as PostgreSQL can keep it: an error may quote what stands escaped in the row."""
    text = str(error).strip() or type(error).__name__
    return text[:_LONGEST_ERROR].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
