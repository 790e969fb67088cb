"""Schedules for tests, and the passing of time."""

from datetime import datetime, timedelta
from typing import Any

from celery import current_app
from django.db import connection
from django.db.models import F
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs.cron import rows
from jobs.cron.plans import Broken, Plan, Plans
from jobs.models import ScheduleState, Tick
from tests import sample_tasks


def every(count: int, period: str = IntervalSchedule.MINUTES) -> IntervalSchedule:
    return IntervalSchedule.objects.get_or_create(every=count, period=period)[0]


def crontab(**fields: Any) -> CrontabSchedule:
    return CrontabSchedule.objects.create(**{"timezone": "UTC", **fields})


def clocked(moment: datetime) -> dict[str, Any]:
    """The fields of a schedule that ticks once."""
    return {"clocked": ClockedSchedule.objects.create(clocked_time=moment), "one_off": True}


def make_schedule(name: str = "sums", **fields: Any) -> PeriodicTask:
    """A schedule, of every ten minutes unless something else is said."""
    if not fields.keys() & {"interval", "crontab", "clocked", "solar"}:
        fields["interval"] = every(10)
    return PeriodicTask.objects.create(**{"name": name, "task": sample_tasks.add.name, "args": "[1, 2]", **fields})


def pass_time(**length: float) -> None:
    """Whatever is known of the schedules was so much longer ago. Nobody can put the database's clock forward."""
    span = timedelta(**length)
    ScheduleState.objects.update(since_at=F("since_at") - span, decided_until=F("decided_until") - span)
    # Each by itself, the earliest first, because of their unique moments.
    for tick in Tick.objects.order_by("scheduled_for"):
        Tick.objects.filter(pk=tick.pk).update(scheduled_for=tick.scheduled_for - span)


def now() -> datetime:
    """The database's time."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        (moment,) = cursor.fetchone()
    return moment


def understood(schedule: PeriodicTask) -> Plan | Broken:
    """What a beat makes of a schedule."""
    (found,) = [one for one in Plans(current_app).of(rows.read()) if one.row.pk == schedule.pk]
    return found


def plan_of(schedule: PeriodicTask) -> Plan:
    """What a beat makes of a schedule that is whole."""
    found = understood(schedule)
    assert isinstance(found, Plan), found
    return found


def error_of(schedule: PeriodicTask) -> str:
    """What is wrong with a schedule, as it is noted."""
    return ScheduleState.objects.get(pk=schedule.pk).error


def outcomes(schedule: PeriodicTask) -> list[str]:
    """What became of its ticks, in order."""
    return list(Tick.objects.filter(schedule=schedule).order_by("scheduled_for").values_list("outcome", flat=True))
