"""The scheduler of beat: what one look does."""

from datetime import timedelta
from typing import Any

import pytest
from celery import current_app
from django.db.models import F
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs.cron import rows, ticks
from jobs.cron.plans import Plan, Plans
from jobs.models import Job, ScheduleState, Tick
from jobs.scheduler import LedgerScheduler
from tests import sample_tasks
from tests.jobs.connections import another_connection, over

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def beat() -> LedgerScheduler:
    """A beat that has looked at nothing yet; the schedules of our apps are not in its way."""
    PeriodicTask.objects.all().delete()
    return LedgerScheduler(app=current_app)


def make_schedule(name: str = "sums", **fields: Any) -> PeriodicTask:
    """A schedule that ticks every ten minutes."""
    if not fields.keys() & {"interval", "crontab", "clocked", "solar"}:
        fields["interval"], _ = IntervalSchedule.objects.get_or_create(every=10, period=IntervalSchedule.MINUTES)
    return PeriodicTask.objects.create(**{"name": name, "task": sample_tasks.add.name, "args": "[1, 2]", **fields})


def plan_of(schedule: PeriodicTask) -> Plan:
    """What a beat makes of a schedule."""
    (plan,) = [plan for plan in Plans(current_app).of(rows.read()) if plan.row.pk == schedule.pk]
    assert isinstance(plan, Plan)
    return plan


def pass_time(**length: float) -> None:
    """All that is known of the schedules was so long ago. The database's clock cannot be put forward."""
    span = timedelta(**length)
    ScheduleState.objects.update(since_at=F("since_at") - span, decided_until=F("decided_until") - span)


def test_a_tick_is_a_row_and_its_job(beat: LedgerScheduler) -> None:
    schedule = make_schedule()
    beat.tick()
    assert not Tick.objects.exists()
    pass_time(minutes=10)
    beat.tick()
    tick, job = Tick.objects.get(), Job.objects.get()
    assert (tick.schedule, tick.outcome, tick.job_id, job.args) == (schedule, "enqueued", job.pk, [1, 2])
    assert job.headers["scheduled_for"] == tick.scheduled_for.isoformat()
    beat.tick()
    assert Job.objects.count() == 1


def test_two_beats_at_one_tick_make_one_job(beat: LedgerScheduler) -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    with another_connection() as connection:
        with over(connection):
            assert ticks.decide(plan_of(schedule))
        # The other has decided, and not committed yet: it is not waited for.
        assert beat.tick() <= 0.5
        assert not Tick.objects.exists()
        connection.commit()
    beat.tick()
    assert Job.objects.count() == Tick.objects.count() == 1
