"""The pacer, one look at a time, on real PostgreSQL and Redis."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from celery import current_app
from django.conf import settings
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from jobs import claims, publish
from jobs.dispatcher import pacing, slots
from jobs.dispatcher.pacing import Pacer
from jobs.dispatcher.topup import TopUp
from jobs.limits import COLUMNS, lane_of
from jobs.models import Job, Limit, QueueControl
from tests import sample_tasks
from tests.jobs.factories import claim_job, make_job, make_worker

pytestmark = pytest.mark.django_db


@pytest.fixture
def broker(empty_redis: None) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        yield client


@pytest.fixture
def pacer(broker: "redis.Redis") -> Iterator[Pacer]:
    pacer = Pacer(current_app)
    yield pacer
    pacer.close()


@pytest.fixture
def top_up(broker: "redis.Redis") -> Iterator[TopUp]:
    top_up = TopUp(current_app)
    yield top_up
    top_up.close()


def hinted(broker: "redis.Redis", *queues: str) -> list[str]:
    """The ids of the jobs that are hinted, in the order in which a worker of these queues takes them."""
    lists = zip(*(publish.hint_lists(queue) for queue in queues or ["default"]), strict=True)
    messages = [message for keys in lists for key in keys for message in reversed(broker.lrange(key, 0, -1))]
    return [json.loads(message)["headers"]["id"] for message in messages]


def make_jobs(count: int, **fields: Any) -> list[Job]:
    own = {name: fields.get(name) for name in COLUMNS}
    values = {"task": "t", "queue": "default", "state": "waiting", "lane": lane_of(own), **fields}
    return Job.objects.bulk_create([Job(**values) for _ in range(count)])


def later(pacer: Pacer, seconds: float) -> None:
    """As if so many seconds had passed since the grants."""
    pacer._granted = {
        job_id: pacing.Grant(grant.keys, grant.sent_at - seconds) for job_id, grant in pacer._granted.items()
    }


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{"queue": "email"}, {"rate_key": "t"}, {"concurrency_key": "u"}])
def test_enqueueing_hints_at_no_job_with_limits_and_neither_does_the_top_up(
    broker: "redis.Redis", top_up: TopUp, options: dict[str, Any]
) -> None:
    sample_tasks.add.apply_async((1, 2), **options)
    for _ in range(3):
        top_up.run_once()
    assert hinted(broker, options.get("queue", "default")) == []


def test_as_many_are_hinted_as_may_start(pacer: Pacer, broker: "redis.Redis") -> None:
    make_jobs(30, queue="email")
    for _ in range(3):
        pacer.look()
    assert len(hinted(broker, "email")) == 10


def test_the_most_urgent_are_hinted_first(pacer: Pacer, broker: "redis.Redis") -> None:
    make_jobs(30, queue="email", priority=9)
    urgent = [make_job(queue="email", priority=1), make_job(queue="email", priority=1, rate_key="t")]
    pacer.look()
    assert hinted(broker, "email")[:2] == [str(job.pk) for job in urgent]
    assert len(hinted(broker, "email")) == 10


def test_a_grant_that_nobody_takes_up_holds_its_slot_as_long_as_its_hint_is_there(
    pacer: Pacer, broker: "redis.Redis"
) -> None:
    make_jobs(30, queue="email")
    pacer.look()
    later(pacer, 2)
    pacer.look()
    assert len(hinted(broker, "email")) == 10
    broker.flushall()
    pacer.look()
    assert len(hinted(broker, "email")) == 10


def test_a_wiped_redis_is_filled_again_after_a_second_and_not_before(pacer: Pacer, broker: "redis.Redis") -> None:
    make_jobs(30, queue="email")
    pacer.look()
    broker.flushall()
    pacer.look()
    assert hinted(broker, "email") == []
    later(pacer, 2)
    pacer.look()
    assert len(hinted(broker, "email")) == 10


def test_the_next_look_comes_when_the_next_start_is_free(pacer: Pacer, broker: "redis.Redis") -> None:
    worker = make_worker()
    for job in make_jobs(11, queue="email")[:10]:
        claim_job(job, worker)
    Limit.objects.update(starts=[])
    row = Limit.objects.get(pk="queue:email")
    row.starts = [claims.now() - timedelta(seconds=0.9)] * 10
    row.save()
    assert pacer.look() <= 0.1
    assert hinted(broker, "email") == []


def test_the_next_look_comes_soon_also_where_the_next_start_is_far_away(pacer: Pacer) -> None:
    QueueControl.objects.create(name="video", rate_limit="1/h")
    worker = make_worker()
    claim_job(make_job(queue="video"), worker)
    make_job(queue="video")
    assert pacer.look() == pacing.LONGEST_SECONDS


def test_with_nothing_to_pace_the_pacer_looks_seldom(pacer: Pacer) -> None:
    make_jobs(5)
    assert pacer.look() == pacing.LONGEST_SECONDS


def test_a_key_that_is_exhausted_keeps_no_other_waiting_however_many_jobs_it_has(
    pacer: Pacer, broker: "redis.Redis"
) -> None:
    worker = make_worker()
    blocked, free = {"rate_key": "blocked", "rate_limit": "1/h"}, {"rate_key": "free", "rate_limit": "1/h"}
    claim_job(make_job(**blocked), worker)
    make_jobs(10_000, priority=0, **blocked)
    others = [make_job(priority=9, **free), make_job(priority=9, concurrency_key="u", concurrency_limit=1)]
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    with CaptureQueriesContext(connection) as queries:
        pacer.look()
    assert set(hinted(broker)) == {str(job.pk) for job in others}
    for query in queries:
        if '"jobs_job"' in query["sql"] or "jobs_job " in query["sql"]:
            assert rows_read(query["sql"]) < 200, query["sql"]


def rows_read(sql: str) -> int:
    """The most rows that any step of a query goes through."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        (plans,) = cursor.fetchone()
    most = 0
    steps = [json.loads(plans)[0]["Plan"] if isinstance(plans, str) else plans[0]["Plan"]]
    while steps:
        step = steps.pop()
        removed = step.get("Rows Removed by Filter", 0) + step.get("Rows Removed by Index Recheck", 0)
        most = max(most, (step["Actual Rows"] + removed) * step["Actual Loops"])
        steps += step.get("Plans", [])
    return most


def test_many_keys_are_each_given_what_is_free_and_keep_no_queue_waiting(
    pacer: Pacer, broker: "redis.Redis", settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.JOBS_WINDOW = 5000
    monkeypatch.setattr(slots, "LANES_AT_ONCE", 100)
    for number in range(450):
        make_jobs(3, concurrency_key=f"user:{number}", concurrency_limit=1)
    make_jobs(20, queue="email")
    counts = []
    for _ in range(5):
        pacer.look()
        counts.append((len(hinted(broker)), len(hinted(broker, "email"))))
    assert 90 <= counts[0][0] <= 100
    assert counts[-1][0] == 450
    assert [queue for _, queue in counts] == [10] * 5


def test_a_queue_gets_no_more_hints_than_the_window(pacer: Pacer, broker: "redis.Redis", settings: Any) -> None:
    settings.JOBS_WINDOW = 5
    make_jobs(20, rate_key="t")
    for _ in range(3):
        pacer.look()
    assert len(hinted(broker)) == 5


@pytest.mark.parametrize(
    "control",
    [{"paused_at": Now()}, {"rate_limited_until": Now() + timedelta(minutes=1)}, {"rate_limit": "1/h"}],
)
def test_halted_queues_get_no_hints(pacer: Pacer, broker: "redis.Redis", control: dict[str, Any]) -> None:
    QueueControl.objects.create(name="email", **control)
    make_jobs(20, queue="email")
    pacer.look()
    assert len(hinted(broker, "email")) == (1 if "rate_limit" in control else 0)


def test_a_key_that_is_told_to_wait_gets_no_hints(pacer: Pacer, broker: "redis.Redis") -> None:
    Limit.objects.create(key="rate:host", rate_limited_until=Now() + timedelta(minutes=1))
    make_job(rate_key="host")
    pacer.look()
    assert hinted(broker) == []
    Limit.objects.update(rate_limited_until=Now())
    pacer.look()
    assert len(hinted(broker)) == 1


def test_jobs_in_their_quiet_hours_get_no_hints(pacer: Pacer, broker: "redis.Redis") -> None:
    hour = timedelta(hours=1)
    now = claims.now()
    make_job(quiet_hours=f"{now - hour:%H:%M}-{now + hour:%H:%M} UTC")
    loud = make_job(quiet_hours=f"{now + hour:%H:%M}-{now - hour:%H:%M} UTC")
    pacer.look()
    assert hinted(broker) == [str(loud.pk)]


@pytest.mark.parametrize("limit", [{"quiet_hours": "22:00-07:00 Nowhere/Town"}, {"rate_key": "t", "rate_limit": "9/x"}])
def test_a_limit_of_one_job_that_means_nothing_is_passed_over_and_keeps_no_other_waiting(
    pacer: Pacer, broker: "redis.Redis", limit: dict[str, Any]
) -> None:
    strange = make_job(**limit)
    [other] = make_jobs(1, rate_key="u", rate_limit="1/h")
    pacer.look()
    assert set(hinted(broker)) == {str(strange.pk), str(other.pk)}
    claim_job(strange, make_worker())


def test_running_jobs_and_hints_share_the_slots_of_a_key(pacer: Pacer, broker: "redis.Redis") -> None:
    fields = {"concurrency_key": "u", "concurrency_limit": 2}
    run = claim_job(make_job(**fields), make_worker())
    make_jobs(5, **fields)
    pacer.look()
    pacer.look()
    assert len(hinted(broker)) == 1
    Job.objects.filter(pk=run.job_id).update(state="completed", finished_at=Now())
    pacer.look()
    assert len(hinted(broker)) == 2


# -- Ageing ------------------------------------------------------------------------------------------------------------
OLD = timedelta(minutes=2)


def let_workers_start(broker: "redis.Redis", queues: str, count: int) -> list[str]:
    """Takes so many hints as a worker of these queues does, and starts their jobs."""
    names = queues.split(",")
    worker, taken = make_worker(), hinted(broker, *names)[:count]
    for job_id in taken:
        for key in (key for name in names for key in publish.hint_lists(name)):
            for message in broker.lrange(key, 0, -1):
                if job_id.encode() in message:
                    broker.lrem(key, 1, message.decode())
        job = Job.objects.get(pk=job_id)
        if job.state == "waiting":
            claims.claim({job.pk: f"{worker.pk.hex}:{job_id}"}, worker_id=worker.pk)
    return taken


def a_minute_later(top_up: TopUp) -> None:
    """As if the hints in Redis had lain there for a minute more."""
    top_up.ageing.seen_at = {job_id: seen - 60 for job_id, seen in top_up.ageing.seen_at.items()}


def start_five_in_a_busy_minute(pacer: Pacer, top_up: TopUp, broker: "redis.Redis") -> list[str]:
    """As many urgent jobs come as workers then start."""
    make_jobs(5, priority=1)
    pacer.look()
    top_up.run_once()
    a_minute_later(top_up)
    top_up.run_once()
    return let_workers_start(broker, "default", 5)


@pytest.mark.parametrize("queue", ["default", "email"])
def test_while_urgent_jobs_keep_coming_every_tenth_start_is_the_oldest_jobs(
    pacer: Pacer, top_up: TopUp, broker: "redis.Redis", queue: str
) -> None:
    if queue == "email":
        QueueControl.objects.create(name="email", rate_limit="8/s")
    old = {str(job.pk) for job in make_jobs(50, queue=queue, priority=9, run_at=Now() - OLD)}
    started: list[str] = []
    make_jobs(30, queue=queue, priority=1)
    for _ in range(40):
        make_jobs(5, queue=queue, priority=1)
        pacer.look()
        top_up.run_once()
        top_up.run_once()
        started += let_workers_start(broker, queue, 5)
        Limit.objects.update(starts=[])
    share = sum(job_id in old for job_id in started)
    assert 0.05 * len(started) <= share <= 0.12 * len(started)


@pytest.mark.parametrize("behind", [{"queue": "webhooks"}, {"queue": "crm"}, {"rate_key": "t"}])
def test_neither_another_queue_of_their_worker_nor_limits_of_their_own_keep_old_jobs_waiting_for_ever(
    pacer: Pacer, top_up: TopUp, broker: "redis.Redis", behind: dict[str, Any]
) -> None:
    make_worker(queues=["default", "webhooks", "crm"])
    old = {str(job.pk) for job in make_jobs(50, **{"queue": "default", "priority": 9, "run_at": Now() - OLD, **behind})}
    started: list[str] = []
    make_jobs(30, priority=1)
    for _ in range(40):
        make_jobs(5, priority=1)
        pacer.look()
        top_up.run_once()
        a_minute_later(top_up)
        top_up.run_once()
        started += let_workers_start(broker, "default,webhooks,crm", 5)
        Limit.objects.update(starts=[])
    share = sum(job_id in old for job_id in started)
    assert 0.05 * len(started) <= share <= 0.12 * len(started)


def test_an_urgent_job_of_a_key_does_not_wait_for_ever_behind_a_hint_that_nobody_takes(
    pacer: Pacer, top_up: TopUp, broker: "redis.Redis"
) -> None:
    key = {"concurrency_key": "k", "concurrency_limit": 1}
    make_jobs(1, priority=9, **key)
    pacer.look()
    [urgent] = make_jobs(1, priority=0, **key)
    make_jobs(30, priority=1)
    started: list[str] = []
    for _ in range(10):
        started += start_five_in_a_busy_minute(pacer, top_up, broker)
        Job.objects.filter(state="active").update(state="completed", finished_at=Now())
    assert str(urgent.pk) in started


def test_hints_at_jobs_that_have_ended_take_no_turn_of_those_that_wait(
    pacer: Pacer, top_up: TopUp, broker: "redis.Redis"
) -> None:
    ended = make_jobs(30, priority=9, rate_key="t")
    pacer.look()
    top_up.run_once()
    Job.objects.filter(pk__in=[job.pk for job in ended]).update(state="completed", finished_at=Now())
    a_minute_later(top_up)
    [old] = make_jobs(1, priority=9, rate_key="t")
    make_jobs(30, priority=1)
    started: list[str] = []
    for _ in range(10):
        started += start_five_in_a_busy_minute(pacer, top_up, broker)
    assert str(old.pk) in started


def test_queues_that_no_worker_serves_together_let_nothing_of_each_other_go_ahead(
    top_up: TopUp, broker: "redis.Redis"
) -> None:
    make_worker(queues=["default"])
    make_worker(queues=["reports"])
    [old] = make_jobs(1, queue="reports", priority=9, run_at=Now() - OLD)
    [urgent] = make_jobs(1, queue="reports", priority=5)
    make_jobs(30, priority=1)
    for _ in range(10):
        make_jobs(5, priority=1)
        top_up.run_once()
        top_up.run_once()
        let_workers_start(broker, "default", 5)
    assert hinted(broker, "reports") == [str(urgent.pk), str(old.pk)]


@pytest.mark.parametrize("queue", ["default", "email"])
def test_what_has_waited_for_less_than_a_minute_lets_every_urgent_job_go_first(
    pacer: Pacer, top_up: TopUp, broker: "redis.Redis", queue: str
) -> None:
    young = {str(job.pk) for job in make_jobs(50, queue=queue, priority=9)}
    started: list[str] = []
    for _ in range(20):
        make_jobs(5, queue=queue, priority=1)
        pacer.look()
        top_up.run_once()
        top_up.run_once()
        started += let_workers_start(broker, queue, 5)
        Limit.objects.update(starts=[])
    assert young.isdisjoint(started)


def test_an_urgent_job_is_hinted_although_the_window_is_full_of_others(
    top_up: TopUp, broker: "redis.Redis", settings: Any
) -> None:
    settings.JOBS_WINDOW = 20
    make_jobs(100, priority=5, run_at=Now() - OLD)
    top_up.run_once()
    top_up.run_once()
    urgent = make_job(priority=1)
    top_up.run_once()
    top_up.run_once()
    assert hinted(broker)[0] == str(urgent.pk)


def test_the_old_jobs_of_one_queue_hide_none_of_another() -> None:
    make_jobs(20, priority=9, run_at=Now() - 2 * OLD)
    make_jobs(3, queue="reports", priority=9, run_at=Now() - OLD)
    lanes = {claims.Lane("default"): 1, claims.Lane("reports"): 1}
    found = claims.longest_waiting(lanes, age=timedelta(minutes=1), limit=10, without=[])
    assert [job.lane.queue for job in found] == ["default"] * 10 + ["reports"] * 3


def test_old_jobs_that_were_not_looked_for_lose_no_turn(
    pacer: Pacer, broker: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    QueueControl.objects.create(name="email", rate_limit="5/s")
    [old] = make_jobs(1, queue="email", priority=9, run_at=Now() - OLD)
    for lanes in (0, 0, 0, 0, 50):
        monkeypatch.setattr(pacing, "_LANES_OF_OLD", lanes)
        make_jobs(5, queue="email", priority=1)
        pacer.look()
        started = let_workers_start(broker, "email", 5)
        Limit.objects.update(starts=[])
    assert str(old.pk) in started


def test_the_oldest_are_found_by_the_index_and_not_by_reading_the_backlog() -> None:
    make_jobs(5000, priority=5)
    make_jobs(3, priority=7, run_at=Now() - OLD)
    Job.objects.filter(priority=7).update(run_at=F("run_at") - OLD)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    with CaptureQueriesContext(connection) as queries:
        found = claims.longest_waiting({claims.Lane("default"): 1}, age=timedelta(minutes=1), limit=10, without=[])
    assert [job.priority for job in found] == [7, 7, 7]
    assert rows_read(queries[0]["sql"]) < 50
