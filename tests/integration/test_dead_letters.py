"""What other producers leave in a queue's list ends no worker."""

import json
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import current_app
from django.conf import settings

from jobs import dead_letters, health
from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

UNREADABLE = [
    b"garbage",
    b"{}",
    b"null",
    b"[]",
    b"7",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"properties": {}}',
    b'{"properties": {"delivery_tag": "1"}}',
    b'{"properties": {"delivery_tag": "2", "delivery_info": {}}, "body": "!", "headers": null}',
    b'{"properties": {"delivery_tag": "3", "body_encoding": "base64"}, "body": "!", "headers": {}}',
    b'{"properties": {"delivery_tag": "4", "body_encoding": "rot13"}, "body": "!", "headers": {}}',
]


def message(task: str, args: Any) -> bytes:
    """As Celery puts it into Redis."""
    made = current_app.amqp.as_task_v2(str(uuid4()), task, args, {})
    return json.dumps(
        {
            "body": json.dumps(made.body),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": made.headers,
            "properties": {
                "delivery_tag": str(uuid4()),
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "default"},
                "priority": 0,
            },
        }
    ).encode()


@pytest.mark.parametrize("is_there_at_first", [False, True])
@POOLS
def test_where_something_else_lies_in_the_place_of_a_list_work_goes_on_and_it_is_named(
    processes: Processes, pool: str, is_there_at_first: bool
) -> None:
    def completes(job_id: str) -> None:
        wait_until(lambda: Job.objects.filter(pk=job_id, state="completed").exists())

    with redis.Redis.from_url(settings.REDIS_URL) as broker:
        if is_there_at_first:
            broker.set("default:3", "a stranger's")
        worker = processes.worker("default", "email", pool=pool)
        if not is_there_at_first:
            broker.set("default:3", "a stranger's")
        wait_until(lambda: "Redis's key default:3 is a string" in worker.output)
        assert any("redis-cli DEL default:3" in reason for reason in health.check().reasons)
        assert not any("does not answer" in reason for reason in health.check().reasons)
        # Without limits, with limits, and another producer's, in another list.
        completes(sample_tasks.add.delay(1, 2).id)
        completes(sample_tasks.add.apply_async((1, 2), queue="email").id)
        broker.lpush("default", message(sample_tasks.add.name, [3, 4]))
        wait_until(lambda: Job.objects.filter(state="completed").count() == 3)
        broker.delete("default:3")
        broker.lpush("default:3", message(sample_tasks.add.name, [5, 6]))
        wait_until(lambda: Job.objects.filter(state="completed").count() == 4)
    assert worker.output.count("Redis's key default:3 is a string") == 1
    assert worker.status is None
    assert_ledger_consistent()


@POOLS
def test_what_is_no_message_is_put_aside_and_the_worker_goes_on(processes: Processes, pool: str) -> None:
    worker = processes.worker("default", pool=pool, concurrency=2)
    no_jobs = [message("nobody.knows.it", ()), message(sample_tasks.add.name, (1, 2, 3)), message("", None)]
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        for number, text in enumerate([*UNREADABLE, *no_jobs]):
            client.lpush("default:3" if number % 2 else "default", text)
        client.lpush("default", message(sample_tasks.add.name, (3, 4)))
        wait_until(lambda: dead_letters.count() >= len(UNREADABLE) + len(no_jobs))
    result = sample_tasks.add.delay(1, 2)
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2)
    assert result.get() == 3
    assert worker.status is None
    assert len(dead_letters.letters()) == len(UNREADABLE) + len(no_jobs), [one.why for one in dead_letters.letters()]
    kept = {one.message for one in dead_letters.letters()}
    assert kept.issuperset(UNREADABLE[:7])
    assert dead_letters.put_back() == len(UNREADABLE) + len(no_jobs)
    wait_until(lambda: dead_letters.count() == len(UNREADABLE) + len(no_jobs))
    assert worker.status is None
    assert_ledger_consistent()


BROADCAST = [*UNREADABLE[:7], b'{"properties": null}', b'{"properties": []}', message("", None), b'"x"', b"1e999"]


@POOLS
def test_what_is_broadcast_and_is_no_message_costs_no_worker_its_connection(processes: Processes, pool: str) -> None:
    worker = processes.worker("default", pool=pool, concurrency=1)
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        database = client.connection_pool.connection_kwargs.get("db", 0)
        for text in BROADCAST:
            assert client.publish(f"/{database}.celery.pidbox", text) == 1
    # It hears what comes after that.
    wait_until(lambda: bool(current_app.control.ping(timeout=1)))
    assert sample_tasks.add.delay(1, 2).get() == 3
    assert worker.status is None
    assert worker.output.count("Connected to redis") == 1
    assert "is no message (TypeError: " in worker.output
