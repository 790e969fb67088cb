"""What the leader counts beside an old snapshot, and what is told then."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from django.db import connection, connections
from django.db.models import Count, F, Min
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from jobs import below, claims, health, live_counts, paced, selectors
from jobs.dispatcher import counting, survey
from jobs.dispatcher import levels as levels_module
from jobs.dispatcher.counting import Walk
from jobs.dispatcher.levels import Levels
from jobs.live_counts import LiveCount
from jobs.models import Job
from jobs.paced import Place
from jobs.queues import QUEUES
from tests.jobs.connections import another_connection, over, somebody_waits_for_a_lock
from tests.jobs.factories import make_job, make_worker
from tests.jobs.plans import entries_read
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

AGES = [timedelta(seconds=-5), timedelta(0), timedelta(seconds=9), timedelta(minutes=7), timedelta(days=40)]
LANE = '["k",null,null,null,null]'


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A leader's, to which every count is slow."""
    monkeypatch.setattr(counting, "SLOW_SECONDS", 0)
    monkeypatch.setattr(counting, "SLOW_FACTOR", 0)
    monkeypatch.setattr(survey, "MANY_DEAD", -1)
    monkeypatch.setattr(survey, "_DELAYED_AT_ONCE", 3)
    monkeypatch.setattr(survey, "_RANGES_AT_ONCE", 2)
    for module in (survey, below):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    found = Walk()
    gaps = [paced.Gap(name, "", 10, "\U0010ffff", 0) for name in QUEUES]
    found.places = lambda: [level.place for level in paced.unknown_levels(gaps, limit=100)]
    return found


def survey_all(walk: Walk) -> None:
    """A survey from its begin to its end."""
    LiveCount.objects.all().delete()
    for _ in range(500):
        walk._survey._not_before = 0
        walk.run_once()
        if LiveCount.objects.exists():
            return
    raise AssertionError("The survey does not end")


def make_some() -> None:
    worker, gone = make_worker(queues=["default"], tasks=["task-0"]), make_worker(dead_at=Now(), settled_at=None)
    for age, queue, priority in product(AGES, ["default", "crm", "nobody's"], [0, 5, 9]):
        common: dict[str, Any] = {"queue": queue, "priority": priority}
        make_job(run_at=Now() - age, task=f"task-{priority}", **common)
        make_job(run_at=Now() - age, state="delayed", **common)
        make_job(run_at=Now() + age, state="delayed", **common, is_held=priority == 9)
        for owner in (worker, gone):
            make_job(state="active", worker_id=owner.pk, claim_token="t", started_at=Now() - age, **common)
    for number, priority in product(range(5), [2, 4]):
        lane = LANE.replace("k", f"k{number}")
        make_job(lane=lane, rate_key=f"k{number}", priority=priority, run_at=Now() - timedelta(hours=1), task="keyed")
    make_job(state="completed", finished_at=Now())


def test_all_that_lives_is_counted(walk: Walk) -> None:
    make_some()
    survey_all(walk)
    wanted = {
        (row["queue"], row["state"]): (row["number"], row["oldest"] if row["state"] == "waiting" else None)
        for row in Job.objects.exclude(state="completed")
        .values("queue", "state")
        .annotate(number=Count("*"), oldest=Min("run_at"))
    }
    told = live_counts.live(QUEUES)
    assert {(one.queue, one.state): (one.count, one.oldest_at) for one in told} == wanted
    assert all(one.counted_at is not None for one in told)
    assert live_counts.surveyed_tasks() == {
        **{name: set() for name in QUEUES},
        "crm": {"task-0", "task-5", "task-9"},
        "nobody's": {"task-0", "task-5", "task-9"},
        "default": {"keyed", "task-0", "task-5", "task-9"},
    }


@pytest.mark.parametrize("is_slow", [False, True])
def test_jobs_with_limits_are_counted_wherever_they_wait(
    walk: Walk, monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    # As in a queue that is paused or has no worker, in one that nobody declares, and where Redis is away.
    monkeypatch.setattr(below.AtOnce, "learn", lambda *_, **__: is_slow)
    for queue, number, priority in product(["crm", "default", "nobody's"], range(4), [0, 4, 9]):
        lane = LANE.replace("k", f"k{number}")
        for age in AGES[-2:]:
            make_job(queue=queue, lane=lane, rate_key=f"k{number}", priority=priority, task="keyed", run_at=Now() - age)
    some = [Place("crm", LANE.replace("k", "k1"), 4), Place("default", LANE.replace("k", "k2"), -1)]
    walk.places = lambda: some
    # Where each range is slow, each survey reads smaller ones than the last.
    for _ in range(8 if is_slow else 1):
        survey_all(walk)
        told = live_counts.live(QUEUES)
        assert {one.queue: one.count for one in told} == {"crm": 24, "default": 24, "nobody's": 24}
        assert (live_counts.surveyed_tasks() or {})["default"] == {"keyed"}
    assert bool(walk._survey._ranges.slow_levels) is is_slow


def test_jobs_of_unknown_tasks_are_counted_below_the_floors_of_their_levels(walk: Walk) -> None:
    make_worker(queues=["default"], tasks=["known"])
    for name, task in (("k1", "unknown"), ("k2", "known")):
        lane = LANE.replace("k", name)
        make_job(queue="default", lane=lane, rate_key=name, task=task, run_at=Now() - timedelta(hours=1))
    levels = Levels()
    levels.are_slow = True
    levels.walk({"default": False})
    levels.read({"default": 5}, now=claims.now(), held={}, tasks={"default": ["known"]})
    walk.places = levels.places
    survey_all(walk)
    assert [one.count for one in live_counts.live(QUEUES)] == [2]
    assert selectors.unknown_tasks() == {"default": {"unknown"}}


def test_beside_an_old_snapshot_no_statement_reads_many_of_the_lanes_that_died(
    walk: Walk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels_module, "MOST_LEVELS", 20)
    monkeypatch.setattr(levels_module, "WALK_SECONDS", 0)
    monkeypatch.setattr(below.AtOnce, "learn", lambda *_, **__: True)
    levels, tasks = Levels(), {"default": None}
    monkeypatch.setattr(walk, "places", levels.places)
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM jobs_job")
        dead = 1_600
        for begin in range(0, dead // 10, 20):
            keys = [f"k{number}" for number in range(begin, begin + 20) for _ in range(10)]
            jobs = Job.objects.bulk_create(
                Job(task="t", queue="default", state="waiting", lane=LANE.replace("k", key), rate_key=key)
                for key in keys
            )
            levels.hear([job.pk for job in jobs], tasks)
            levels.read({"default": 5}, now=claims.now(), held={}, tasks=tasks)
            Job.objects.filter(state="waiting").update(state="completed", finished_at=Now())
        levels._are_gaps_slow, levels._at_once.number = True, 1
        looks = []

        def listen(execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any) -> Any:
            if sql in (survey.WAITING_IN_RANGES, paced.UNKNOWN_LEVELS):
                looks.append((sql, parameters))
            return execute(sql, parameters, many, context)

        with connection.execute_wrapper(listen):
            while not levels.is_walked:
                levels.walk({"default": False})
            for _ in range(2):
                survey_all(walk)
        read = [entries_read(sql, parameters) for sql, parameters in looks]
        assert sum(read) > dead
        assert max(read) < dead / 10


def test_questions_count_nothing_while_the_leader_surveys(walk: Walk) -> None:
    make_some()
    survey_all(walk)
    make_worker(queues=["default"], tasks=["keyed"])
    with CaptureQueriesContext(connection) as queries:
        assert selectors.unknown_tasks() == {"default": {"task-5", "task-9"}}
        statuses = selectors.queue_statuses()
    assert statuses["default"].waiting == 25
    assert statuses["default"].counted_seconds_ago.keys() == {"waiting", "active", "delayed"}
    assert statuses["images"].waiting == 0
    assert not any("FROM jobs_job" in query["sql"] for query in queries)
    assert any("task-5" in reason for reason in health.check().reasons)


def test_what_has_grown_old_is_counted_again(walk: Walk) -> None:
    make_job()
    survey_all(walk)
    make_job()
    assert [(one.count, one.counted_at is None) for one in live_counts.live(QUEUES)] == [(1, False)]
    LiveCount.objects.update(counted_at=F("counted_at") - timedelta(minutes=3))
    assert [(one.count, one.counted_at is None) for one in live_counts.live(QUEUES)] == [(2, True)]
    assert live_counts.surveyed_tasks() is None


def test_once_the_dead_are_gone_jobs_are_counted_at_each_question(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    make_job()
    survey_all(walk)
    monkeypatch.setattr(survey, "MANY_DEAD", 10**9)
    survey_all(walk)
    walk._not_before = 0
    walk.run_once()
    make_job()
    assert not LiveCount.objects.exists()
    assert [one.count for one in live_counts.live(QUEUES)] == [2]


def test_the_next_leader_goes_on_with_surveys_without_a_count(walk: Walk) -> None:
    make_job()
    survey_all(walk)
    following = Walk()
    with CaptureQueriesContext(connection) as queries:
        following.run_once()
    assert following._survey.is_on
    assert not any("FROM jobs_job" in query["sql"] for query in queries)


def test_two_surveys_that_end_at_once_both_write(walk: Walk) -> None:
    make_job()
    survey_all(walk)
    before = set(LiveCount.objects.values_list("pk", flat=True))
    with another_connection() as other:
        with over(other):
            LiveCount.objects.update(count=7)
        make_job()
        with ThreadPoolExecutor(1) as second:
            written = second.submit(write_again, walk)
            wait_until(somebody_waits_for_a_lock)
            other.commit()
            written.result(timeout=30)
    assert [one.count for one in live_counts.live(QUEUES)] == [2]
    assert set(LiveCount.objects.values_list("pk", flat=True)) == before


def write_again(walk: Walk) -> None:
    """What the leader does at its next survey, in a thread of its own."""
    walk._survey._not_before = 0
    try:
        counted = LiveCount.objects.get(queue="default", state="waiting").counted_at
        for _ in range(500):
            walk.run_once()
            walk._survey._not_before = 0
            if LiveCount.objects.get(queue="default", state="waiting").counted_at > counted:
                return
        raise AssertionError("The survey does not end")
    finally:
        connections.close_all()


def test_a_survey_that_fails_is_made_anew(walk: Walk) -> None:
    make_job()
    places, walk.places = walk.places, lambda: [Place("default", "\0", 0)]
    walk.run_once()
    with pytest.raises(Exception, match="NUL"):
        walk.run_once()
    walk.places = places
    survey_all(walk)
    assert [one.count for one in live_counts.live(QUEUES)] == [1]


def test_beside_an_old_snapshot_the_leader_begins_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MANY_DEAD", 2_000)
    for module in (survey, below):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(counting, "SLOW_SECONDS", 0)
    monkeypatch.setattr(counting, "SLOW_FACTOR", 0)
    walk = Walk()
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM jobs_job")
        Job.objects.bulk_create(Job(task="t", queue="default", state="waiting") for _ in range(2_500))
        Job.objects.update(state="completed", finished_at=Now())
        make_job(queue="default")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
        walk.run_once()
        assert walk._survey.is_on
        survey_all(walk)
    assert [(one.queue, one.count) for one in live_counts.live(QUEUES)] == [("default", 1)]
