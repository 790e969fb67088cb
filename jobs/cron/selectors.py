"""What people and probes ask about schedules."""

from datetime import datetime

from django_celery_beat.models import PeriodicTask

from jobs.cron import rows, timetables
from jobs.cron.models import ScheduleState, Tick
from jobs.cron.timetables import NoTimetable


def broken_schedules() -> list[str]:
    """The names of the enabled schedules that beat could not make sense of when it looked at them last."""
    broken = ScheduleState.objects.filter(periodic_task__enabled=True).exclude(error="")
    return list(broken.order_by("periodic_task__name").values_list("periodic_task__name", flat=True))


def next_tick(schedule_id: int) -> datetime | None:
    """When a schedule ticks next, or since when it should have; None where it is disabled, broken or over."""
    try:
        (row,) = rows.read_of(PeriodicTask.objects.filter(pk=schedule_id, enabled=True))
        return timetables.of(row).next_after(row.decided)
    except (ValueError, NoTimetable):
        return None


def last_ticks(schedule_id: int, *, count: int) -> list[Tick]:
    """The last ticks of a schedule that were decided, the newest first."""
    return list(Tick.objects.filter(schedule=schedule_id).order_by("-scheduled_for")[:count])
