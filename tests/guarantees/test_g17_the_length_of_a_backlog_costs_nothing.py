"""G17: however many jobs wait, Redis holds a bounded number of messages, and the next job is found at once."""

import random
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now

from devstack.throwaway import Server
from jobs import claims, health, services, settle
from jobs.doorbell import Doorbell
from jobs.limits import COLUMNS, lane_of
from jobs.models import Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.guarantees.messages import messages_counted
from tests.jobs.factories import make_job, make_worker
from tests.jobs.plans import rows_read
from tests.processes import Processes
from tests.variants import variant
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)


def make_backlog(count: int, **fields: Any) -> None:
    """So many jobs that are alike, by one statement."""
    values = {"task": sample_tasks.add.name, "queue": "default", "args": [1, 2], "state": "waiting", **fields}
    like = Job.objects.create(**values)
    columns = ", ".join(f'"{field.column}"' for field in Job._meta.concrete_fields if not field.primary_key)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO jobs_job (id, {columns}) SELECT gen_random_uuid(), {columns} FROM jobs_job"
            " CROSS JOIN generate_series(2, %s) WHERE id = %s",
            [count, like.pk],
        )
        cursor.execute("ANALYZE jobs_job")


def drop_the_backlog() -> None:
    """What is left would only be in the way of the other tests."""
    waiting = Job.objects.filter(state="waiting")
    waiting._raw_delete(waiting.db)
    wait_until(lambda: not Job.objects.filter(state="active").exists())


def test_redis_holds_a_bounded_number_of_messages_whoever_pushes_and_however_workers_come_and_go(
    processes: Processes,
) -> None:
    # The default queue has the ring, and the email queue sixteen grants.
    make_backlog(3000, task=sample_tasks.run_for.name, args=[0.02])
    make_backlog(1000, queue="email")
    with messages_counted() as counts:
        worker = processes.worker("default", pool="threads", concurrency=5)
        processes.worker("email", pool="threads", concurrency=2)
        for number in range(300):
            sample_tasks.add.delay(number, 1)
            sample_tasks.add.apply_async((number, 1), queue="email", priority=number % 10)
            if number == 100:
                worker.kill()
                worker = processes.worker("default", concurrency=2)
        wait_until(lambda: Job.objects.filter(queue="default", state="completed").count() > 500, timeout=60)
    counts.assert_bounded()
    drop_the_backlog()
    assert_ledger_consistent()


def test_however_leaders_and_redis_come_and_go_grants_do_not_add_up(processes: Processes, redis_server: Server) -> None:
    workers = [processes.worker("default", "email", pool="threads") for _ in range(2)]
    held = [sample_tasks.run_for.delay(60) for _ in workers]
    wait_until(lambda: Job.objects.filter(pk__in=[one.id for one in held], state="active").count() == 2)
    doorbell = Doorbell.patient()
    with messages_counted() as counts:
        for priority in (9, 7, 5, 3):
            urgent = {
                UUID(sample_tasks.add.apply_async((1, 2), priority=priority, rate_key="k", rate_limit="1000/s").id)
                for _ in range(20)
            }
            if priority == 5:
                workers.pop(0).kill()
            redis_server.freeze()
            # The leader asks after a second, and waits for longer than another: then it does not know what has arrived.
            time.sleep(4)
            redis_server.thaw()
            wait_until(lambda urgent=urgent: doorbell.granted(["default"])["default"] <= urgent)  # type: ignore[misc]
            enough = len(counts.for_workers) + 15
            wait_until(lambda enough=enough: len(counts.for_workers) > enough)  # type: ignore[misc]
    doorbell.close()
    counts.assert_bounded()
    for worker in workers:
        worker.kill()


def test_beside_a_hundred_thousand_waiting_a_webhook_and_a_grant_start_within_a_second(processes: Processes) -> None:
    make_backlog(100_000, task=sample_tasks.run_for.name, args=[0.02])
    processes.worker("default", "webhooks", "crm", pool="threads", concurrency=5)
    wait_until(lambda: Job.objects.filter(state="completed").count() > 20)
    late = []
    for _ in range(3):
        others = [sample_tasks.add.apply_async((1, 2), queue=queue) for queue in ("webhooks", "crm")]
        jobs = Job.objects.filter(pk__in=[other.id for other in others])
        wait_until(lambda jobs=jobs: jobs.filter(state="completed").count() == 2)  # type: ignore[misc]
        late += [job.started_at - job.created_at for job in jobs if job.started_at]
    # A machine that is busy may be late once.
    assert sorted(late)[len(late) // 2] < SECOND
    assert Job.objects.filter(state="waiting").count() > 50_000
    drop_the_backlog()


def test_a_claim_reads_a_few_rows_however_many_wait() -> None:
    worker = make_worker(queues=["default"])
    make_backlog(20_000, run_at=Now() - timedelta(minutes=5))
    make_backlog(10_000, queue="webhooks", priority=1)
    parameters = {
        "queue": "default",
        "count": 3,
        "token": "token",
        "tasks": [sample_tasks.add.name],
        "worker_id": worker.pk,
        "least_urgent": 9,
        "age": timedelta(minutes=1),
        "priorities": list(range(10)),
        "floors": [claims.now() - timedelta(hours=1)] * 10,
        "floor_ids": [UUID(int=0)] * 10,
    }
    for statement in (claims.CLAIM_NEXT, claims.CLAIM_ABOVE, claims.CLAIM_OLDEST):
        with transaction.atomic(), connection.cursor() as cursor:
            sql = cursor.mogrify(statement, parameters) if hasattr(cursor, "mogrify") else None
            assert sql is not None
            assert rows_read(sql) < 100, statement
            transaction.set_rollback(True)
    Job.objects.all().delete()


def test_jobs_start_in_the_order_of_their_priority_and_of_their_time(processes: Processes) -> None:
    now = claims.now()
    places = [(priority, age) for priority in (0, 3, 5, 9) for age in range(60)]
    random.Random(17).shuffle(places)
    Job.objects.bulk_create(
        Job(
            task=sample_tasks.run_for.name,
            queue="default",
            args=[0.005],
            state="waiting",
            priority=priority,
            run_at=now - timedelta(milliseconds=100 * age),
        )
        for priority, age in places
    )
    for _ in range(2):
        processes.worker("default", pool="threads", concurrency=3, waits=False)
    wait_until(lambda: not Job.objects.exclude(state="completed").exists(), timeout=60)
    wanted = list(Job.objects.order_by("priority", "run_at", "id").values_list("pk", flat=True))
    started = list(Job.objects.order_by("started_at", "priority", "run_at", "id").values_list("pk", flat=True))
    place = {pk: number for number, pk in enumerate(wanted)}
    # Two workers that claim at the same moment, with three slots each and some ahead.
    assert max(abs(place[pk] - number) for number, pk in enumerate(started)) <= 24
    assert_ledger_consistent()


@pytest.mark.parametrize("limited_are_urgent", [True, variant(False)])
def test_jobs_start_in_the_order_of_their_priority_whether_they_have_limits_or_not(
    processes: Processes, limited_are_urgent: bool
) -> None:
    own = {**dict.fromkeys(COLUMNS), "rate_key": "t", "rate_limit": "1000/s"}
    limits = {**own, "lane": lane_of(own)}
    Job.objects.bulk_create(
        Job(
            task=sample_tasks.run_for.name,
            queue="default",
            args=[0.05],
            state="waiting",
            priority=priority,
            run_at=claims.now() - 30 * SECOND,
            **(limits if limited_are_urgent == (priority == 0) else {}),
        )
        for priority in (0, 9)
        for _ in range(100)
    )
    processes.worker("default", pool="threads", concurrency=2)
    wait_until(lambda: not Job.objects.exclude(state="completed").exists(), timeout=60)
    urgent = Job.objects.filter(priority=0).order_by("started_at").values_list("started_at", flat=True)
    between = Job.objects.filter(priority=9, started_at__range=(urgent[0], urgent[99]))
    # What has started before the first grant waited for nothing. Now and then no grant lies ready.
    assert between.count() <= 20
    assert_ledger_consistent()


def test_ten_thousand_jobs_of_an_unknown_task_delay_nobody_and_stay_as_they_are(processes: Processes) -> None:
    make_backlog(10_000, task="shop.tasks.of_tomorrow", priority=0, run_at=Now() - timedelta(minutes=5))
    processes.worker("default", pool="threads", concurrency=2)
    known = [sample_tasks.add.delay(number, 1) for number in range(200)]
    wait_until(
        lambda: Job.objects.filter(pk__in=[one.id for one in known], state="completed").count() == 200, timeout=60
    )
    assert (
        Job.objects.filter(task="shop.tasks.of_tomorrow", state="waiting", attempt=1, claim_token="").count() == 10_000
    )
    reasons = health.check().reasons
    assert "default: no living worker knows the task shop.tasks.of_tomorrow, of which jobs wait." in reasons
    assert "knows its task shop.tasks.of_tomorrow" in (
        services.why(Job.objects.filter(state="waiting").first().pk) or ""
    )
    drop_the_backlog()


def test_whatever_becomes_waiting_beside_ten_thousand_others_starts_at_once(
    processes: Processes, tmp_path: Path
) -> None:
    make_backlog(10_000, task=sample_tasks.run_for.name, args=[0.02])
    processes.worker("default", pool="threads", concurrency=3)
    wait_until(lambda: Job.objects.filter(state="completed").count() > 20)
    late: dict[str, timedelta] = {}

    def note(what: str, job_id: Any, since: Any) -> None:
        job = wait_until(lambda: Job.objects.filter(pk=job_id, started_at__gte=since, state="completed").first())
        late[what] = job.started_at - since

    now = claims.now()
    note("urgent", sample_tasks.add.apply_async((1, 2), priority=0).id, now)
    later = sample_tasks.add.apply_async((1, 2), countdown=3600, priority=0)
    now = claims.now()
    services.promote_job(job_id=later.id, actor="test")
    note("promoted", later.id, now)
    retried = sample_tasks.retry_in.apply_async((0.3,), priority=0)
    job = wait_until(lambda: Job.objects.filter(pk=retried.id, state="completed").first())
    late["retried"] = job.started_at - job.run_at
    dead = make_worker(queues=["default"])
    # Running from the beginning: the worker would be as quick to claim it.
    handed_back = make_job(
        args=[1, 2],
        run_at=Now() - timedelta(minutes=3),
        priority=0,
        state="active",
        worker_id=dead.pk,
        claim_token=f"{dead.pk.hex}:claim",
        started_at=Now(),
    )
    now = claims.now()
    settle.hand_back(dead.pk)
    note("handed back", handed_back.pk, now)
    with transaction.atomic():
        committed = sample_tasks.add.apply_async((1, 2), priority=0)
        # The transaction itself must be open for longer than a ring counts as in time: nothing can be waited for.
        time.sleep(2.5)
        now = claims.now()
    note("committed late", committed.id, now)
    assert {what: lateness for what, lateness in late.items() if lateness > SECOND} == {}
    drop_the_backlog()


def test_more_messages_than_workers_can_use_are_told(empty_redis: None) -> None:
    Worker.objects.all().delete()
    make_worker(queues=["default"], concurrency=20)
    doorbell = Doorbell.patient()
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.lpush("default:3", *range(58))
    assert doorbell.message_counts(["default"]) == {"default": 58}
    assert "default: Redis holds 58 messages, and its workers can use 57." in health.check().reasons
    doorbell.close()
