"""G09: one run per cron tick, with any number of beats, over deaths, downtime and edits."""

from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from django.db import connections
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from devstack.throwaway import Server
from jobs.models import CatchUp, Job, Tick
from tests.beat import POINTS
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.cron.schedules import crontab, error_of, every, make_schedule, outcomes, pass_time
from tests.processes import Process, Processes
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _no_other_schedules(transactional_db: None) -> None:
    PeriodicTask.objects.all().delete()


def start_beat(processes: Processes, **env: str) -> Process:
    return processes.start("tests.beat", env=env)


def is_killed(process: Process) -> bool:
    return process.status == -9


def moments(schedule: PeriodicTask) -> list[datetime]:
    return list(
        Tick.objects.filter(schedule=schedule).order_by("scheduled_for").values_list("scheduled_for", flat=True)
    )


def assert_each_tick_has_one_job(*schedules: PeriodicTask) -> None:
    """No tick of these is missing between the first and the last, none is there twice, each has a job of its own."""
    for schedule in schedules:
        found = moments(schedule)
        assert [later - earlier for earlier, later in pairwise(found)] == [SECOND] * (len(found) - 1)
        assert set(outcomes(schedule)) == {"enqueued"}
    made_for = Counter(
        (job.headers["periodic_task_name"], job.headers["scheduled_for"]) for job in Job.objects.only("headers")
    )
    ticks = Tick.objects.select_related("schedule")
    assert made_for == Counter((tick.schedule.name, tick.scheduled_for.isoformat()) for tick in ticks)


def test_three_beats_of_which_one_after_the_other_is_killed_make_one_job_per_tick(processes: Processes) -> None:
    # What is on time runs whatever the policy; a machine that stands still for half a minute must not fail the test.
    schedules = [make_schedule(f"s{number}", interval=every(1, IntervalSchedule.SECONDS)) for number in range(4)]
    CatchUp.objects.bulk_create(CatchUp(periodic_task=schedule, policy="all") for schedule in schedules)
    beats = [start_beat(processes) for _ in range(3)]
    for number in range(4):
        seen = Tick.objects.count()
        wait_until(lambda seen=seen: Tick.objects.count() >= seen + 12, timeout=90)  # type: ignore[misc]
        beats[number % 3].kill()
        beats[number % 3] = start_beat(processes)
    seen = Tick.objects.count()
    wait_until(lambda: Tick.objects.count() >= seen + 12, timeout=90)
    for beat in beats:
        beat.kill()
    assert_each_tick_has_one_job(*schedules)
    assert_ledger_consistent()


@pytest.mark.parametrize("point", POINTS)
def test_a_beat_that_is_killed_at_any_point_neither_skips_nor_doubles_a_tick(
    processes: Processes, tmp_path: Path, point: str
) -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    file = tmp_path / "dies-at"
    file.write_text(point)
    beat = start_beat(processes, BEAT_DIES_AT=str(file))
    wait_until(lambda: is_killed(beat), timeout=60)
    is_decided = point in ("before the hint", "committed")
    assert (Tick.objects.count(), Job.objects.count()) == (is_decided, is_decided)
    for _ in range(2):
        start_beat(processes)
    # Another schedule ticks, so that both have looked at everything.
    other = make_schedule("other", interval=every(1, IntervalSchedule.SECONDS))
    wait_until(lambda: len(moments(other)) >= 5, timeout=60)
    assert outcomes(schedule) == ["enqueued"]
    assert Job.objects.filter(headers__periodic_task_name=schedule.name).count() == 1
    assert_ledger_consistent()


def test_a_beat_that_hangs_in_the_middle_of_a_tick_keeps_it_from_nobody_for_long(
    processes: Processes, tmp_path: Path
) -> None:
    schedule = make_schedule()
    pass_time(minutes=10)
    file = tmp_path / "dies-at"
    file.write_text("before the commit")
    hung = start_beat(processes, BEAT_DIES_AT=str(file), BEAT_HANGS="yes")
    wait_until(lambda: not file.exists(), timeout=60)
    start_beat(processes)
    assert not Tick.objects.exists()
    wait_until(lambda: outcomes(schedule) == ["enqueued"], timeout=60)
    hung.thaw()
    wait_until(lambda: "looking again" in hung.output, timeout=60)
    other = make_schedule("other", interval=every(1, IntervalSchedule.SECONDS))
    wait_until(lambda: len(moments(other)) >= 5, timeout=60)
    assert hung.status is None
    assert error_of(schedule) == ""
    assert outcomes(schedule) == ["enqueued"]
    assert Job.objects.filter(headers__periodic_task_name=schedule.name).count() == 1
    assert_ledger_consistent()


def test_the_job_of_a_beat_that_died_before_its_ring_runs(processes: Processes, tmp_path: Path) -> None:
    make_schedule()
    pass_time(minutes=10)
    file = tmp_path / "dies-at"
    file.write_text("before the hint")
    beat = start_beat(processes, BEAT_DIES_AT=str(file))
    wait_until(lambda: is_killed(beat), timeout=60)
    processes.worker("default")
    wait_until(lambda: Job.objects.get().state == "completed")
    assert Job.objects.get().result == 3
    assert_ledger_consistent()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("skip", ["skipped"] * 3), ("once", ["skipped", "skipped", "enqueued"]), ("all", ["enqueued"] * 3)],
)
def test_after_downtime_the_policy_decides_and_three_beats_that_come_back_decide_once(
    processes: Processes, policy: str, expected: list[str]
) -> None:
    schedule = make_schedule()
    CatchUp.objects.create(periodic_task=schedule, policy=policy)
    pass_time(minutes=35)
    for _ in range(3):
        start_beat(processes)
    wait_until(lambda: len(outcomes(schedule)) == 3, timeout=60)
    other = make_schedule("other", interval=every(1, IntervalSchedule.SECONDS))
    wait_until(lambda: len(moments(other)) >= 5, timeout=60)
    assert outcomes(schedule) == expected
    assert Job.objects.filter(headers__periodic_task_name=schedule.name).count() == expected.count("enqueued")
    assert_ledger_consistent()


def test_edits_by_update_and_bulk_take_effect_while_beats_run(processes: Processes) -> None:
    schedules = [make_schedule(name, crontab=crontab(minute="0", hour="0", day_of_month="1")) for name in "ab"]
    for _ in range(2):
        start_beat(processes)
    broken = make_schedule("broken", args="[1,")
    wait_until(lambda: error_of(broken), timeout=60)
    assert not Tick.objects.exists()

    every_second = every(1, IntervalSchedule.SECONDS)
    PeriodicTask.objects.filter(name="a").update(crontab=None, interval=every_second)
    wait_until(lambda: outcomes(schedules[0]))
    CrontabSchedule.objects.update(minute="*", hour="*", day_of_month="*")
    schedules[1].args, schedules[1].crontab, schedules[1].interval = "[3, 4]", None, every_second
    PeriodicTask.objects.bulk_update([schedules[1]], ["args", "crontab", "interval"])
    wait_until(lambda: Job.objects.filter(args=[3, 4]).exists())
    PeriodicTask.objects.filter(pk=broken.pk).update(args="[5, 6]", interval=every_second)
    wait_until(lambda: Job.objects.filter(args=[5, 6]).exists())
    assert error_of(broken) == ""

    PeriodicTask.objects.filter(name="a").update(enabled=False)
    seen = len(moments(schedules[1]))
    wait_until(lambda: len(moments(schedules[1])) >= seen + 3)
    disabled = moments(schedules[0])
    wait_until(lambda: len(moments(schedules[1])) >= seen + 6)
    assert moments(schedules[0]) == disabled
    assert_ledger_consistent()


def test_periodic_tasks_of_another_app_run_from_the_tables_and_from_beat_schedule(processes: Processes) -> None:
    task = "tests.third_party.tasks.clean_up"
    processes.worker("default", include=["tests.third_party.tasks"])
    for _ in range(2):
        start_beat(processes, BEAT_ENTRY=task)
    make_schedule("row", task=task, args="[]", kwargs='{"days": 30}', interval=every(1, IntervalSchedule.SECONDS))
    for name, days in (("row", 30), ("entry of code", 7)):
        done = Job.objects.filter(state="completed", task=task, headers__periodic_task_name=name)
        wait_until(lambda done=done: done.count() >= 3, timeout=90)  # type: ignore[misc]
        assert {job.result for job in done} == {f"removed what is older than {days} days"}
    assert IntervalSchedule.objects.filter(every=1).count() == 1
    assert_ledger_consistent()


def test_no_tick_is_skipped_or_doubled_while_postgresql_is_restarted_and_killed(
    processes: Processes, postgres_server: Server
) -> None:
    schedule = make_schedule(interval=every(1, IntervalSchedule.SECONDS))
    CatchUp.objects.create(periodic_task=schedule, policy="all")
    beats = [start_beat(processes) for _ in range(2)]
    for harm in (postgres_server.stop, postgres_server.kill):
        seen = len(moments(schedule))
        wait_until(lambda seen=seen: len(moments(schedule)) >= seen + 3, timeout=60)  # type: ignore[misc]
        connections.close_all()
        harm()
        postgres_server.start()
    seen = len(moments(schedule))
    wait_until(lambda: len(moments(schedule)) >= seen + 3, timeout=60)
    assert [beat.status for beat in beats] == [None, None]
    for beat in beats:
        beat.kill()
    assert_each_tick_has_one_job(schedule)
    assert_ledger_consistent()
