"""The pacer, one look at a time, on real PostgreSQL and Redis."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from devstack.throwaway import Server
from jobs import below, claims, selectors
from jobs.dispatcher import levels, pacing
from jobs.dispatcher.pacing import Pacer
from jobs.doorbell import PACED, Doorbell
from jobs.limits import COLUMNS, lane_of
from jobs.models import Job, Limit, QueueControl, RateStart, Worker
from jobs.queues import QUEUES
from tests import sample_tasks
from tests.jobs.factories import claim_job, make_job, make_worker
from tests.jobs.plans import rows_read

pytestmark = pytest.mark.django_db


@pytest.fixture
def doorbell(empty_redis: None) -> Iterator[Doorbell]:
    doorbell = Doorbell.patient()
    yield doorbell
    doorbell.close()


@pytest.fixture
def pacer(doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacer]:
    """The pacer, which leaves nothing to a later look, where a worker of every queue lives."""
    for module, name in (
        (pacing, "CIRCUMSTANCES_SECONDS"),
        (pacing, "TOP_UP_SECONDS"),
        (levels, "WALK_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    make_worker(queues=list(QUEUES), concurrency=20)
    pacer = Pacer()
    yield pacer
    pacer.close()


def granted(doorbell: Doorbell, queue: str = "default") -> set[UUID]:
    """The jobs that are granted, and that no worker has taken yet."""
    return doorbell.granted([queue])[queue]


def take(doorbell: Doorbell, queue: str = "default", count: int = 1000) -> list[UUID]:
    """Takes grants as a worker does, the most urgent first."""
    return [taken.job_id for taken in doorbell.take([queue], count) if taken.job_id is not None]


def make_jobs(count: int, **fields: Any) -> list[Job]:
    own = {name: fields.get(name) for name in COLUMNS}
    values = {"task": "t", "queue": "default", "state": "waiting", "lane": lane_of(own), **fields}
    return Job.objects.bulk_create([Job(**values) for _ in range(count)])


def later(pacer: Pacer, seconds: float) -> None:
    """As if so many seconds had passed since the grants."""
    pacer._granted = {
        job_id: replace(grant, sent_at=grant.sent_at - seconds) for job_id, grant in pacer._granted.items()
    }


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{"queue": "email"}, {"rate_key": "t"}, {"concurrency_key": "u"}])
def test_enqueueing_a_job_with_limits_wakes_the_leader_and_no_worker(
    doorbell: Doorbell, options: dict[str, Any]
) -> None:
    sample_tasks.add.apply_async((1, 2), **options)
    assert doorbell.message_counts(QUEUES) == dict.fromkeys(QUEUES, 0)
    assert doorbell.listen([PACED], 1)
    assert not doorbell.listen([PACED], 0)


def test_as_many_are_granted_as_may_start(pacer: Pacer, doorbell: Doorbell) -> None:
    make_jobs(30, queue="email")
    for _ in range(3):
        pacer.look()
    assert len(granted(doorbell, "email")) == 10


def test_jobs_without_limits_are_granted_to_nobody(pacer: Pacer, doorbell: Doorbell) -> None:
    make_jobs(3)
    [limited] = make_jobs(1, rate_key="t")
    pacer.look()
    assert granted(doorbell) == {limited.pk}


def test_the_most_urgent_are_granted_first(pacer: Pacer, doorbell: Doorbell) -> None:
    make_jobs(30, queue="email", priority=9)
    urgent = [make_job(queue="email", priority=1), make_job(queue="email", priority=1, rate_key="t")]
    pacer.look()
    taken = take(doorbell, "email")
    assert set(taken[:2]) == {job.pk for job in urgent}
    assert len(taken) == 10


def test_a_grant_that_nobody_takes_up_holds_its_slot_as_long_as_it_is_there(pacer: Pacer, doorbell: Doorbell) -> None:
    make_jobs(30, queue="email")
    pacer.look()
    later(pacer, 2)
    pacer.look()
    assert len(granted(doorbell, "email")) == 10
    take(doorbell, "email")
    pacer.look()
    assert len(granted(doorbell, "email")) == 10


def test_grants_that_redis_has_lost_are_given_again_after_a_second_and_not_before(
    pacer: Pacer, doorbell: Doorbell
) -> None:
    make_jobs(30, queue="email")
    pacer.look()
    take(doorbell, "email")
    pacer.look()
    assert granted(doorbell, "email") == set()
    later(pacer, 2)
    pacer.look()
    assert len(granted(doorbell, "email")) == 10


def test_the_next_look_comes_when_the_next_start_is_free(
    pacer: Pacer, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "_REST_PER_LOOK", 0.0)
    worker = make_worker()
    for job in make_jobs(11, queue="email")[:10]:
        claim_job(job, worker)
    RateStart.objects.update(started_at=Now() - timedelta(seconds=0.9))
    assert pacer.look() <= 0.1
    assert granted(doorbell, "email") == set()


def test_the_next_look_comes_soon_also_where_the_next_start_is_far_away(pacer: Pacer) -> None:
    QueueControl.objects.create(name="video", rate_limit="1/h")
    worker = make_worker()
    claim_job(make_job(queue="video"), worker)
    make_job(queue="video")
    assert pacer.look() == pacing.LONGEST_SECONDS


def test_a_queue_with_grants_enough_is_looked_at_soon_while_they_are_taken_and_else_seldom(
    pacer: Pacer, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_jobs(100, rate_key="t", rate_limit="1000/h")
    pacer.look()
    full = len(granted(doorbell))
    monkeypatch.setattr(pacing, "TOP_UP_SECONDS", 3600)
    for _ in range(8):
        pause = pacer.look()
    assert pause == pacing.LONGEST_SECONDS
    worker = make_worker()
    for job_id in take(doorbell, count=3):
        claim_job(Job.objects.get(pk=job_id), worker)
    assert pacer.look() < pacing.LONGEST_SECONDS
    assert len(granted(doorbell)) == full - 3


def test_with_nothing_to_pace_the_pacer_looks_seldom(pacer: Pacer) -> None:
    assert pacer.look() == pacing.IDLE_SECONDS
    make_jobs(5)
    assert pacer.look() == pacing.IDLE_SECONDS


def test_a_key_that_is_exhausted_keeps_no_other_waiting_however_many_jobs_it_has(
    pacer: Pacer, doorbell: Doorbell
) -> None:
    worker = make_worker()
    blocked, free = {"rate_key": "blocked", "rate_limit": "1/h"}, {"rate_key": "free", "rate_limit": "1/h"}
    claim_job(make_job(**blocked), worker)
    make_jobs(3_000, priority=0, **blocked)
    others = [make_job(priority=9, **free), make_job(priority=9, concurrency_key="u", concurrency_limit=1)]
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    with CaptureQueriesContext(connection) as queries:
        pacer.look()
    assert granted(doorbell) == {job.pk for job in others}
    for query in queries:
        if '"jobs_job"' in query["sql"] or "jobs_job " in query["sql"]:
            assert rows_read(query["sql"]) < 200, query["sql"]


def test_many_keys_are_each_given_what_is_free_and_keep_no_queue_waiting(
    pacer: Pacer, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    Worker.objects.update(concurrency=300)
    monkeypatch.setattr(levels, "GAPS_AT_ONCE", 100)
    for number in range(450):
        make_jobs(3, concurrency_key=f"user:{number}", concurrency_limit=1)
    make_jobs(20, queue="email")
    counts = []
    for _ in range(6):
        pacer.look()
        counts.append((len(granted(doorbell)), len(granted(doorbell, "email"))))
    assert 90 <= counts[0][0] <= 100
    assert counts[0][1] == 10
    assert counts[-1] == (450, 10)


def test_more_keys_than_are_remembered_are_all_served(
    pacer: Pacer, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is.
    monkeypatch.setattr(below, "_SLOW_STATEMENT_SECONDS", 3600)
    monkeypatch.setattr(levels, "MOST_LEVELS", 60)
    monkeypatch.setattr(levels, "GAPS_AT_ONCE", 25)
    monkeypatch.setattr(pacing, "LEVELS_AT_ONCE", 20)
    for number in range(300):
        # Most of them have to wait for good.
        key = {"concurrency_key": f"user:{number}", "concurrency_limit": 1}
        if number % 3:
            claim_job(make_job(**key), make_worker())
        make_jobs(1, **key)
    started: set[UUID] = set()
    for _ in range(80):
        pacer.look()
        started |= set(start_some(doorbell, "default", 1000))
        assert len(pacer.levels.known) <= 60
    assert len(started) == 100


@pytest.mark.parametrize(("concurrency", "most"), [(1, 16), (12, 24)])
def test_a_queue_gets_no_more_grants_than_its_workers_can_use(
    pacer: Pacer, doorbell: Doorbell, concurrency: int, most: int
) -> None:
    Worker.objects.update(concurrency=concurrency)
    make_jobs(40, rate_key="t")
    make_jobs(40, concurrency_key="u", concurrency_limit=100)
    for _ in range(3):
        pacer.look()
    assert selectors.most_grants()["default"] == len(granted(doorbell)) == most


@pytest.fixture
def make_pacer(pacer: Pacer) -> Iterator[Callable[[], Pacer]]:
    """Makes leaders that know nothing of those before them."""
    with ExitStack() as stack:

        def make() -> Pacer:
            new = Pacer()
            stack.callback(new.close)
            return new

        yield make


def test_leaders_that_come_and_go_leave_no_grants_behind_that_add_up(
    make_pacer: Callable[[], Pacer], doorbell: Doorbell
) -> None:
    Worker.objects.update(concurrency=1)
    for priority in reversed(range(10)):
        urgent = {job.pk for job in make_jobs(20, queue="email", priority=priority, rate_key="t")}
        urgent_here = {job.pk for job in make_jobs(20, priority=priority, rate_key="t")}
        leader = make_pacer()
        for _ in range(3):
            leader.look()
        assert len(granted(doorbell)) == 16
        assert granted(doorbell) <= urgent_here
        assert 0 < len(granted(doorbell, "email")) <= 16
        assert granted(doorbell, "email") <= urgent


def test_a_new_leader_leaves_the_grants_of_the_last_one_alone_while_it_has_none_to_give(
    pacer: Pacer, make_pacer: Callable[[], Pacer], doorbell: Doorbell
) -> None:
    [job] = make_jobs(1, rate_key="t")
    pacer.look()
    QueueControl.objects.create(name="default", paused_at=Now())
    make_pacer().look()
    assert granted(doorbell) == {job.pk}


def test_two_that_take_themselves_for_the_leader_grant_no_more_than_one(
    make_pacer: Callable[[], Pacer], doorbell: Doorbell
) -> None:
    Worker.objects.update(concurrency=1)
    pacers = [make_pacer(), make_pacer()]
    for number in range(8):
        make_jobs(20, rate_key="t", priority=9 - number)
        for one in pacers:
            one.look()
            assert len(granted(doorbell)) == 16
    urgent = {job.pk for job in make_jobs(16, rate_key="t", priority=0)}
    for _ in range(3):
        make_jobs(1, rate_key="t", priority=9)
        pacers[0].levels.doubt()
        later(pacers[0], 2)
        take(doorbell)
        pacers[0].look()
    assert granted(doorbell) == urgent


@pytest.mark.parametrize("step", ["grant", "withdraw_others", "granted"])
def test_a_leader_whose_redis_hangs_in_the_middle_grants_no_more_than_before(
    pacer: Pacer, doorbell: Doorbell, redis_server: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    Worker.objects.update(concurrency=1)
    pacer._doorbell = Doorbell.within(0.1)
    make_jobs(40, rate_key="t", priority=9)
    pacer.look()
    assert len(granted(doorbell)) == 16
    take(doorbell, count=10)
    later(pacer, 2)
    pacer._knows_all = step != "withdraw_others"
    do = getattr(pacer._doorbell, step)

    def hang(*args: Any, **options: Any) -> Any:
        redis_server.freeze()
        return do(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pacer._doorbell, step, hang)
        assert pacer.look() == pacing.LONGEST_SECONDS
    redis_server.thaw()
    urgent = {job.pk for job in make_jobs(20, rate_key="t", priority=0)}
    for _ in range(3):
        pacer.look()
        assert len(granted(doorbell)) <= 16
    assert granted(doorbell) <= urgent
    assert len(granted(doorbell)) == 16


def test_where_workers_go_the_least_urgent_grants_are_taken_back(pacer: Pacer, doorbell: Doorbell) -> None:
    urgent = {job.pk for job in make_jobs(16, rate_key="t", priority=1)}
    others = {job.pk for job in make_jobs(30, rate_key="t", priority=8)}
    pacer.look()
    assert len(granted(doorbell)) == 40
    Worker.objects.update(concurrency=1)
    pacer.look()
    assert granted(doorbell) == urgent
    Worker.objects.update(concurrency=40)
    pacer.look()
    assert granted(doorbell) == urgent | others


def test_jobs_whose_task_no_worker_knows_hold_no_slot_of_those_behind_them(pacer: Pacer, doorbell: Doorbell) -> None:
    Worker.objects.update(tasks=["here.task"])
    key: dict[str, Any] = {"concurrency_key": "u", "concurrency_limit": 1}
    unknown = make_job(task="gone.task", priority=0, **key)
    known = make_job(task="here.task", priority=9, **key)
    pacer.look()
    assert granted(doorbell) == {known.pk}
    make_worker(queues=["default"], tasks=["gone.task"])
    Job.objects.filter(pk=known.pk).update(state="completed", finished_at=Now())
    pacer.look()
    assert granted(doorbell) == {unknown.pk}


@pytest.mark.parametrize(
    "control",
    [{"paused_at": Now()}, {"rate_limited_until": Now() + timedelta(minutes=1)}, {"rate_limit": "1/h"}],
)
def test_halted_queues_get_no_grants(pacer: Pacer, doorbell: Doorbell, control: dict[str, Any]) -> None:
    QueueControl.objects.create(name="email", **control)
    make_jobs(20, queue="email")
    pacer.look()
    assert len(granted(doorbell, "email")) == (1 if "rate_limit" in control else 0)


def test_a_key_that_is_told_to_wait_gets_no_grants(pacer: Pacer, doorbell: Doorbell) -> None:
    Limit.objects.create(key="rate:host", rate_limited_until=Now() + timedelta(minutes=1))
    make_job(rate_key="host")
    pacer.look()
    assert granted(doorbell) == set()
    Limit.objects.update(rate_limited_until=Now())
    pacer.look()
    assert len(granted(doorbell)) == 1


def test_jobs_in_their_quiet_hours_get_no_grants(pacer: Pacer, doorbell: Doorbell) -> None:
    hour = timedelta(hours=1)
    now = claims.now()
    make_job(quiet_hours=f"{now - hour:%H:%M}-{now + hour:%H:%M} UTC")
    loud = make_job(quiet_hours=f"{now + hour:%H:%M}-{now - hour:%H:%M} UTC")
    pacer.look()
    assert granted(doorbell) == {loud.pk}


@pytest.mark.parametrize("limit", [{"quiet_hours": "22:00-07:00 Nowhere/Town"}, {"rate_key": "t", "rate_limit": "9/x"}])
def test_a_limit_of_one_job_that_means_nothing_is_passed_over_and_keeps_no_other_waiting(
    pacer: Pacer, doorbell: Doorbell, limit: dict[str, Any]
) -> None:
    strange = make_job(**limit)
    [other] = make_jobs(1, rate_key="u", rate_limit="1/h")
    pacer.look()
    assert granted(doorbell) == {strange.pk, other.pk}
    claim_job(strange, make_worker())


def test_running_jobs_and_grants_share_the_slots_of_a_key(pacer: Pacer, doorbell: Doorbell) -> None:
    fields = {"concurrency_key": "u", "concurrency_limit": 2}
    run = claim_job(make_job(**fields), make_worker())
    make_jobs(5, **fields)
    pacer.look()
    pacer.look()
    assert len(granted(doorbell)) == 1
    Job.objects.filter(pk=run.job_id).update(state="completed", finished_at=Now())
    pacer.look()
    assert len(granted(doorbell)) == 2


# -- Ageing ------------------------------------------------------------------------------------------------------------
OLD = timedelta(minutes=2)


def start_some(doorbell: Doorbell, queue: str, count: int) -> list[UUID]:
    """Takes so many grants as a worker of this queue does, and starts their jobs."""
    worker, taken = make_worker(), take(doorbell, queue, count)
    claims.claim({job_id: f"{worker.pk.hex}:{job_id}" for job_id in taken}, worker_id=worker.pk)
    return taken


@pytest.mark.parametrize(
    "limit", [{"queue": "email"}, {"rate_key": "t"}, {"concurrency_key": "u", "concurrency_limit": 500}]
)
def test_while_urgent_jobs_keep_coming_every_tenth_start_is_the_oldest_jobs(
    pacer: Pacer, doorbell: Doorbell, limit: dict[str, Any]
) -> None:
    QueueControl.objects.create(name="email", rate_limit="8/s")
    Worker.objects.update(concurrency=1)
    queue = limit.get("queue", "default")
    old = {job.pk for job in make_jobs(50, priority=9, run_at=Now() - OLD, **limit)}
    started: list[UUID] = []
    make_jobs(30, priority=1, **limit)
    for _ in range(40):
        # As enqueueing them names them.
        pacer.look([job.pk for job in make_jobs(5, priority=1, **limit)])
        started += start_some(doorbell, queue, 5)
        RateStart.objects.all().delete()
    share = sum(job_id in old for job_id in started)
    assert 0.05 * len(started) <= share <= 0.12 * len(started)


@pytest.mark.parametrize("limit", [{"queue": "email"}, {"rate_key": "t"}])
def test_what_has_waited_for_less_than_a_minute_lets_every_urgent_job_go_first(
    pacer: Pacer, doorbell: Doorbell, limit: dict[str, Any]
) -> None:
    queue = limit.get("queue", "default")
    young = {job.pk for job in make_jobs(50, priority=9, **limit)}
    started: list[UUID] = []
    for _ in range(20):
        pacer.look([job.pk for job in make_jobs(5, priority=1, **limit)])
        started += start_some(doorbell, queue, 5)
        RateStart.objects.all().delete()
    assert young.isdisjoint(started)


def test_an_urgent_job_of_a_key_does_not_wait_for_ever_behind_a_grant_that_nobody_takes(
    pacer: Pacer, doorbell: Doorbell
) -> None:
    key: dict[str, Any] = {"concurrency_key": "k", "concurrency_limit": 1}
    make_jobs(1, priority=9, **key)
    pacer.look()
    [urgent] = make_jobs(1, priority=0, **key)
    make_jobs(30, priority=1, rate_key="t")
    started: list[UUID] = []
    for _ in range(40):
        make_jobs(5, priority=1, rate_key="t")
        Job.objects.filter(state="waiting").update(run_at=F("run_at") - timedelta(seconds=30))
        later(pacer, 30)
        pacer.look()
        started += start_some(doorbell, "default", 5)
        Job.objects.filter(state="active").update(state="completed", finished_at=Now())
    assert urgent.pk in started


def test_the_old_jobs_of_one_queue_hide_none_of_another(pacer: Pacer, doorbell: Doorbell) -> None:
    Worker.objects.update(concurrency=1)
    for queue in ("default", "reports"):
        make_jobs(50, queue=queue, priority=9, run_at=Now() - 2 * OLD, rate_key="old")
        make_jobs(20, queue=queue, priority=1, rate_key="new")
    for _ in range(30):
        for queue in ("default", "reports"):
            make_jobs(2, queue=queue, priority=1, rate_key="new")
            pacer.look()
            start_some(doorbell, queue, 2)
    for queue in ("default", "reports"):
        old = Job.objects.filter(queue=queue, priority=9)
        assert 2 <= old.exclude(state="waiting").count() <= 8


def test_a_level_is_read_by_the_index_and_not_as_a_whole() -> None:
    make_jobs(5000, priority=5, rate_key="t")
    make_jobs(3, priority=7, rate_key="t")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    found = levels.Levels()
    with CaptureQueriesContext(connection) as queries:
        found.walk({"default": False})
        found.read({"default": 3}, now=claims.now(), held={}, tasks={"default": None})
    assert {place.priority: len(known.jobs) for place, known in found.known.items()} == {5: 3, 7: 3}
    assert all(rows_read(query["sql"]) < 50 for query in queries if "jobs_job" in query["sql"])


@pytest.mark.parametrize("state", ["cancelled", "completed"])
def test_the_grant_of_a_job_that_waits_no_more_is_taken_back(pacer: Pacer, doorbell: Doorbell, state: str) -> None:
    gone, left = make_jobs(1, rate_key="t")[0], make_jobs(1, rate_key="u")[0]
    pacer.look()
    assert granted(doorbell) == {gone.pk, left.pk}
    Job.objects.filter(pk=gone.pk).update(state=state, finished_at=Now())
    pacer.look()
    assert granted(doorbell) == {left.pk}
