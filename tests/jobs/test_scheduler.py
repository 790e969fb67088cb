"""The scheduler of beat: what one look does."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import current_app
from celery.schedules import crontab as celery_crontab
from celery.schedules import schedule as celery_interval
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.test import Client
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from django_celery_beat.schedulers import DatabaseScheduler

from devstack.throwaway import Server
from jobs import health
from jobs.cron import calls, ticks
from jobs.models import CatchUp, Duty, Job, ScheduleState, Tick
from jobs.patience import DATABASE_AWAY
from jobs.scheduler import LedgerScheduler
from tests import sample_tasks
from tests.jobs.connections import another_connection, over
from tests.jobs.cron.schedules import crontab, error_of, every, make_schedule, now, outcomes, pass_time

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def beat() -> LedgerScheduler:
    """A beat that has looked at nothing yet; the schedules of our apps are not in its way."""
    PeriodicTask.objects.all().delete()
    return LedgerScheduler(app=current_app)


@pytest.fixture
def entries() -> Iterator[dict[str, Any]]:
    """The `beat_schedule` of the settings."""
    before, current_app.conf.beat_schedule = current_app.conf.beat_schedule, {}
    yield current_app.conf.beat_schedule
    current_app.conf.beat_schedule = before


# -- A look ------------------------------------------------------------------------------------------------------------
def test_each_look_is_noted(beat: LedgerScheduler) -> None:
    beat.tick()
    assert Duty.objects.get(name="beat").ticked_at is not None


def test_a_look_decides_whatever_is_due(beat: LedgerScheduler) -> None:
    schedules = [make_schedule(name) for name in "abc"]
    beat.tick()
    assert not Job.objects.exists()
    pass_time(minutes=10)
    beat.tick()
    assert [outcomes(schedule) for schedule in schedules] == [["enqueued"]] * 3
    beat.tick()
    assert Job.objects.count() == 3


def test_the_next_look_comes_with_the_next_tick_and_within_two_seconds(beat: LedgerScheduler) -> None:
    make_schedule()
    beat.tick()
    assert beat.tick() == pytest.approx(2, abs=1)
    PeriodicTask.objects.update(interval=every(600, IntervalSchedule.MICROSECONDS))
    assert beat.tick() <= 0.01


def test_whoever_asks_for_longer_pauses_does_not_get_them() -> None:
    assert LedgerScheduler(app=current_app, max_interval=300, lazy=True).max_interval == 2
    assert LedgerScheduler(app=current_app, max_interval=1, lazy=True).max_interval == 1


def test_a_thousand_schedules_are_looked_at_in_four_queries(
    beat: LedgerScheduler, django_assert_max_num_queries: Any
) -> None:
    daily = crontab(minute="0", hour="0", day_of_month="1", month_of_year="1")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"{number}", task=sample_tasks.add.name, args="[1, 2]", crontab=daily)
        for number in range(1000)
    )
    beat.tick()
    # The schedules, those without a state, and the note that it has looked, which takes four by itself.
    with django_assert_max_num_queries(6):
        beat.tick()


def test_while_a_thousand_are_due_at_once_the_looks_go_on(
    beat: LedgerScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        make_schedule(name)
    pass_time(minutes=10)
    monkeypatch.setattr("jobs.scheduler._LONGEST_LOOK_SECONDS", 0)
    for count in (1, 2, 3):
        assert beat.tick() <= 0.01
        assert Job.objects.count() == count


def test_a_key_of_an_open_transaction_keeps_no_other_schedule_waiting(beat: LedgerScheduler) -> None:
    blocked = [make_schedule(f"blocked {number}") for number in range(8)]
    pass_time(minutes=20)
    other_schedules = [make_schedule(name) for name in "abc"]
    for schedule in blocked:
        CatchUp.objects.create(periodic_task=schedule, dedup_key="books")
    pass_time(minutes=10)
    with another_connection() as other:
        with over(other), transaction.atomic():
            sample_tasks.add.apply_async((5, 6), dedup_key="books")
        pauses = [beat.tick() for _ in range(3)]
        assert [outcomes(schedule) for schedule in other_schedules] == [["enqueued"]] * 3
        assert all(pause <= 0.5 for pause in pauses)
        assert {error_of(schedule) for schedule in blocked} == {""}
    while beat.tick() <= 0.5:
        pass
    assert Job.objects.filter(dedup_key="books").count() == 1
    assert sorted(outcomes(schedule)[-1] for schedule in blocked) == ["enqueued"] + ["skipped"] * 7


def test_when_a_schedule_ran_last_decides_nothing(beat: LedgerScheduler) -> None:
    schedule = make_schedule(interval=every(24, IntervalSchedule.HOURS))
    PeriodicTask.objects.update(last_run_at=now() - timedelta(days=30))
    pass_time(hours=23)
    # Celery would run it at once.
    assert DatabaseScheduler.Entry(PeriodicTask.objects.get(), app=current_app).is_due().is_due
    beat.tick()
    assert outcomes(schedule) == []
    PeriodicTask.objects.update(last_run_at=now())
    pass_time(hours=1)
    beat.tick()
    assert outcomes(schedule) == ["enqueued"]


def test_a_crontab_that_was_missed_runs_at_the_next_look_whatever_celerys_settings_say(beat: LedgerScheduler) -> None:
    three_hours_ago = now() - timedelta(hours=3)
    daily = crontab(minute=str(three_hours_ago.minute), hour=str(three_hours_ago.hour))
    schedule = make_schedule(crontab=daily)
    pass_time(hours=20)
    # django-celery-beat does not even read it until tomorrow.
    assert not DatabaseScheduler(app=current_app, lazy=True).enabled_models_qs().filter(pk=schedule.pk).exists()
    said = {"beat_cron_starting_deadline": 60, "beat_sync_every": 1}
    before = {name: current_app.conf[name] for name in said}
    current_app.conf.update(said)
    try:
        LedgerScheduler(app=current_app).tick()
    finally:
        current_app.conf.update(before)
    assert outcomes(schedule) == ["enqueued"]


# -- Broken schedules --------------------------------------------------------------------------------------------------
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "arguments that are no JSON": ({"args": "[1,"}, "The arguments are not JSON"),
    "arguments that are no array": ({"args": '{"x": 1}'}, "The arguments must be a JSON array."),
    "keyword arguments that are no JSON": ({"args": "[]", "kwargs": "{x}"}, "The keyword arguments are not JSON"),
    "keyword arguments that are no object": ({"kwargs": "[]"}, "The keyword arguments must be a JSON object."),
    "headers that are no JSON": ({"headers": "x"}, "The headers are not JSON"),
    "headers that are no object": ({"headers": "[]"}, "The headers must be a JSON object."),
    "an unknown task": ({"task": "no.such.task"}, "There is no task 'no.such.task' in this project."),
    "an unknown queue": ({"queue": "no-such-queue"}, "There is no queue 'no-such-queue'."),
    "an exchange": ({"exchange": "x"}, "exchange= is not supported"),
    "a priority out of range": ({"priority": 255}, "priority=255: expected 0 to 9"),
    "wrong arguments": ({"args": "[1, 2, 3]"}, "positional arguments"),
    "too large a payload": ({"args": f'["{"x" * 300_000}", 2]'}, "the arguments are 300"),
    "a name with a NUL and half a character": ({"args": "[]", "kwargs": '{"x\\u0000\\ud800": 1}'}, "x\\x00\\ud800"),
    "a NUL": ({"args": '["\\u0000", 2]'}, "NUL"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_schedule_is_reported_and_the_others_tick(beat: LedgerScheduler, kind: str, client: Client) -> None:
    fields, expected = BROKEN[kind]
    whole, broken, also_whole = (make_schedule(name) for name in "abc")
    PeriodicTask.objects.filter(pk=broken.pk).update(**fields)
    pass_time(minutes=10)
    beat.tick()
    assert expected in error_of(broken)
    assert [outcomes(schedule) for schedule in (whole, broken, also_whole)] == [["enqueued"], [], ["enqueued"]]
    assert [name for name in health.check().reasons if "schedule" in name] == [
        "The schedule 'b' is broken: its page in the admin says why."
    ]
    PeriodicTask.objects.filter(pk=broken.pk).update(
        task=sample_tasks.add.name, args="[1, 2]", kwargs="", headers="", queue=None, exchange=None, priority=None
    )
    beat.tick()
    assert (error_of(broken), outcomes(broken)) == ("", ["enqueued"])
    assert not any("schedule" in reason for reason in health.check().reasons)


def break_crontab() -> None:
    CrontabSchedule.objects.update(minute="99")


def take_schedule_away() -> None:
    PeriodicTask.objects.filter(name="b").update(crontab=None)


def break_zone() -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_crontabschedule SET timezone = 'Mars/Olympus_Mons'")


def break_day() -> None:
    CrontabSchedule.objects.update(day_of_month="31", month_of_year="2")


def break_interval() -> None:
    PeriodicTask.objects.filter(name="b").update(crontab=None, interval=IntervalSchedule.objects.create(every=0))


def make_interval_endless() -> None:
    forever = IntervalSchedule.objects.create(every=2**31 - 1, period=IntervalSchedule.DAYS)
    PeriodicTask.objects.filter(name="b").update(crontab=None, interval=forever)


def break_sun() -> None:
    nowhere = SolarSchedule.objects.create(event="sunrise", latitude=99, longitude=0)
    PeriodicTask.objects.filter(name="b").update(crontab=None, solar=nowhere)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (break_crontab, "99"),
        (take_schedule_away, "It has no schedule"),
        (break_zone, "'Mars/Olympus_Mons' is no time zone that is known here."),
        (break_day, "Invalid crontab"),
        (break_interval, "Every 0  is no interval."),
        (make_interval_endless, ""),
        (break_sun, "latitude"),
    ],
)
def test_a_schedule_that_cannot_tick_is_reported_and_the_others_tick(
    beat: LedgerScheduler, damage: Any, expected: str
) -> None:
    whole = make_schedule("a")
    broken = make_schedule("b", crontab=crontab())
    damage()
    pass_time(minutes=10)
    beat.tick()
    assert error_of(broken) != ""
    assert expected in error_of(broken)
    assert (outcomes(whole), outcomes(broken)) == (["enqueued"], [])
    assert PeriodicTask.objects.get(pk=broken.pk).enabled


@pytest.mark.parametrize(
    ("fields", "becomes"),
    [({"args": "[1,"}, "disabled"), ({"headers": "x"}, "ignored"), ({"interval": None}, "the end of beat")],
)
def test_a_schedule_that_django_celery_beat_disables_ignores_or_dies_of_stays_and_is_reported(
    beat: LedgerScheduler, fields: dict[str, Any], becomes: str
) -> None:
    schedule = make_schedule("b")
    PeriodicTask.objects.update(**fields)
    beat.tick()
    assert error_of(schedule) != ""
    assert PeriodicTask.objects.get().enabled
    theirs = DatabaseScheduler(app=current_app, lazy=True)
    if becomes == "the end of beat":
        with pytest.raises(AttributeError):
            theirs.tick()
    else:
        assert ("b" in theirs.all_as_schedule()) == (becomes == "disabled")
        assert PeriodicTask.objects.get().enabled == (becomes == "ignored")


def test_a_tick_that_cannot_be_decided_is_reported_and_tried_again(
    beat: LedgerScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = make_schedule("a"), make_schedule("b")
    pass_time(minutes=10)
    send = calls.Call.send

    def fail_for_one(call: calls.Call, moment: Any) -> Any:
        if call.schedule_id == broken.pk:
            raise RuntimeError("the moon is not in the right quarter")
        return send(call, moment)

    with monkeypatch.context() as patch:
        patch.setattr(calls.Call, "send", fail_for_one)
        beat.tick()
    assert error_of(broken) == "the moon is not in the right quarter"
    assert (outcomes(broken), outcomes(whole)) == ([], ["enqueued"])
    beat.tick()
    assert (error_of(broken), outcomes(broken)) == ("", ["enqueued"])


def test_an_error_that_stays_is_reported_once(beat: LedgerScheduler) -> None:
    schedule = make_schedule("a", args="[1, 2]", kwargs='{"' + "x" * 3000 + '": 1}')
    beat.tick()
    noted_at = ScheduleState.objects.get(pk=schedule.pk).error_at
    assert len(error_of(schedule)) == 1000
    beat.tick()
    assert ScheduleState.objects.get(pk=schedule.pk).error_at == noted_at


def test_the_error_of_a_disabled_schedule_does_not_degrade(beat: LedgerScheduler) -> None:
    make_schedule("a", args="x")
    beat.tick()
    assert ScheduleState.objects.exclude(error="").exists()
    PeriodicTask.objects.update(enabled=False)
    assert not any("schedule" in reason for reason in health.check().reasons)


def test_health_names_five_broken_schedules_and_counts_the_others(beat: LedgerScheduler) -> None:
    for name in "abcdefg":
        make_schedule(name, args="x")
    beat.tick()
    told = [reason for reason in health.check().reasons if "schedule" in reason]
    assert [reason[14:15] for reason in told[:5]] == list("abcde")
    assert told[5:] == ["2 more schedules are broken."]


# -- Edits -------------------------------------------------------------------------------------------------------------
def test_an_edit_is_seen_at_the_next_look_though_nobody_has_notified_beat(beat: LedgerScheduler) -> None:
    schedule = make_schedule()
    beat.tick()
    PeriodicTask.objects.filter(pk=schedule.pk).update(args="[3, 4]", queue="crm")
    pass_time(minutes=10)
    beat.tick()
    assert [(job.args, job.queue) for job in Job.objects.all()] == [([3, 4], "crm")]
    PeriodicTask.objects.filter(pk=schedule.pk).delete()
    beat.tick()
    assert Job.objects.count() == 1


# -- Entries of code ---------------------------------------------------------------------------------------------------
def test_entries_of_beat_schedule_come_into_the_tables(beat: LedgerScheduler, entries: dict[str, Any]) -> None:
    entries["daily"] = {
        "task": sample_tasks.add.name,
        "schedule": celery_crontab(minute=0, hour=8),
        "args": (1, 2),
        "options": {"queue": "crm", "expire_seconds": 60, "dedup_key": "sums"},
    }
    entries["often"] = {"task": sample_tasks.add.name, "schedule": 30.0, "args": (3, 4)}
    entries["every minute"] = {"task": sample_tasks.add.name, "schedule": celery_interval(timedelta(minutes=1))}
    entries["never"] = {"task": sample_tasks.add.name, "schedule": object()}
    beat.tick()
    found = {schedule.name: schedule for schedule in PeriodicTask.objects.all()}
    assert sorted(found) == ["daily", "every minute", "often"]
    assert (found["daily"].crontab.hour, found["daily"].queue, found["daily"].expire_seconds) == ("8", "crm", 60)
    wishes = CatchUp.objects.get()
    assert (wishes.periodic_task, wishes.dedup_key, wishes.policy) == (found["daily"], "sums", "once")
    pass_time(seconds=30)
    beat.tick()
    assert [job.args for job in Job.objects.all()] == [[3, 4]]


def test_a_start_of_beat_overwrites_what_code_says_and_leaves_the_rest(
    beat: LedgerScheduler, entries: dict[str, Any]
) -> None:
    entries["often"] = {"task": sample_tasks.add.name, "schedule": 3600, "args": (3, 4)}
    beat.tick()
    since = ScheduleState.objects.get().since_at
    PeriodicTask.objects.update(args="[5, 6]", enabled=False, description="not now")
    LedgerScheduler(app=current_app).tick()
    schedule = PeriodicTask.objects.get()
    assert (schedule.args, schedule.enabled, schedule.description) == ("[3, 4]", False, "not now")
    PeriodicTask.objects.update(enabled=True)
    again = ScheduleState.objects.get().since_at
    assert again > since
    # One more start says nothing new, so that intervals go on as they were.
    LedgerScheduler(app=current_app).tick()
    assert ScheduleState.objects.get().since_at == again
    assert IntervalSchedule.objects.count() == 1


# -- Outages -----------------------------------------------------------------------------------------------------------
def test_a_tick_that_comes_while_postgresql_is_away_makes_its_job_afterwards(
    beat: LedgerScheduler, postgres_server: Server
) -> None:
    schedule = make_schedule()
    beat.tick()
    pass_time(minutes=10)
    connections.close_all()
    postgres_server.stop()
    assert beat.tick() == 1
    postgres_server.start()
    beat.tick()
    assert outcomes(schedule) == ["enqueued"]
    assert Job.objects.get().args == [1, 2]


def test_a_beat_that_starts_while_postgresql_is_away_brings_its_entries_in_later(
    beat: LedgerScheduler, entries: dict[str, Any], postgres_server: Server
) -> None:
    entries["often"] = {"task": sample_tasks.add.name, "schedule": 30, "args": (3, 4)}
    connections.close_all()
    postgres_server.stop()
    late = LedgerScheduler(app=current_app)
    assert late.tick() == 1
    postgres_server.start()
    late.tick()
    assert PeriodicTask.objects.get().name == "often"


def test_an_outage_in_the_middle_of_a_look_breaks_no_schedule(
    beat: LedgerScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = make_schedule()
    pass_time(minutes=10)

    def lose_connection(*_: Any) -> None:
        raise DATABASE_AWAY[0]("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(ticks, "decide", lose_connection)
        assert beat.tick() == 1
    assert error_of(schedule) == ""
    beat.tick()
    assert outcomes(schedule) == ["enqueued"]


def test_the_clock_is_the_databases(beat: LedgerScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    make_schedule()
    monkeypatch.setattr("django.utils.timezone.now", lambda: now() + timedelta(days=1))
    monkeypatch.setattr(current_app, "now", lambda: now() + timedelta(days=1))
    beat.tick()
    assert not Job.objects.exists()
    pass_time(minutes=10)
    beat.tick()
    assert Tick.objects.filter(scheduled_for__lte=Now()).count() == Job.objects.count() == 1
