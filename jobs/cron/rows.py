"""Reads the schedules, all in one query and with the database's clock: every edit is seen at the next look."""

from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import CharField, ExpressionWrapper, F, QuerySet
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask

from jobs.cron.models import CatchUp

_COLUMNS = {
    "minute": "crontab__minute",
    "hour": "crontab__hour",
    "day_of_month": "crontab__day_of_month",
    "month_of_year": "crontab__month_of_year",
    "day_of_week": "crontab__day_of_week",
    "every": "interval__every",
    "period": "interval__period",
    "event": "solar__event",
    "latitude": "solar__latitude",
    "longitude": "solar__longitude",
    "clocked_time": "clocked__clocked_time",
    "since_at": "ledger_state__since_at",
    "decided_until": "ledger_state__decided_until",
    "reported_error": "ledger_state__error",
    "policy": "catch_up__policy",
    "within_minutes": "catch_up__within_minutes",
    "most_count": "catch_up__most_count",
    "dedup_key": "catch_up__dedup_key",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One enabled schedule as it stands in the tables, unchecked. Two are equal where they say the same."""

    pk: int
    name: str
    task: str
    args: str
    kwargs: str
    headers: str
    queue: str | None
    exchange: str | None
    routing_key: str | None
    priority: int | None
    expires: datetime | None
    expire_seconds: int | None
    one_off: bool
    start_time: datetime | None

    interval_id: int | None
    every: int | None
    period: str | None
    crontab_id: int | None
    minute: str | None
    hour: str | None
    day_of_month: str | None
    month_of_year: str | None
    day_of_week: str | None
    zone: str | None
    solar_id: int | None
    event: str | None
    latitude: Decimal | None
    longitude: Decimal | None
    clocked_id: int | None
    clocked_time: datetime | None

    since_at: datetime
    decided_until: datetime | None
    reported_error: str | None = field(compare=False)
    # None where the operator wishes nothing of his own.
    policy: str | None
    within_minutes: int | None
    most_count: int | None
    dedup_key: str | None
    now: datetime = field(compare=False)

    @property
    def wishes(self) -> CatchUp:
        """What becomes of missed ticks."""
        if self.policy is None or self.within_minutes is None or self.most_count is None:
            return CatchUp()
        return CatchUp(policy=self.policy, within_minutes=self.within_minutes, most_count=self.most_count)

    @property
    def anchor(self) -> datetime:
        """Whence an interval is counted: its start, else the moment since which it ticks so, to the second."""
        return self.start_time or self.since_at.replace(microsecond=0)

    @property
    def decided(self) -> datetime:
        """Ticks after this moment, and only those, are still to be decided."""
        since = self.since_at
        if self.clocked_id is not None:
            # It is typed to the minute, and saved a moment later perhaps.
            since = since.replace(second=0, microsecond=0) - _INSTANT
        begin = since if self.decided_until is None else max(self.decided_until, since)
        return begin if self.start_time is None else max(begin, self.start_time - _INSTANT)


_INSTANT = timedelta(microseconds=1)


def read() -> list[Row]:
    """Every enabled schedule, as beat wants them. A thousand take some 25 ms."""
    enabled = PeriodicTask.objects.filter(enabled=True)
    # The trigger makes the state of a schedule that has none, as after a copy of single tables.
    enabled.filter(ledger_state__isnull=True).update(enabled=True)
    return read_of(enabled)


def read_of(schedules: "QuerySet[PeriodicTask]") -> list[Row]:
    """These schedules, but for those whose state is missing."""
    read_as: dict[str, Any] = {name: F(column) for name, column in _COLUMNS.items()}
    # As text: the field's own conversion raises for a zone that this machine does not know, and all rows were lost.
    read_as["zone"] = ExpressionWrapper(F("crontab__timezone"), output_field=CharField())
    own = [one.name for one in fields(Row) if one.name not in read_as and one.name != "now"]
    found = schedules.filter(ledger_state__isnull=False).order_by("pk")
    return [Row(**values) for values in found.values(*own, **read_as, now=Now())]
