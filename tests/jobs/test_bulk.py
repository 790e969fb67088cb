"""Many jobs at once: like so many calls of `apply_async`, but for the time they take."""

import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import shared_task
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from accounts.models import User
from jobs.bulk import CallRefused, Enqueued, enqueue_many
from jobs.doorbell import PACED, RING, key_of
from jobs.enqueue import NotSupported
from jobs.flows import fan_out
from jobs.models import DedupWindow, Job
from jobs.testing import run_due_jobs
from tests.sample_tasks import add

pytestmark = pytest.mark.django_db


@shared_task(queue="crm", priority=2, max_retries=7)
def greet(name: str, price: Any = None) -> str:
    return f"{name} {price}"


@shared_task(queue="crm", expires=90000)
def greet_in_time(name: str) -> str:
    return name


def names(count: int) -> Iterator[dict[str, Any]]:
    return ({"name": f"name {number}"} for number in range(count))


def test_many_jobs_are_like_so_many_calls() -> None:
    owner = User.objects.create(email="ada@example.com", name="Ada")
    options: dict[str, Any] = {"owner_id": owner.pk, "correlation_id": "c", "headers": {"a": 1}, "time_limit": 99}
    single = Job.objects.get(pk=greet.apply_async(kwargs={"name": "name 0"}, **options).id)
    assert enqueue_many(greet, names(2500), **options) == Enqueued(count=2500, existing_count=0)
    many = list(Job.objects.exclude(pk=single.pk).order_by("id"))
    assert [job.kwargs for job in many] == list(names(2500))
    own = {"id", "created_at", "run_at"}
    for column in {field.attname for field in Job._meta.concrete_fields} - own:
        assert getattr(many[0], column) == getattr(single, column), column


@pytest.mark.parametrize(("option", "seconds"), [("countdown", 60), ("eta", 86400)])
def test_many_jobs_may_be_delayed_and_expire(option: str, seconds: int) -> None:
    due: dict[str, Any] = {option: seconds if option == "countdown" else timezone.now() + timedelta(seconds=seconds)}
    enqueue_many(greet, names(2), expires=90000, **due)
    for job in Job.objects.all():
        assert job.state == "delayed"
        assert abs((job.run_at - timezone.now()).total_seconds() - seconds) < 30
        assert job.expires_at is not None
        assert abs((job.expires_at - timezone.now()).total_seconds() - 90000) < 30


@pytest.mark.parametrize("given", [{}, {"expires": None, "countdown": None}])
def test_many_jobs_expire_as_their_task_declares(given: dict[str, Any]) -> None:
    enqueue_many(greet_in_time, names(2), **given)
    flow = fan_out(None, [greet_in_time.s("c").set(**given)], then=greet.s())
    assert Job.objects.get(pk=flow.id).is_held
    for job in Job.objects.filter(task=greet_in_time.name):
        assert job.expires_at is not None
        assert abs((job.expires_at - timezone.now()).total_seconds() - 90000) < 30


def test_they_run_with_their_own_arguments() -> None:
    enqueue_many(greet, [{"name": "a", "price": Decimal("1.50")}, {"name": "b"}])
    assert [job.result for job in run_due_jobs()] == ["a 1.50", "b None"]


def test_calls_without_a_key_are_all_enqueued_beside_those_with_one() -> None:
    keys = iter([None, "b", None, "a", "b", None])
    assert enqueue_many(greet, names(6), dedup_key=lambda _: next(keys)) == Enqueued(count=5, existing_count=1)
    kept = Job.objects.order_by("kwargs__name").values_list("kwargs__name", "dedup_key")
    assert list(kept) == [("name 0", None), ("name 1", "b"), ("name 2", None), ("name 3", "a"), ("name 5", None)]


def test_nothing_is_enqueued_for_no_calls() -> None:
    assert enqueue_many(greet, []) == Enqueued(count=0, existing_count=0)


def test_a_key_that_is_taken_leaves_nothing() -> None:
    greet.apply_async(kwargs={"name": "live"}, dedup_key="greet-live")
    DedupWindow.objects.create(
        key="greet-thrown", job_id=Job.objects.get().pk, until=timezone.now() + timedelta(days=1)
    )
    calls = [{"name": name} for name in ("live", "new", "thrown", "new", "also")]
    enqueued = enqueue_many(greet, calls, dedup_key=lambda call: f"greet-{call['name']}")
    assert enqueued == Enqueued(count=2, existing_count=3)
    assert {job.dedup_key for job in Job.objects.all()} == {"greet-also", "greet-live", "greet-new"}
    assert enqueue_many(greet, calls, dedup_key=lambda call: f"greet-{call['name']}").count == 0


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        ({"nobody": 1}, "TypeError"),
        ({"name": object()}, "PayloadNotJSON"),
        ({"name": "x" * 2_000_000}, "PayloadTooLarge"),
        ({"name": "\0"}, "PayloadNotJSON"),
    ],
)
def test_a_wrong_call_is_told_with_its_number_and_leaves_the_callers_transaction_as_it_was(
    bad: dict[str, Any], cause: str
) -> None:
    greet.delay("before")
    with pytest.raises(CallRefused, match=rf"call 1500, .*{cause}") as refused:
        enqueue_many(greet, [*names(1500), bad])
    assert refused.value.number == 1500
    assert [job.args for job in Job.objects.all()] == [["before"]]


@pytest.mark.django_db(transaction=True)
def test_outside_of_a_transaction_all_is_enqueued_or_nothing() -> None:
    def calls() -> Iterator[dict[str, Any]]:
        yield from names(1500)
        raise LookupError("the table is gone")

    with pytest.raises(CallRefused):
        enqueue_many(greet, [*names(1500), {}])
    with pytest.raises(LookupError, match="the table is gone"):
        enqueue_many(greet, calls())
    assert not Job.objects.exists()


@pytest.mark.parametrize("before", [0, 1000])
def test_where_the_keys_of_a_whole_batch_are_held_by_windows_the_others_are_enqueued(before: int) -> None:
    until = timezone.now() + timedelta(days=1)
    held = [DedupWindow(key=f"held {number}", job_id=uuid4(), until=until) for number in range(1000)]
    DedupWindow.objects.bulk_create(held)
    keys = [*(f"free {number}" for number in range(before)), *(window.key for window in held), "free"]
    calls = ({"name": key} for key in keys)
    enqueued = enqueue_many(greet, calls, dedup_key=lambda call: call["name"])
    assert enqueued == Enqueued(count=before + 1, existing_count=1000)
    assert Job.objects.count() == before + 1


@pytest.mark.django_db(transaction=True)
def test_many_jobs_are_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        enqueue_many(greet, names(1500))
        transaction.set_rollback(True)
    assert not Job.objects.exists()


@pytest.mark.parametrize("option", [{"task_id": "x"}, {"dedup_seconds": 3}, {"dedup_latest": True}, {"hope": 1}])
def test_options_that_make_no_sense_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises((NotSupported, CallRefused)):
        enqueue_many(greet, names(2), **option)
    assert not Job.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_callers_with_the_same_keys_in_another_order_do_not_deadlock() -> None:
    # More than are written at once.
    calls = list(names(2500))
    both_are_there = Barrier(2)

    def enqueue(these: Sequence[dict[str, Any]]) -> int:
        both_are_there.wait(timeout=30)
        try:
            with transaction.atomic():
                return enqueue_many(greet, these, dedup_key=lambda call: str(call["name"])).count
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as threads:
        counts = list(threads.map(enqueue, [calls, calls[::-1]]))
    assert sum(counts) == Job.objects.count() == 2500


def test_memory_does_not_grow_with_the_number_of_calls() -> None:
    enqueue_many(add, ({"x": n, "y": n} for n in range(1000)))
    peaks = []
    for count in (2000, 12000):
        tracemalloc.start()
        enqueue_many(add, ({"x": n, "y": n} for n in range(count)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("task", [add, greet], ids=["without limits", "with limits"])
def test_many_jobs_leave_one_ring_and_nothing_of_themselves_in_redis(empty_redis: None, task: Any) -> None:
    calls = names(2500) if task is greet else ({"x": number, "y": number} for number in range(2500))
    assert enqueue_many(task, calls).count == 2500
    rung = PACED if task is greet else "default"
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        assert client.keys() == [key_of(rung).encode()]
        assert client.zrange(key_of(rung), 0, -1) == [RING.encode()]
