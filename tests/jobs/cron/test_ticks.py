"""What is decided about a schedule: ticks, jobs, and the package's own row, all in one transaction."""

import json
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask

from jobs.cron import selectors, ticks
from jobs.cron.calls import Call
from jobs.models import CatchUp, Job, ScheduleState, Tick
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.jobs.connections import another_connection, kill, over
from tests.jobs.cron.schedules import (
    clocked,
    crontab,
    every,
    make_schedule,
    now,
    outcomes,
    pass_time,
    plan_of,
    understood,
)

pytestmark = pytest.mark.django_db(transaction=True)


def decide(schedule: PeriodicTask) -> bool:
    """What a beat does that looks now."""
    plan = plan_of(schedule)
    return ticks.decide(plan) if plan.is_due else True


# -- One tick ----------------------------------------------------------------------------------------------------------
def test_a_tick_is_a_row_and_its_job_once() -> None:
    schedule = make_schedule(kwargs="{}", headers='{"tenant": "acme"}', priority=2, queue="crm", expire_seconds=60)
    assert not plan_of(schedule).is_due
    pass_time(minutes=10)
    decide(schedule)
    decide(schedule)
    tick, job = Tick.objects.get(), Job.objects.get()
    assert (tick.schedule, tick.outcome, tick.job_id, tick.note) == (schedule, "enqueued", job.pk, "")
    assert (job.args, job.priority, job.queue) == ([1, 2], 2, "crm")
    assert job.expires_at - job.created_at == timedelta(seconds=60)
    assert job.headers == {
        "tenant": "acme",
        "celery_beat_task": True,
        "periodic_task_name": "sums",
        "scheduled_for": tick.scheduled_for.isoformat(),
    }
    schedule.refresh_from_db()
    assert schedule.total_run_count == 1
    assert schedule.last_run_at - tick.decided_at < timedelta(seconds=5)
    assert ScheduleState.objects.get(pk=schedule.pk).decided_until == tick.scheduled_for


def test_the_task_knows_its_tick() -> None:
    schedule = make_schedule(task=sample_tasks.scheduled_moment.name, args="[]")
    pass_time(minutes=10)
    decide(schedule)
    (job,) = run_due_jobs()
    assert job.result == Tick.objects.get().scheduled_for.isoformat()
    assert sample_tasks.scheduled_moment() is None


def test_the_next_tick_makes_another_job() -> None:
    schedule = make_schedule()
    for _ in range(3):
        # A second more, or it would be the same moment again.
        pass_time(minutes=10, seconds=1)
        decide(schedule)
    assert Job.objects.count() == Tick.objects.filter(outcome="enqueued").count() == 3


def test_the_job_of_a_tick_has_the_same_id_whoever_makes_it() -> None:
    call = plan_of(make_schedule()).call
    moment = now()
    assert call.send(moment) == call.send(moment)
    assert Job.objects.count() == 1


def test_the_database_refuses_a_second_row_for_a_tick() -> None:
    moment, schedule = now(), make_schedule()
    Tick.objects.create(schedule=schedule, scheduled_for=moment, outcome="skipped")
    with pytest.raises(IntegrityError, match="tick_one_per_schedule_and_moment"), transaction.atomic():
        Tick.objects.create(schedule=schedule, scheduled_for=moment, outcome="skipped")
    with pytest.raises(IntegrityError, match="tick_has_a_job_iff_enqueued"), transaction.atomic():
        Tick.objects.create(schedule=schedule, scheduled_for=moment + timedelta(1), outcome="enqueued")
    for wrong in ({"policy": "some"}, {"most_count": 1001}, {"within_minutes": 0}):
        with pytest.raises(IntegrityError, match="catchup_"), transaction.atomic():
            CatchUp.objects.create(periodic_task=schedule, **wrong)


def test_a_state_that_somebody_sets_back_does_not_double_a_tick() -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    decide(schedule)
    Job.objects.all().delete()
    ScheduleState.objects.update(decided_until=None)
    assert plan_of(schedule).is_due
    decide(schedule)
    assert not Job.objects.exists()
    assert Tick.objects.count() == 1
    assert not plan_of(schedule).is_due


# -- Two at once, and deaths -------------------------------------------------------------------------------------------
def test_two_beats_at_one_tick_make_one_job_and_neither_waits() -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    plan = plan_of(schedule)
    with another_connection() as other:
        with over(other):
            assert ticks.decide(plan)
        assert not ticks.decide(plan)
        assert not Tick.objects.exists()
        other.commit()
    assert not ticks.decide(plan)
    assert Job.objects.count() == Tick.objects.count() == 1
    assert not plan_of(schedule).is_due


def test_the_tick_of_a_beat_that_dies_before_its_commit_is_decided_by_another() -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    plan = plan_of(schedule)
    with another_connection() as other:
        with over(other):
            assert ticks.decide(plan)
        kill(other)
        assert ticks.decide(plan)
    assert Job.objects.count() == Tick.objects.count() == 1


def test_an_operator_in_the_middle_of_an_edit_is_not_waited_for_and_the_edit_is_obeyed() -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    plan = plan_of(schedule)
    with another_connection() as other:
        with over(other):
            PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=False)
        assert not ticks.decide(plan)
        other.commit()
    assert not ticks.decide(plan)
    assert not Job.objects.exists()


def test_an_edit_of_the_crontab_that_is_under_way_is_not_waited_for() -> None:
    schedule = make_schedule(crontab=crontab())
    pass_time(minutes=1)
    plan = plan_of(schedule)
    assert plan.is_due
    with another_connection() as other:
        with over(other):
            CrontabSchedule.objects.update(hour="8", minute="0")
        assert not ticks.decide(plan)
        other.commit()
    assert not ticks.decide(plan)
    assert not Job.objects.exists()


def test_nothing_is_left_of_a_tick_whose_job_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = make_schedule()
    pass_time(minutes=10)

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    plan = plan_of(schedule)
    monkeypatch.setattr(Call, "send", fail)
    with pytest.raises(RuntimeError, match="no"):
        ticks.decide(plan)
    assert not Tick.objects.exists()
    assert plan_of(schedule).is_due


# -- What was missed ---------------------------------------------------------------------------------------------------
def test_after_downtime_the_last_tick_runs_and_those_before_it_are_seen_to_be_skipped() -> None:
    schedule = make_schedule()
    pass_time(minutes=35)
    decide(schedule)
    assert outcomes(schedule) == ["skipped", "skipped", "enqueued"]
    assert (
        list(Tick.objects.order_by("scheduled_for").values_list("note", flat=True))[:2]
        == ["missed, and a later one runs"] * 2
    )
    assert Tick.objects.get(outcome="enqueued").note.startswith("5 min")
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({"policy": "skip"}, ["skipped"] * 3),
        ({"policy": "all"}, ["enqueued"] * 3),
        ({"policy": "all", "most_count": 2}, ["skipped", "enqueued", "enqueued"]),
        ({"policy": "all", "within_minutes": 10}, ["skipped", "skipped", "enqueued"]),
        ({"policy": "once", "within_minutes": 4}, ["skipped"] * 3),
    ],
)
def test_the_operators_wish_decides(wishes: dict[str, Any], expected: list[str]) -> None:
    schedule = make_schedule()
    CatchUp.objects.create(periodic_task=schedule, **wishes)
    pass_time(minutes=35)
    decide(schedule)
    assert outcomes(schedule) == expected
    assert Job.objects.count() == expected.count("enqueued")


def test_a_year_of_minutes_is_decided_at_once_and_the_oldest_row_counts_those_before_it() -> None:
    schedule = make_schedule(interval=every(1))
    pass_time(days=365, seconds=40)
    decide(schedule)
    found = Tick.objects.order_by("scheduled_for")
    assert len(found) == ticks.KEPT_COUNT
    assert [tick.outcome for tick in found] == ["skipped"] * 99 + ["enqueued"]
    assert found[0].note == f"missed, and a later one runs; {365 * 24 * 60 - 100} before it were skipped"
    assert not plan_of(schedule).is_due


def test_a_schedule_forgets_ticks_and_decides_none_again() -> None:
    schedule = make_schedule()
    CatchUp.objects.create(periodic_task=schedule, policy="all")
    pass_time(minutes=1205)
    decide(schedule)
    assert (Tick.objects.count(), Job.objects.count()) == (ticks.KEPT_COUNT, 36)
    Tick.objects.all().delete()
    Job.objects.all().delete()
    decide(schedule)
    assert not Job.objects.exists()


# -- What an edit means ------------------------------------------------------------------------------------------------
def test_a_schedule_does_not_tick_for_the_time_before_it_was_made() -> None:
    schedule = make_schedule(crontab=crontab())
    assert plan_of(schedule).next_at > now()


def test_a_schedule_does_not_tick_for_the_time_in_which_it_was_disabled() -> None:
    schedule = make_schedule()
    schedules = PeriodicTask.objects.filter(pk=schedule.pk)
    schedules.update(enabled=False)
    pass_time(hours=2)
    schedules.update(enabled=True)
    assert not plan_of(schedule).is_due


def test_a_changed_crontab_does_not_tick_for_the_time_before_the_change() -> None:
    schedule = make_schedule(crontab=crontab(minute="0", hour="0", day_of_month="1", month_of_year="1"))
    pass_time(hours=2)
    CrontabSchedule.objects.update(minute="*", hour="*", day_of_month="*", month_of_year="*")
    assert plan_of(schedule).next_at > now()


def test_a_tick_right_after_an_edit_is_not_missed_though_no_beat_has_looked_in_between() -> None:
    schedule = make_schedule(crontab=crontab(minute="0", hour="0", day_of_month="1", month_of_year="1"))
    CrontabSchedule.objects.update(minute="*", hour="*", day_of_month="*", month_of_year="*")
    pass_time(minutes=1)
    assert plan_of(schedule).is_due


def test_arguments_that_were_repaired_make_up_for_the_ticks_meanwhile() -> None:
    schedule = make_schedule(args="[1,")
    pass_time(minutes=35)
    PeriodicTask.objects.filter(pk=schedule.pk).update(args="[3, 4]")
    decide(schedule)
    assert [job.args for job in Job.objects.all()] == [[3, 4]]


# -- Beginning and end -------------------------------------------------------------------------------------------------
def test_a_schedule_begins_at_its_start() -> None:
    start = now() + timedelta(hours=5)
    assert plan_of(make_schedule("interval", start_time=start)).next_at == start
    at_start = crontab(minute=str(start.minute), hour=str(start.hour))
    exact = start.replace(second=0, microsecond=0)
    assert plan_of(make_schedule("crontab", crontab=at_start, start_time=exact)).next_at == exact


def test_intervals_are_counted_from_their_start() -> None:
    start = now() - timedelta(days=2, minutes=3)
    assert (plan_of(make_schedule(start_time=start)).next_at - start) % timedelta(minutes=10) == timedelta(0)


def test_a_schedule_that_has_expired_is_disabled_and_runs_nothing_more() -> None:
    schedule = make_schedule()
    pass_time(minutes=35)
    PeriodicTask.objects.filter(pk=schedule.pk).update(expires=now() - timedelta(minutes=1))
    decide(schedule)
    schedule.refresh_from_db()
    assert not schedule.enabled
    assert outcomes(schedule) == ["skipped"] * 3
    assert not Job.objects.exists()


def test_a_one_off_schedule_runs_once_and_is_disabled() -> None:
    schedule = make_schedule(one_off=True)
    pass_time(minutes=10)
    decide(schedule)
    schedule.refresh_from_db()
    assert (schedule.enabled, schedule.total_run_count) == (False, 1)
    assert Job.objects.count() == 1


def test_a_moment_ticks_once_and_the_schedule_is_disabled() -> None:
    moment = now() + timedelta(seconds=1)
    schedule = make_schedule(**clocked(moment))
    assert plan_of(schedule).next_at == moment
    with connection.cursor() as cursor:
        cursor.execute("UPDATE jobs_schedulestate SET since_at = since_at - interval '1 hour'")
        cursor.execute("ALTER TABLE django_celery_beat_clockedschedule DISABLE TRIGGER jobs_note_schedule")
        cursor.execute("UPDATE django_celery_beat_clockedschedule SET clocked_time = now()")
        cursor.execute("ALTER TABLE django_celery_beat_clockedschedule ENABLE TRIGGER jobs_note_schedule")
    decide(schedule)
    schedule.refresh_from_db()
    assert not schedule.enabled
    assert outcomes(schedule) == ["enqueued"]
    assert Job.objects.count() == 1


def test_a_moment_of_this_minute_counts_though_it_has_just_passed() -> None:
    moment = now()
    schedule = make_schedule(**clocked(moment.replace(second=0, microsecond=0)))
    assert plan_of(schedule).is_due


def test_a_moment_that_had_passed_when_its_schedule_was_made_is_seen_to_be_skipped() -> None:
    schedule = make_schedule(**clocked(now() - timedelta(hours=1)))
    decide(schedule)
    schedule.refresh_from_db()
    assert not schedule.enabled
    assert Tick.objects.get().note == "the schedule was over before"
    assert not Job.objects.exists()


def test_a_moment_that_passes_while_no_beat_runs_is_made_up_for_as_any_tick() -> None:
    moment = now() - timedelta(minutes=5)
    schedule = make_schedule(**clocked(moment))
    ScheduleState.objects.update(since_at=moment - timedelta(minutes=5))
    decide(schedule)
    assert outcomes(schedule) == ["enqueued"]
    assert Tick.objects.get().note.startswith("5 min")


# -- What people see ---------------------------------------------------------------------------------------------------
def test_the_next_tick_is_told_and_none_of_a_schedule_that_is_disabled_or_broken() -> None:
    schedule = make_schedule()
    assert selectors.next_tick(schedule.pk) == plan_of(schedule).next_at
    broken = make_schedule("broken", crontab=crontab(minute="99"))
    disabled = make_schedule("disabled", enabled=False)
    assert [selectors.next_tick(one.pk) for one in (broken, disabled)] == [None, None]


def test_a_task_that_is_plain_celery_is_sent_after_the_commit(empty_redis: None) -> None:
    schedule = make_schedule(task=sample_tasks.plain.name, args='["x"]')
    pass_time(minutes=10)
    decide(schedule)
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        messages = [json.loads(message) for name in client.keys("default*") for message in client.lrange(name, 0, -1)]
    assert [message["headers"]["id"] for message in messages] == [str(Tick.objects.get().job_id)]
    assert not Job.objects.exists()


# -- One at a time -----------------------------------------------------------------------------------------------------
def keyed(**fields: Any) -> PeriodicTask:
    schedule = make_schedule(**fields)
    CatchUp.objects.create(periodic_task=schedule, dedup_key="books", policy="all", within_minutes=60)
    return schedule


def test_a_tick_is_skipped_while_a_job_with_its_key_has_not_ended() -> None:
    schedule = keyed()
    pass_time(minutes=10)
    decide(schedule)
    job = Job.objects.get()
    # The second tick is another moment than the first one was, although all was put back.
    pass_time(minutes=10, seconds=1)
    decide(schedule)
    assert outcomes(schedule) == ["enqueued", "skipped"]
    last = Tick.objects.latest("scheduled_for")
    assert (last.job_id, last.note) == (None, f"job {job.pk}, which has its key, has not ended")
    schedule.refresh_from_db()
    assert schedule.total_run_count == 1
    run_due_jobs()
    pass_time(minutes=10, seconds=1)
    decide(schedule)
    assert outcomes(schedule)[-1] == "enqueued"
    assert Job.objects.count() == 2


def test_of_missed_ticks_with_a_key_one_runs_at_a_time() -> None:
    schedule = keyed()
    pass_time(minutes=35)
    decide(schedule)
    assert outcomes(schedule) == ["enqueued", "skipped", "skipped"]
    assert Job.objects.count() == 1


def test_a_moment_that_comes_while_its_key_is_held_is_skipped() -> None:
    sample_tasks.add.apply_async((5, 6), dedup_key="books")
    schedule = keyed(**clocked(now() + timedelta(minutes=1)))
    ScheduleState.objects.update(since_at=now() - timedelta(minutes=5))
    ClockedSchedule.objects.update(clocked_time=now() - timedelta(seconds=1))
    decide(schedule)
    assert (outcomes(schedule), Job.objects.count()) == (["skipped"], 1)


def test_a_tick_that_comes_while_its_key_is_taken_for_a_time_says_so() -> None:
    schedule = keyed()
    job_id = sample_tasks.add.apply_async((5, 6), dedup_key="books", dedup_seconds=600).id
    run_due_jobs()
    pass_time(minutes=10)
    decide(schedule)
    assert Tick.objects.get().note == f"job {job_id}, which has ended, has its key for a time"


def test_run_now_says_which_job_has_the_key(admin_client: Client) -> None:
    schedule = keyed()
    job_id = sample_tasks.add.apply_async((5, 6), dedup_key="books").id
    chosen = {"action": "run_tasks", "_selected_action": [schedule.pk]}
    response = admin_client.post("/admin/django_celery_beat/periodictask/", chosen, follow=True)
    assert f"job {job_id}, which has its key, has not ended" in response.content.decode()
    assert Job.objects.count() == 1


def test_a_plain_task_of_celery_cannot_have_a_key() -> None:
    schedule = keyed(task=sample_tasks.plain.name, args='["x"]')
    assert "no task of the ledger" in str(understood(schedule))
