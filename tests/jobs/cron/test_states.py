"""What the triggers note: since when a schedule ticks as it does, whoever has changed it, and by whatever way."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module

import pytest
from django.db import connection
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule

from jobs.cron import rows
from jobs.models import CatchUp, ScheduleState, Tick
from tests.jobs.cron.schedules import clocked, crontab, every, make_schedule, now, pass_time

pytestmark = pytest.mark.django_db

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def schedule() -> PeriodicTask:
    return make_schedule(crontab=crontab(hour="8"))


def is_noted(change: Callable[[], object]) -> bool:
    """Whether a change makes the schedules begin anew."""
    ScheduleState.objects.update(since_at=LONG_AGO)
    before = now()
    change()
    changed = ScheduleState.objects.exclude(since_at=LONG_AGO)
    assert all(state.since_at >= before for state in changed)
    return changed.exists()


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


# -- What begins a schedule anew ---------------------------------------------------------------------------------------
def test_a_new_schedule_ticks_from_its_creation_on_however_it_is_made() -> None:
    PeriodicTask.objects.all().delete()
    before = now()
    make_schedule("saved")
    PeriodicTask.objects.bulk_create([PeriodicTask(name=name, task="x", interval=every(1)) for name in "ab"])
    states = ScheduleState.objects.all()
    assert len(states) == 3
    assert all(state.since_at >= before and state.decided_until is None for state in states)


def test_an_edit_of_the_times_begins_anew_by_form_update_bulk_and_sql(schedule: PeriodicTask) -> None:
    nine = CrontabSchedule.objects.get(pk=schedule.crontab_id)
    nine.hour = "9"
    assert is_noted(nine.save)
    assert is_noted(lambda: CrontabSchedule.objects.filter(pk=nine.pk).update(hour="10"))
    nine.hour = "11"
    assert is_noted(lambda: CrontabSchedule.objects.bulk_update([nine], ["hour"]))
    assert is_noted(lambda: CrontabSchedule.objects.filter(pk=nine.pk).update(timezone="Europe/Berlin"))
    assert is_noted(lambda: execute("UPDATE django_celery_beat_crontabschedule SET minute = '7'"))
    assert is_noted(lambda: PeriodicTask.objects.filter(pk=schedule.pk).update(crontab=crontab(hour="12")))
    assert is_noted(lambda: PeriodicTask.objects.filter(pk=schedule.pk).update(start_time=LONG_AGO))


def test_disabling_and_enabling_begin_anew(schedule: PeriodicTask) -> None:
    assert is_noted(lambda: PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=False))
    assert is_noted(lambda: PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=True))


def test_the_other_kinds_are_watched_as_well() -> None:
    schedule = make_schedule()
    assert is_noted(lambda: IntervalSchedule.objects.filter(pk=schedule.interval_id).update(every=11))
    sun = SolarSchedule.objects.create(event="sunset", latitude=1, longitude=2)
    make_schedule("sun", solar=sun)
    assert is_noted(lambda: SolarSchedule.objects.filter(pk=sun.pk).update(event="sunrise"))
    once = make_schedule("once", **clocked(LONG_AGO))
    assert is_noted(lambda: ClockedSchedule.objects.filter(pk=once.clocked_id).update(clocked_time=now()))


def test_what_says_nothing_about_the_times_leaves_a_schedule_as_it_is(schedule: PeriodicTask) -> None:
    schedules = PeriodicTask.objects.filter(pk=schedule.pk)
    assert not is_noted(lambda: schedules.update(args="[3, 4]", last_run_at=now(), total_run_count=7, name="other"))
    assert not is_noted(schedule.save)
    assert not is_noted(schedule.crontab.save)
    # Entries of beat_schedule may come to another row that says the same.
    assert not is_noted(lambda: schedules.update(crontab=crontab(hour="8")))
    assert not is_noted(lambda: schedules.update(crontab=CrontabSchedule.objects.create(hour="8", timezone="UTC")))


def test_the_zone_of_the_session_that_edits_does_not_matter() -> None:
    make_schedule("once", **clocked(LONG_AGO), start_time=LONG_AGO)
    execute("SET TIME ZONE 'Asia/Tokyo'")
    assert not is_noted(lambda: PeriodicTask.objects.filter(name="once").update(args="[]"))


# -- Rows that come and go ---------------------------------------------------------------------------------------------
def test_with_a_schedule_goes_whatever_is_kept_of_it_however_it_is_deleted(schedule: PeriodicTask) -> None:
    for delete in (
        lambda: PeriodicTask.objects.all().delete(),
        lambda: execute("DELETE FROM django_celery_beat_periodictask"),
    ):
        again = make_schedule("again")
        CatchUp.objects.create(periodic_task=again)
        Tick.objects.create(schedule=again, scheduled_for=LONG_AGO, outcome="skipped")
        delete()
        assert [model.objects.count() for model in (ScheduleState, CatchUp, Tick)] == [0, 0, 0]
        # Foreign keys are checked at the end of a transaction.
        connection.check_constraints()


def test_a_schedule_without_a_state_gets_one_at_the_next_look(schedule: PeriodicTask) -> None:
    ScheduleState.objects.all().delete()
    assert schedule.pk in [row.pk for row in rows.read()]
    pass_time(hours=1)
    assert not is_noted(lambda: PeriodicTask.objects.filter(pk=schedule.pk).update(total_run_count=1))


def test_schedules_that_were_there_before_the_ledger_count_from_the_migration_on(schedule: PeriodicTask) -> None:
    ScheduleState.objects.all().delete()
    before = now()
    execute(import_module("jobs.migrations.0005_schedules").KNOWN)
    assert ScheduleState.objects.get(pk=schedule.pk).since_at >= before
